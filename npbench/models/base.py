"""The contract of every model: a state that absorbs data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution

from npbench.structure import TensorRecord
from npbench.task import Task


class Points(NamedTuple):
    """A checked set of points: inputs, outputs, and which of them are real (None: all)."""

    x: Float[Tensor, "batch points dim_x"]
    y: Float[Tensor, "batch points dim_y"]
    mask: Bool[Tensor, "batch points"] | None = None


class State(TensorRecord, ABC):
    """What a model keeps of its context: immutable tensors, one row a task."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Number of tasks."""


class Evaluation(NamedTuple):
    """What a model says of a task's targets: one pass serves all metrics."""

    log_likelihood: Float[Tensor, "batch"]
    mean: Float[Tensor, "batch target dim_y"]
    std: Float[Tensor, "batch target dim_y"]


def records_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Keep the arguments of a model's `__init__` as its `hparams`, for checkpoints to hold."""

    @wraps(init)
    def recording(self: "NeuralProcess", *args: Any, **kwargs: Any) -> None:
        bound = signature(init).bind(self, *args, **kwargs)
        bound.apply_defaults()
        init(self, *args, **kwargs)
        # The outermost class, which comes last, is the one to rebuild.
        self.hparams = {k: v for k, v in bound.arguments.items() if k != "self"}

    return recording


class NeuralProcess(nn.Module, ABC):
    """Predictions at new inputs from a context set, through a state that absorbs data.

        state = model.condition(xc, yc)      # a context set becomes a state
        state = model.update(state, x, y)    # exact: the same as conditioning on all of it
        dist  = model.query(state, xt)       # a torch distribution over the targets

    A model implements `_condition`, `_update` and `_query`; the public methods check what they are
    given first, so the private ones meet finite tensors of the right shapes. Its `__init__` is
    decorated with `records_arguments`.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
    """

    hparams: dict[str, Any]

    def __init__(self, dim_x: int, dim_y: int) -> None:
        super().__init__()
        if dim_x < 1 or dim_y < 1:
            raise ValueError(f"dim_x={dim_x} and dim_y={dim_y} must be 1 or more")
        self.dim_x = dim_x
        self.dim_y = dim_y

    @abstractmethod
    def _condition(self, chunks: Iterator[Points]) -> State:
        """The state of the union of all chunks; there is one at least, perhaps of no points."""

    @abstractmethod
    def _update(self, state: State, points: Points) -> State:
        """The state after more points."""

    @abstractmethod
    def _query(self, state: State, xt: Tensor) -> Distribution:
        """The prediction at `xt`."""

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"] | Iterable[tuple],
        yc: Float[Tensor, "batch context dim_y"] | None = None,
        mask: Bool[Tensor, "batch context"] | None = None,
        chunk_size: int | None = None,
    ) -> State:
        """The state of a context set; an empty one gives the prior.

        Args:
            xc: context inputs, or an iterable of (x, y) or (x, y, mask) chunks in place of `xc`,
                `yc` and `mask`.
            yc: context outputs.
            mask: True where a context point is real.
            chunk_size: embed and absorb that many points at a time. The result is the same; where
                the model streams, peak memory does not depend on the number of points.

        Raises:
            ValueError: on a wrong width, shape or type, and on NaN or infinite values.
        """
        if isinstance(xc, Tensor):
            if yc is None:
                raise ValueError("condition got context inputs xc without outputs yc")
            return self._condition(self._slices(xc, yc, mask, chunk_size))
        if yc is not None or mask is not None or chunk_size is not None:
            raise ValueError(
                f"condition takes tensors xc and yc, or an iterable of (x, y) chunks alone; "
                f"got xc of type {type(xc).__name__} with other arguments"
            )
        if not isinstance(xc, Iterable):
            raise ValueError(
                f"condition takes tensors or an iterable of (x, y) chunks, not {type(xc).__name__}"
            )
        return self._condition(self._checked_chunks(xc))

    def update(
        self,
        state: State,
        x: Float[Tensor, "batch points dim_x"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> State:
        """The state after more points: the same as conditioning on the union.

        Raises:
            ValueError: as `condition`.
        """
        points = self._points("x", x, "y", y, mask)
        _check_batch("x", points.x, state.batch_size)
        return self._update(state, points)

    def query(self, state: State, xt: Float[Tensor, "batch target dim_x"]) -> Distribution:
        """The predictive distribution at `xt`.

        Raises:
            ValueError: as `condition`, and when there are no targets.
        """
        self._check("xt", xt, self.dim_x, "dim_x")
        if xt.shape[1] == 0:
            raise ValueError(f"xt is an empty target set, of shape {list(xt.shape)}")
        _check_batch("xt", xt, state.batch_size)
        return self._query(state, xt)

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch target dim_x"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> Distribution:
        """`query(condition(xc, yc, mask), xt)`."""
        return self.query(self.condition(xc, yc, mask), xt)

    def evaluate(self, task: Task) -> Evaluation:
        """Each task's log-likelihood, and the mean and standard deviation at each target."""
        targets = self._targets(task)
        dist = self.forward(task.xc, task.yc, targets.x, task.context_mask)
        log_likelihood = masked_mean(dist.log_prob(targets.y), targets.mask)
        return Evaluation(log_likelihood, dist.mean, dist.stddev)

    def log_likelihood(self, task: Task) -> Float[Tensor, "batch"]:
        """Each task's log-likelihood in nats: summed over outputs, averaged over real targets."""
        return self.evaluate(task).log_likelihood

    def loss(self, task: Task) -> Float[Tensor, ""]:
        """What training minimises: the negative log-likelihood per target, averaged over tasks."""
        return -self.log_likelihood(task).mean()

    def sample(
        self, state: State, xt: Float[Tensor, "batch target dim_x"], num_samples: int = 1
    ) -> Float[Tensor, "samples batch target dim_y"]:
        """Draws of the targets' values."""
        samples = self.query(state, xt).sample(torch.Size([num_samples]))
        return samples.reshape(num_samples, *xt.shape[:2], self.dim_y)

    def _targets(self, task: Task) -> Points:
        """The task's targets, checked, with 0 at padding."""
        if task.yt is None:
            raise ValueError("the task has no yt: a log-likelihood needs the targets' true values")
        targets = self._points("xt", task.xt, "yt", task.yt, task.target_mask)
        if targets.mask is not None and not targets.mask.any(dim=-1).all():
            raise ValueError("target_mask leaves a task without targets")
        return targets

    def _slices(self, xc: Tensor, yc: Any, mask: Any, chunk_size: int | None) -> Iterator[Points]:
        """The context, checked chunk by chunk: no copy of the whole is ever made."""
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be 1 or more")
        size = xc.shape[1] if xc.ndim == 3 else 0
        if chunk_size is None or size <= chunk_size or not _same_points(xc, yc, mask):
            yield self._points("xc", xc, "yc", yc, mask)
            return
        for start in range(0, size, chunk_size):
            window = slice(start, start + chunk_size)
            part = None if mask is None else mask[:, window]
            where = f"from point {start} on"
            yield self._points(f"xc {where}", xc[:, window], f"yc {where}", yc[:, window], part)

    def _checked_chunks(self, chunks: Iterable[tuple]) -> Iterator[Points]:
        batch_size = None
        for number, chunk in enumerate(chunks):
            if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
                raise ValueError(f"chunk {number} is no (x, y) or (x, y, mask) tuple")
            x, y, *mask = chunk
            name = f"x of chunk {number}"
            points = self._points(name, x, f"y of chunk {number}", y, *mask)
            batch_size = len(points.x) if batch_size is None else batch_size
            _check_batch(name, points.x, batch_size)
            yield points
        if batch_size is None:
            raise ValueError("the iterable of chunks is empty; for a prior, give one empty chunk")

    def _points(self, x_name: str, x: Any, y_name: str, y: Any, mask: Any | None = None) -> Points:
        """The points as given, checked, with 0 wherever the mask says that none is real."""
        shape = getattr(x, "shape", None)
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise ValueError(f"the mask of {x_name} must be a bool tensor, True = real")
            if shape is None or mask.shape != shape[:2]:
                raise ValueError(
                    f"the mask of {x_name} has shape {list(mask.shape)}; expected "
                    f"{list(shape[:2]) if shape is not None else '[batch, points]'}"
                )
            padding = ~mask[..., None]
            x, y = (
                z.masked_fill(padding, 0.0)
                if isinstance(z, Tensor) and z.shape[:2] == mask.shape
                else z
                for z in (x, y)
            )
        self._check(x_name, x, self.dim_x, "dim_x")
        self._check(y_name, y, self.dim_y, "dim_y")
        if x.shape[:2] != y.shape[:2]:
            raise ValueError(
                f"{x_name} {list(x.shape)} and {y_name} {list(y.shape)} differ in the number of "
                f"tasks or points"
            )
        return Points(x, y, mask)

    def _check(self, name: str, tensor: Any, width: int, width_name: str) -> None:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.ndim != 3 or len(tensor) == 0 or tensor.shape[-1] != width:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; expected [batch, points, {width}], as "
                f"the model was built with {width_name}={width}"
            )
        dtype = next(self.parameters()).dtype
        if tensor.dtype != dtype:
            raise ValueError(
                f"{name} is {tensor.dtype}, the model {dtype}; convert one: {name}.to({dtype}) or "
                f"model.to({tensor.dtype})"
            )
        # A value-dependent branch has no place in a compiled graph.
        if not torch.compiler.is_compiling() and not torch.isfinite(tensor).all():
            bad = (~torch.isfinite(tensor)).nonzero()
            raise ValueError(
                f"{name} holds {len(bad)} NaN or infinite value(s), the first at "
                f"{bad[0].tolist()}; drop those points, or mask them out"
            )


def masked_mean(
    values: Float[Tensor, "batch points"], mask: Bool[Tensor, "batch points"] | None
) -> Float[Tensor, "batch"]:
    """The mean over the real points of each row."""
    if mask is None:
        return values.mean(dim=-1)
    return values.masked_fill(~mask, 0.0).sum(dim=-1) / mask.sum(dim=-1)


def _same_points(x: Tensor, y: Any, mask: Any) -> bool:
    """Whether all have the same tasks and points, so that they can be sliced alike."""
    others = [y] if mask is None else [y, mask]
    return all(isinstance(z, Tensor) and z.shape[:2] == x.shape[:2] for z in others)


def _check_batch(name: str, tensor: Tensor, batch_size: int) -> None:
    if len(tensor) != batch_size:
        raise ValueError(f"{name} has {len(tensor)} tasks, the state {batch_size}")
