"""How many points of a task are context and how many are targets, and which ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datamodules.loading import at_least_one
from npbench.errors import InputError


@dataclass(frozen=True)
class TaskSizes:
    """The law of the number of context points N and of targets M of a task.

    N ~ U{min, …, max − min − 1} and M ~ U{min, …, max − 1 − N}, so that N + M stays below max; no
    more than `max_targets` of them are targets. With `num_targets`, M is that number instead, and
    N keeps its law.

    Data modules take these as `min_num_points`, `max_num_points`, `max_num_targets`, `num_targets`
    and `vary_sizes`, the names that messages use.

    Args:
        min: fewest context points, and fewest targets.
        max: N + M stays below.
        max_targets: most targets.
        num_targets: the number of targets of every task.
        vary: the tasks of a batch differ in N and M; otherwise they share both.

    Raises:
        InputError: if no N and M obey the law.

    Example:
        >>> split = TaskSizes(min=3, max=50, num_targets=20, vary=True).draw(16)
        >>> split.num_context.shape, split.num_target.unique()
        (torch.Size([16]), tensor([20]))
    """

    min: int
    max: int
    max_targets: int | None = None
    num_targets: int | None = None
    vary: bool = False

    def __post_init__(self) -> None:
        at_least_one(min_num_points=self.min)
        if self.max <= 2 * self.min:
            raise InputError(
                f"max_num_points={self.max} leaves no room for {self.min} context and {self.min} "
                f"target points; it must exceed their sum"
            )
        if self.max_targets is not None and self.max_targets < self.min:
            raise InputError(
                f"max_num_targets={self.max_targets} must not be below min_num_points={self.min}"
            )
        if self.num_targets is not None:
            at_least_one(num_targets=self.num_targets)
            if self.max_targets is not None:
                raise InputError(
                    f"num_targets={self.num_targets} fixes the number of targets, which "
                    f"max_num_targets={self.max_targets} would draw; leave one of them out"
                )

    @property
    def evaluation(self) -> "TaskSizes":
        """The law of fixed tasks, which are drawn one by one and know no bound of the targets."""
        return TaskSizes(self.min, self.max)

    @property
    def most_context(self) -> int:
        """The largest N that is drawn."""
        return self.max - self.min - 1

    @property
    def most_targets(self) -> int:
        """The largest M that is drawn."""
        if self.num_targets is not None:
            return self.num_targets
        most = self.max - self.min - 1
        return most if self.max_targets is None else min(most, self.max_targets)

    def draw(self, batch_size: int) -> "ContextTargetSplit":
        """Draw the sizes of a batch of tasks from torch's generator."""
        if self.vary:
            sizes = [self._draw_one() for _ in range(batch_size)]
        else:
            sizes = [self._draw_one()] * batch_size
        return ContextTargetSplit(*torch.tensor(sizes).unbind(-1))

    def _draw_one(self) -> tuple[int, int]:
        num_context = int(torch.randint(self.min, self.most_context + 1, ()))
        if self.num_targets is not None:
            return num_context, self.num_targets
        most = min(self.max - 1 - num_context, self.most_targets)
        return num_context, int(torch.randint(self.min, most + 1, ()))


@dataclass(frozen=True)
class ContextTargetSplit:
    """Splits the points of each task: the first N are its context and the next M its targets.

    Where the tasks of a batch differ in N or M, zeros follow the points and masks mark the real
    ones; where they do not differ, the masks are None.
    """

    num_context: Int[Tensor, "batch"]
    num_target: Int[Tensor, "batch"]

    @property
    def num_points(self) -> int:
        """The number of points of the largest task."""
        return int((self.num_context + self.num_target).max())

    def context(
        self, values: Float[Tensor, "batch points dim"]
    ) -> Float[Tensor, "batch context dim"]:
        """The values of the context points, 0 at padding."""
        return _masked(values[:, : int(self.num_context.max())], self.context_mask)

    def targets(
        self, values: Float[Tensor, "batch points dim"]
    ) -> Float[Tensor, "batch target dim"]:
        """The values of the targets, 0 at padding."""
        index = self.num_context[:, None] + torch.arange(int(self.num_target.max()))
        index = index.clamp(max=values.shape[1] - 1).to(values.device)
        return _masked(values.take_along_dim(index[..., None], dim=1), self.target_mask)

    @property
    def context_mask(self) -> Bool[Tensor, "batch context"] | None:
        """True at the real context points; None where all are real."""
        return _mask(self.num_context)

    @property
    def target_mask(self) -> Bool[Tensor, "batch target"] | None:
        """True at the real targets; None where all are real."""
        return _mask(self.num_target)


def _mask(sizes: Int[Tensor, "batch"]) -> Bool[Tensor, "batch most"] | None:
    most = int(sizes.max())
    return None if (sizes == most).all() else torch.arange(most) < sizes[:, None]


def _masked(
    values: Float[Tensor, "batch points dim"], mask: Bool[Tensor, "batch points"] | None
) -> Float[Tensor, "batch points dim"]:
    return values if mask is None else values * mask.to(values.device)[..., None]
