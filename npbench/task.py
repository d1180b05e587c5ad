"""Task: the only thing that data modules give to models."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from npbench.errors import InputError
from npbench.structure import TensorRecord, counted


@dataclass(frozen=True, eq=False)
class Exact(TensorRecord):
    """What the process that made a synthetic task says of its targets: the ceiling of any model.

    `log_likelihood` scores the targets one by one (the ceiling of diagonal models),
    `joint_log_likelihood` all at once (the ceiling of joint and autoregressive ones); both are nats
    per target.
    """

    mean: Float[Tensor, "batch target dim_y"]
    std: Float[Tensor, "batch target dim_y"]
    log_likelihood: Float[Tensor, "batch"]
    joint_log_likelihood: Float[Tensor, "batch"]


@dataclass(frozen=True, eq=False)
class Bayes(TensorRecord):
    """What is known at best of a synthetic task's targets without knowing its hyper-parameters.

    `Exact` knows which process made the task. This is the posterior predictive of all processes
    that may have made it, weighed by what the context says of them: the ceiling of any model that
    is trained on such tasks. It is a mixture of Gaussians; `gaussian_…` are the log-likelihoods of
    the one Gaussian with its mean and covariance. `joint_…` score all targets at once, the others
    one by one; all are nats per target.
    """

    log_likelihood: Float[Tensor, "batch"]
    gaussian_log_likelihood: Float[Tensor, "batch"]
    joint_log_likelihood: Float[Tensor, "batch"]
    joint_gaussian_log_likelihood: Float[Tensor, "batch"]


@dataclass(frozen=True, eq=False)
class Task(TensorRecord):
    """A batch of tasks: in each, predict `yt` at `xt` from the context (`xc`, `yc`).

    A mask is True where a point is real; None means that all are. `exact` and `bayes` are known of
    synthetic tasks only; `truth` is the function itself at the targets, without the noise of
    observations, and known of tasks that are made for figures. `output` is the name of the one
    output that all tasks of the batch are of, where each output of the data is a function by
    itself: a model takes them in the units of this output.

    Example:
        >>> task = Task(torch.randn(16, 10, 1), torch.randn(16, 10, 1), torch.randn(16, 20, 1))
        >>> task.batch_size
        16
        >>> task
        Task(16 tasks of 10 context points and 20 targets, on cpu)
    """

    xc: Float[Tensor, "batch context dim_x"]
    yc: Float[Tensor, "batch context dim_y"]
    xt: Float[Tensor, "batch target dim_x"]
    yt: Float[Tensor, "batch target dim_y"] | None = None
    context_mask: Bool[Tensor, "batch context"] | None = None
    target_mask: Bool[Tensor, "batch target"] | None = None
    exact: Exact | None = None
    bayes: Bayes | None = None
    truth: Float[Tensor, "batch target dim_y"] | None = None
    output: str | None = None

    @property
    def batch_size(self) -> int:
        return len(self.xc)

    def contents(self) -> str:
        """The numbers of tasks, of context points and of targets, padding included."""
        points = counted(self.xc.shape[1], "context point")
        targets = counted(self.xt.shape[1], "target")
        return f"{counted(self.batch_size, 'task')} of {points} and {targets}"

    def pad(self, num_context: int, num_target: int) -> "Task":
        """The same tasks in fixed shapes, with zeros behind the points and masks of the real ones.

        Raises:
            InputError: if there are more points than that already.
        """
        more_context = num_context - self.xc.shape[1]
        more_target = num_target - self.xt.shape[1]
        if more_context < 0 or more_target < 0:
            raise InputError(
                f"a task of {self.xc.shape[1]} context and {self.xt.shape[1]} target points does "
                f"not fit into {num_context} and {num_target}"
            )

        def padded(points: Tensor, by: int) -> Tensor:
            return F.pad(points, (0, 0, 0, by))

        def padded_mask(mask: Tensor | None, points: Tensor, by: int) -> Tensor:
            real = points.new_ones(points.shape[:2], dtype=torch.bool) if mask is None else mask
            return F.pad(real, (0, by))

        exact = self.exact
        if exact is not None:
            # A standard deviation of 1 does no harm wherever a padded target is computed with.
            exact = Exact(
                F.pad(exact.mean, (0, 0, 0, more_target)),
                F.pad(exact.std, (0, 0, 0, more_target), value=1.0),
                exact.log_likelihood,
                exact.joint_log_likelihood,
            )
        return type(self)(
            xc=padded(self.xc, more_context),
            yc=padded(self.yc, more_context),
            xt=padded(self.xt, more_target),
            yt=None if self.yt is None else padded(self.yt, more_target),
            context_mask=padded_mask(self.context_mask, self.xc, more_context),
            target_mask=padded_mask(self.target_mask, self.xt, more_target),
            exact=exact,
            bayes=self.bayes,
            truth=None if self.truth is None else padded(self.truth, more_target),
            output=self.output,
        )
