"""The contract of models that see their data through a memory, for those who look into it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from npbench.structure import TensorRecord


@dataclass(frozen=True, eq=False)
class MemoryView(TensorRecord):
    """What the vectors of a memory are in one layer, after a batch of tasks or sequences."""

    packed: Float[Tensor, "batch memory dim_model"] | None
    """What their attention has brought from the points, before residual and norm, if known."""
    latents: Float[Tensor, "batch latents dim_model"]
    """What the layer makes of it, and hands on."""
    log_weights: Float[Tensor, "batch heads memory points"]
    """The logarithms of the attention to the points; −∞ at padding, and where nothing is seen."""


@runtime_checkable
class HasMemory(Protocol):
    """A model that may have latents, or memory vectors, which attend to the data."""

    def memory_layers(self, batch: Any) -> Sequence[MemoryView]:
        """The memory in each layer, after the contexts of tasks, histories or texts; nothing of a
        model without one.

        Args:
            batch: as the data module gives it.
        """
