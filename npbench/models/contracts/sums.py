"""The base of the models whose state is sums over the context, from which equations follow."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributions import Distribution

from npbench.blocks.sums import Sums
from npbench.distributed import all_sum
from npbench.errors import InputError
from npbench.likelihoods import NormalMixture, independent_normal
from npbench.models.contracts.merging import ForgettingProcess
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import Marginals, merge_all
from npbench.models.contracts.saved_state import SavedState

AnyState = TypeVar("AnyState", bound="SumState")

# Relative to what was there before, what subtraction may leave below 0 by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class SumState(SavedState):
    """All that the model keeps of its context, at a size that does not depend on it.

    `moments` are the only tensors that ever see the points: what files hold, and what travels
    between processes. `posterior`, the solved equations, follows from them; it is None right after
    `merge`, which knows no model, until the model's `merge` or `query` works it out.
    """

    moments: Sums
    posterior: Any

    def merge(self: AnyState, other: AnyState) -> AnyState:
        """The state of the union of two contexts: a sum, exact in any order and tree of merges.

        Raises:
            InputError: if the two are states of different numbers of tasks, or of other models.
        """
        mine, theirs = (
            [list(tensor.shape) for tensor in state.moments.tensors()] for state in (self, other)
        )
        if mine != theirs:
            raise InputError(
                f"states with sums of shapes {mine} and {theirs}, whose first dimension counts the "
                f"tasks, do not merge"
            )
        moments, ledger = self.moments.merge(other.moments), self._merged_ledger(other)
        return type(self)(moments, posterior=None, ledger=ledger)

    def _tensors_to_save(self) -> dict[str, Tensor]:
        return {f"moments.{name}": tensor for name, tensor in self.moments.named()}


class SumProcess(ForgettingProcess):
    """What the models of sums share: they add, merge, subtract, and work out what follows, once a
    state.

    `forget` is a subtraction in float64: exact but for rounding, however few points are left.

    Without gradients so many points are absorbed, or targets predicted, at a time:
    `points_at_a_time` and `targets_at_a_time`.
    """

    points_at_a_time: ClassVar[int] = 4096
    targets_at_a_time: ClassVar[int] = 4096

    @abstractmethod
    def _absorb(self, points: Points) -> Any:
        """The sums over these points."""

    @abstractmethod
    def _state(self, moments: Any) -> Any:
        """The state of these sums, solved."""

    def all_merge(self, state: SumState, group: ProcessGroup | None = None) -> SumState:
        """The collective form of `merge`: one sum over ranks; see `npbench.distributed.all_sum`.

        Args:
            state: of this rank's shard of the context, which may be empty.
            group: the ranks that share the context; by default all.

        Raises:
            InputError: if there is no process group, or this process is not in it.
        """
        return self._state(all_sum(state.moments, group, self.parameters()))

    def _forget(self, state: SumState, points: Points) -> SumState:
        left = state.moments.remove(self._absorb(points))
        floor = -_ROUNDING * (1 + state.moments.squares)
        wrong = (left.count < 0) | (left.squares < floor).any(dim=-1)
        if wrong.any():
            task = int(wrong.nonzero()[0])
            raise InputError(
                f"forgetting these points would leave task {task} with {int(left.count[task])} "
                f"points and a sum of squares of {float(left.squares[task].min()):.3g}: the state "
                f"has never absorbed them"
            )
        try:
            return self._state(left)
        except torch.linalg.LinAlgError as error:
            raise InputError(
                "forgetting these points would leave products that no points have: the state has "
                "never absorbed them"
            ) from error

    def _condition(self, chunks: Iterator[Points]) -> Any:
        return merge_all(map(self._absorb, chunks), finish=self._state)

    def _update(self, state: SumState, points: Points) -> SumState:
        return self._state(state.moments.merge(self._absorb(points)))

    def _finished(self, state: SumState) -> SumState:
        return self._solved(state)

    def _solved(self, state: SumState) -> SumState:
        return self._state(state.moments) if state.posterior is None else state

    def _chunk_size(self) -> int | None:
        return None if torch.is_grad_enabled() else self.points_at_a_time


class MixtureSumProcess(SumProcess):
    """A model of sums that predicts each target by a mixture of Gaussians.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        likelihood: what is predicted and trained: the "mixture", or the "gaussian" with its mean
            and standard deviation.
    """

    def __init__(
        self, dim_x: int, dim_y: int, likelihood: Literal["mixture", "gaussian"] = "mixture"
    ) -> None:
        super().__init__(dim_x, dim_y)
        if likelihood not in ("mixture", "gaussian"):
            raise InputError(f'likelihood={likelihood!r} must be "mixture" or "gaussian"')
        self.likelihood = likelihood

    @abstractmethod
    def _predict(self, state: Any, xt: Tensor) -> NormalMixture:
        """At each target by itself; the state is solved."""

    def _query(self, state: SumState, xt: Tensor) -> Distribution:
        mixture = self._mixture(state, xt)
        if self.likelihood == "gaussian":
            return independent_normal(*mixture.moments)
        return mixture.distribution

    def _marginals(self, state: SumState, targets: Points) -> Marginals:
        return Marginals(*self._mixture(state, targets.x).moments)

    def _marginal_mixture(self, state: SumState, targets: Points) -> NormalMixture:
        mixture = self._mixture(state, targets.x)
        if self.likelihood == "gaussian":
            return NormalMixture.of_moments(*mixture.moments)
        return mixture

    def _mixture(self, state: SumState, xt: Tensor) -> NormalMixture:
        """At each target by itself, a chunk of targets at a time."""
        if state.posterior is None:
            state = self._state(state.moments)
        size = self.targets_at_a_time
        if torch.is_grad_enabled() or xt.shape[1] <= size:
            return self._predict(state, xt)
        chunks = [self._predict(state, x).tensors() for x in xt.split(size, dim=1)]
        return NormalMixture(*(torch.cat(z, dim=1) for z in zip(*chunks)))
