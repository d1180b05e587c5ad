"""The base of the models whose state is an `AttentionState`: of constant size, and a monoid."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from npbench.attention import AttentionState
from npbench.distributed import all_merge
from npbench.errors import InputError
from npbench.likelihoods import CategoricalHead, GaussianHead
from npbench.models.contracts.merging import ForgettingProcess
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import are_finite, merge_all
from npbench.models.contracts.saved_state import SavedState

AnyState = TypeVar("AnyState", bound="ConstantMemoryState")

# Least share of a latent's attention that must remain after `forget`: the relative rounding error
# grows as 1/share.
_LEAST_SHARE = 0.01


@dataclass(frozen=True, eq=False)
class ConstantMemoryState(SavedState):
    """All that a model keeps of its context, at a size that does not depend on it.

    `attention` stacks the states of the layers that see the points. `latents` follow from it; they
    are None right after `merge`, which knows no model, until `query` works them out.
    """

    batch_dim: ClassVar[int] = 1

    attention: AttentionState
    latents: Float[Tensor, "layers batch num_latents dim_model"] | None

    def is_finite(self) -> bool:
        """As of any state; the log-sum-exp of no points is −∞."""
        lse = self.attention.lse
        numbers = [lse.masked_fill(lse.isneginf(), 0.0), self.attention.out]
        return are_finite(numbers if self.latents is None else [*numbers, self.latents])

    @property
    def is_half(self) -> bool:
        """Whether it is kept in float16."""
        return self.attention.lse.dtype == torch.float16

    def half(self: AnyState) -> AnyState:
        """The same state in float16, of half the bytes, in memory and in files.

        The model computes with it in its own precision; what it updates, merges or forgets is in
        full precision again. Numbers are rounded to 11 binary digits, a relative error of 0.0005
        at most: answers move by about as much, and so does each update of a state that is halved
        again. What is exact of a state is so up to that.

        Raises:
            InputError: if a number is beyond what float16 holds, 65,504.

        Example:
            >>> from npbench.models import CMANP
            >>> model = CMANP(dim_x=1, dim_y=1, num_layers=1).eval()
            >>> with torch.no_grad():
            ...     state = model.condition(torch.randn(1, 99, 1), torch.randn(1, 99, 1))
            >>> state.half().nbytes / state.nbytes
            0.5
        """
        latents = None if self.latents is None else self.latents.half()
        rounded = replace(self, attention=self.attention.map(Tensor.half), latents=latents)
        if not rounded.is_finite():
            raise InputError(
                "the state holds numbers beyond 65,504, the largest of float16: keep it as it is"
            )
        return rounded

    def merge(self: AnyState, other: AnyState) -> AnyState:
        mine, theirs = (state.attention_in(torch.float32) for state in (self, other))
        attention, ledger = mine.merge(theirs), self._merged_ledger(other)
        return replace(self, attention=attention, latents=None, ledger=ledger)

    def attention_in(self, dtype: torch.dtype) -> AttentionState:
        """What it keeps of the points, in this precision at least."""
        return self.attention.map(lambda z: z.to(torch.promote_types(z.dtype, dtype)))

    def _tensors_to_save(self) -> dict[str, Tensor]:
        tensors = {"attention.lse": self.attention.lse, "attention.out": self.attention.out}
        return tensors if self.latents is None else {**tensors, "latents": self.latents}

    @classmethod
    def _from_file(
        cls: type[AnyState], tensors: Mapping[str, Tensor], notes: Mapping[str, str]
    ) -> AnyState:
        attention = AttentionState(tensors["attention.lse"], tensors["attention.out"])
        return cls(attention, tensors.get("latents"))


class ConstantMemoryProcess(ForgettingProcess):
    """A model whose state merges, and that absorbs any number of points in constant memory.

    `forget` is exact but for rounding, which grows with the share of the attention that the points
    carried, to at most a hundredfold: where less than 1 % of any latent's attention is left, there
    is an error instead of a state.

    A model implements `_states`, `_encode` and `_encode_targets`; it has a `head`, whose parts
    are those of single targets.
    """

    state_class: ClassVar[type[ConstantMemoryState]] = ConstantMemoryState
    """What `condition` returns, and `load`s from files."""

    points_at_a_time: ClassVar[int] = 512
    """How many points are absorbed at a time without gradients, where chunks cost nothing."""

    targets_at_a_time: int = 512
    """How many targets are decoded at a time without gradients."""

    head: GaussianHead | CategoricalHead
    context_chunk_size: int | None

    @abstractmethod
    def _states(self, chunks: Iterable[Points]) -> Iterator[AttentionState]:
        """The state of each chunk of points."""

    @abstractmethod
    def _fold(self, points: Points, size: int) -> AttentionState:
        """The state of all points, `size` at a time in backward too."""

    @abstractmethod
    def _encode(
        self, attention: AttentionState
    ) -> Float[Tensor, "layers batch num_latents dim_model"]:
        """The latents that follow from the attention."""

    @abstractmethod
    def _decode(
        self, xt: Float[Tensor, "batch target dim_x"], latents: Tensor
    ) -> Float[Tensor, "batch target dim_model"]:
        """The encoding of targets, which the head takes."""

    def all_merge(
        self, state: ConstantMemoryState, group: ProcessGroup | None = None
    ) -> ConstantMemoryState:
        """The collective form of `merge`: the state of all ranks' contexts, ready to be queried.

        It takes one context that is split over processes, in training too; see
        `npbench.distributed.all_merge`.

        Args:
            state: that of this rank's shard of the context, which may be empty.
            group: the ranks that share the context; by default all.

        Raises:
            InputError: if there is no process group, or this process is not in it.
        """
        return self._state(all_merge(self._attention(state), group, self.parameters()))

    def _forget(self, state: ConstantMemoryState, points: Points) -> ConstantMemoryState:
        attention, share = self._attention(state).remove(self._absorb(points))
        least = float(share.detach().min())
        if not least >= _LEAST_SHARE:
            raise InputError(
                f"forgetting these points would leave {least:.1e} of what a latent attends to; "
                f"below {_LEAST_SHARE:g} the result is ill-conditioned, and below 0 the state has "
                f"never absorbed the points: condition on those that remain instead"
            )
        return self._state(attention)

    def _finished(self, state: ConstantMemoryState) -> ConstantMemoryState:
        return self._state(self._attention(state))

    def _condition(self, chunks: Iterator[Points]) -> ConstantMemoryState:
        if torch.is_grad_enabled() and self.context_chunk_size is not None:
            return self._state(self._absorb(Points.concatenate(chunks)))
        return merge_all(self._states(chunks), finish=self._state)

    def _update(self, state: ConstantMemoryState, points: Points) -> ConstantMemoryState:
        return self._state(self._attention(state).merge(self._absorb(points)))

    def _query(self, state: ConstantMemoryState, xt: Tensor) -> Distribution:
        latents, size = self._latents(state), self._at_a_time(self.targets_at_a_time)
        if size is None or xt.shape[1] <= size:
            return self.head(self._decode(xt, latents))

        def parts(x: Tensor) -> tuple[Tensor, ...]:
            return self.head.parts(self._decode(x, latents))

        if torch.is_grad_enabled():
            chunks = [checkpoint(parts, x, use_reentrant=False) for x in xt.split(size, dim=1)]
        else:  # `checkpoint` would import torch's compiler, which takes a second
            chunks = [parts(x) for x in xt.split(size, dim=1)]
        return self.head.distribution(*(torch.cat(z, dim=1) for z in zip(*chunks)))

    def _encode_targets(
        self, state: ConstantMemoryState, xt: Tensor
    ) -> Float[Tensor, "batch target dim_model"]:
        return self._decode(xt, self._latents(state))

    def _latents(
        self, state: ConstantMemoryState
    ) -> Float[Tensor, "layers batch num_latents dim_model"]:
        attention = self._attention(state)
        if state.latents is None:
            return self._encode(attention)
        return state.latents.to(self._dtype) if state.is_half else state.latents

    def _chunk_size(self) -> int | None:
        # With gradients `_absorb` needs all points to take them a few at a time.
        return None if torch.is_grad_enabled() else self._at_a_time(self.points_at_a_time)

    def _at_a_time(self, without_gradients: int) -> int | None:
        """How many points or targets are taken at a time, as the table of `CMANP` says; None
        means all, and an exported program, which cannot count chunks, takes all."""
        if torch.compiler.is_exporting():
            return None
        if self.context_chunk_size is None and not torch.is_grad_enabled():
            return without_gradients
        return self.context_chunk_size

    def _absorb(self, points: Points) -> AttentionState:
        """The state of these points, a few at a time."""
        size = self._at_a_time(self.points_at_a_time)
        if size is None or points.x.shape[1] <= size:
            return next(iter(self._states([points])))
        if torch.is_grad_enabled():
            return self._fold(points, size)
        return merge_all(self._states(points.blocks(size)))

    def _attention(self, state: ConstantMemoryState) -> AttentionState:
        """The attention of a state that this model can go on from."""
        return state.attention_in(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """That of what it computes with."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def _state(self, attention: AttentionState) -> ConstantMemoryState:
        return self.state_class(attention, self._encode(attention))


def check_chunk_size(context_chunk_size: int | None) -> int | None:
    """The number of points to take at a time, if it is one."""
    if context_chunk_size is not None and context_chunk_size < 1:
        raise InputError(f"context_chunk_size={context_chunk_size} must be 1 or more")
    return context_chunk_size
