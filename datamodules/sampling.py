"""Which points of a task are context, and which are targets."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbench.errors import InputError


def draw_sizes(low: int, high: int, most_targets: int | None = None) -> tuple[int, int]:
    """N ~ U{low, …, high − low − 1} and M ~ U{low, …, high − 1 − N}, from torch's generator.

    `most_targets` bounds M from above.
    """
    num_context = int(torch.randint(low, high - low, ()))
    above = high - num_context
    if most_targets is not None:
        above = min(above, most_targets + 1)
    return num_context, int(torch.randint(low, above, ()))


def check_sizes(low: int, high: int) -> None:
    """That `draw_sizes` has something to draw.

    Raises:
        InputError: if no N and M of `low` or more stay below `high` together.
    """
    if high <= 2 * low:
        raise InputError(
            f"max_num_points={high} leaves no room for {low} context and {low} target points; it "
            f"must exceed their sum"
        )


@dataclass(frozen=True)
class ContextTargetSplit:
    """Of the points of each task the first N are its context and the next M its targets.

    Where the tasks of a batch differ in N or M there are zeros behind the points, and masks that
    mark the real ones; where they do not, the masks are None.
    """

    num_context: Int[Tensor, "batch"]
    num_target: Int[Tensor, "batch"]

    def context(
        self, values: Float[Tensor, "batch points dim"]
    ) -> Float[Tensor, "batch context dim"]:
        return _masked(values[:, : int(self.num_context.max())], self.context_mask)

    def targets(
        self, values: Float[Tensor, "batch points dim"]
    ) -> Float[Tensor, "batch target dim"]:
        index = self.num_context[:, None] + torch.arange(int(self.num_target.max()))
        index = index.clamp(max=values.shape[1] - 1).to(values.device)
        return _masked(values.take_along_dim(index[..., None], dim=1), self.target_mask)

    @property
    def context_mask(self) -> Bool[Tensor, "batch context"] | None:
        return _mask(self.num_context)

    @property
    def target_mask(self) -> Bool[Tensor, "batch target"] | None:
        return _mask(self.num_target)


def _mask(sizes: Int[Tensor, "batch"]) -> Bool[Tensor, "batch most"] | None:
    most = int(sizes.max())
    return None if (sizes == most).all() else torch.arange(most) < sizes[:, None]


def _masked(
    values: Float[Tensor, "batch points dim"], mask: Bool[Tensor, "batch points"] | None
) -> Float[Tensor, "batch points dim"]:
    return values if mask is None else values * mask.to(values.device)[..., None]
