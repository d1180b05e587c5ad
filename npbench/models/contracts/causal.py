"""Encoders whose points see those before them alone, so that an update encodes only new points."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor
from torch.distributions import Distribution

from npbench.errors import ChunkError, InputError
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import State, masked_mean
from npbench.models.contracts.stored_context import StoredContextProcess
from npbench.task import Task

# Without gradients a context is encoded so many points at a time: pairs of a chunk and those after
# it, which a mask would hide, are never formed.
_POINTS_AT_A_TIME = 512

KeysValues = tuple[
    Float[Tensor, "batch heads points dim_head"], Float[Tensor, "batch heads points dim_head"]
]


@dataclass(frozen=True, eq=False)
class CausalState(State):
    """The keys and values of every point in every attention to the context; it needs no points."""

    keys: Float[Tensor, "batch attentions heads points dim_head"]
    values: Float[Tensor, "batch attentions heads points dim_head"]
    mask: Bool[Tensor, "batch points"]

    def keys_values(self) -> list[KeysValues]:
        """Those of each attention, in the order in which the model has them."""
        return list(zip(self.keys.unbind(dim=1), self.values.unbind(dim=1)))


class CausalExtension:
    """A context that grows by new points, one attention after another.

    Args:
        state: of the points before; None where there are none.
        points: the new ones.
    """

    def __init__(self, state: CausalState | None, points: Points) -> None:
        self._before = [] if state is None else state.keys_values()
        self._all: list[KeysValues] = []
        new = points.full_mask
        self._mask = new if state is None else torch.cat([state.mask, new], dim=1)
        number = new.shape[1]
        order = torch.arange(self._mask.shape[1], device=new.device)
        own = order[self._mask.shape[1] - number :, None]
        self.visible: Bool[Tensor, "batch new points"] = (order <= own) & self._mask[:, None]
        """True where a new point may see a point: itself and all real ones before it."""

    def add(self, keys: Tensor, values: Tensor) -> KeysValues:
        """The keys and values of all points in the next attention, from those of the new ones."""
        if self._before:
            old_keys, old_values = self._before[len(self._all)]
            keys = torch.cat([old_keys, keys], dim=2)
            values = torch.cat([old_values, values], dim=2)
        self._all.append((keys, values))
        return keys, values

    def state(self) -> CausalState:
        """The state of all points, after all attentions."""
        keys, values = (torch.stack(each, dim=1) for each in zip(*self._all))
        return CausalState(keys, values, self._mask)


class CausalOption(StoredContextProcess):
    """A model that stores its context, with the option `causal`: see `TNPD`."""

    causal: bool

    def _set_causal(self, causal: bool) -> None:
        if causal and self.scores_jointly:
            raise InputError(
                f"causal=True is for models that predict each target by itself, which "
                f"{type(self).__name__} does not"
            )
        self.causal = causal

    def next_points(
        self,
        x: Real[Tensor, "*batch points dim_x"],
        y: Real[Tensor, "*batch points dim_y"],
        mask: Bool[Tensor, "*batch points"] | None = None,
    ) -> Distribution:
        """The prediction of each point from those before it: of all prefixes in one pass.

        The n-th is the same as `query(condition(x[:, :n], y[:, :n]), x[:, n:n + 1])`.

        Args:
            x: inputs of the points, in their order.
            y: outputs.
            mask: True where a point is real.

        Raises:
            InputError: as `condition`; and if the model is not causal.
        """
        if not self.causal:
            raise InputError(
                f"the points of this {type(self).__name__} see those after them too: only a model "
                f"with causal=True knows every prefix after one pass"
            )
        return self._next_points(self._inputs.points("x", x, "y", y, mask))

    def loss(self, task: Task) -> Float[Tensor, ""]:
        """What training minimises: the negative log-likelihood per target, averaged over tasks.

        If the model is causal, every point of context and targets is predicted from those before
        it, which trains on contexts of all sizes in one pass.
        """
        if not self.causal:
            return super().loss(task)
        points = Points.concatenate(self._inputs.of_task(task))
        log_prob = self._next_points(points).log_prob(points.y)
        return -masked_mean(log_prob, points.mask).mean()

    @abstractmethod
    def _extend(self, state: CausalState | None, points: Points) -> CausalState:
        """The state after more points, which see those before and themselves."""

    @abstractmethod
    def _predict(
        self, state: CausalState, xt: Tensor, visible: Bool[Tensor, "batch #target points"]
    ) -> Distribution:
        """The prediction at targets, of which each sees the points that `visible` allows."""

    def _next_points(self, points: Points) -> Distribution:
        extension = CausalExtension(None, points)
        state = self._extend(None, points)
        itself = torch.eye(points.x.shape[1], dtype=torch.bool, device=points.x.device)
        return self._predict(state, points.x, extension.visible & ~itself)

    def _condition(self, chunks: Iterator[Points]) -> State:
        if not self.causal:
            return super()._condition(chunks)
        state = None
        try:
            for points in chunks:
                state = self._extend(state, points)
        except ChunkError as error:
            error.state = state
            raise
        assert state is not None  # there is one chunk at least
        return state

    def _chunk_size(self) -> int | None:
        return _POINTS_AT_A_TIME if self.causal and not torch.is_grad_enabled() else None

    def _update(self, state: Any, points: Points) -> State:
        if not self.causal:
            return super()._update(state, points)
        return self._extend(state, points)

    def _query(self, state: CausalState, xt: Tensor) -> Distribution:
        """The prediction of a causal model."""
        return self._predict(state, xt, state.mask[:, None])
