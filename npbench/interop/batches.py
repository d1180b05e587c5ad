"""Tasks in batches of several dimensions, which broadcast."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from npbench.models.contracts import SavedState


def as_tasks(z: Tensor, batch: torch.Size) -> Float[Tensor, "tasks points width"]:
    """Points of a batch shape that broadcasts to this one, as those of a batch of tasks."""
    return z.expand(*batch, *z.shape[-2:]).reshape(batch.numel(), *z.shape[-2:])


def expanded(state: Any, before: torch.Size, after: torch.Size) -> Any:
    """The state of tasks of one batch shape as that of another to which it broadcasts.

    Its tensors are views where those of one task become those of many.
    """
    if before == after:
        return state

    def one(z: Tensor) -> Tensor:
        z = z.movedim(state.batch_dim, 0)
        rest = z.shape[1:]
        z = z.reshape((*before, *rest)).expand((*after, *rest)).reshape((after.numel(), *rest))
        return z.movedim(0, state.batch_dim)

    if isinstance(state, SavedState):  # a ledger is of one task
        state = replace(state, ledger=None)
    return state.map(one)
