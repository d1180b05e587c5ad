"""The base of the models that must keep their context: their state grows with it."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from npbench.models.contracts.points import Points
from npbench.models.contracts.process import NeuralProcess, State


@dataclass(frozen=True, eq=False)
class StoredContext(State):
    """The context itself, which an update needs, and its encodings, one a layer, which a query
    attends to: those of every point (TNP and EQTNP, N of them) or of latents (LBANP)."""

    points: Points
    encodings: Float[Tensor, "batch layers encoded dim_model"]


class StoredContextProcess(NeuralProcess):
    """A model whose `update` encodes the whole context again, old points and new."""

    @abstractmethod
    def _encode(self, points: Points) -> State:
        """The state of a whole context."""

    def _condition(self, chunks: Iterator[Points]) -> State:
        return self._encode(Points.concatenate(chunks))

    def _update(self, state: StoredContext, points: Points) -> State:
        return self._encode(Points.concatenate([state.points, points]))
