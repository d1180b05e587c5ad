"""The bases of the models whose states merge, and of those whose states also forget."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from npbench.errors import InputError
from npbench.models.contracts.inputs import check_batch
from npbench.models.contracts.ledger import Ledger, Recorder
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import NeuralProcess, Stream, merge_all
from npbench.models.contracts.saved_state import SavedState


class MergingProcess(NeuralProcess):
    """A model whose states merge, are of one size, and fit into files.

    So a table of any length becomes a state, a piece at a time (`npbench.conditioning`,
    `npbench condition`). A model names its `state_class`; one whose states need work after a merge,
    before they can be queried, does it in `_finished`.
    """

    state_class: ClassVar[type[SavedState]]

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"] | np.ndarray | Stream,
        yc: Float[Tensor, "batch context dim_y"] | np.ndarray | None = None,
        mask: Bool[Tensor, "batch context"] | np.ndarray | None = None,
        chunk_size: int | None = None,
        ledger: bool = False,
    ) -> Any:
        """The state of a context set; an empty one gives the prior.

        Args:
            xc, yc, mask, chunk_size: as of `NeuralProcess.condition`.
            ledger: note which points the state has absorbed, in 16 bytes each, so that `forget`
                takes those alone. For one task.

        Raises:
            InputError: as `NeuralProcess.condition`; and if there are several tasks for a ledger.
        """
        chunks = self._chunks(xc, yc, mask, chunk_size)
        if not ledger:
            return self._absorbed(self._condition, chunks)
        recorder = Recorder()
        state: Any = self._absorbed(self._condition, recorder.passing(chunks))
        return replace(state, ledger=recorder.ledger)

    def update(
        self,
        state: Any,
        x: Float[Tensor, "batch points dim_x"] | np.ndarray,
        y: Float[Tensor, "batch points dim_y"] | np.ndarray,
        mask: Bool[Tensor, "batch points"] | np.ndarray | None = None,
    ) -> Any:
        """The state after more points, which a ledger takes down if the state has one.

        Raises:
            InputError: as `condition`.
        """
        after: Any = super().update(state, x, y, mask)
        if state.ledger is None:
            return after
        more = Ledger.of(self._inputs.points("x", x, "y", y, mask))
        return replace(after, ledger=state.ledger.merge(more))

    def merge(self, *states: Any) -> Any:
        """The state of the union of one context or more, ready to be queried.

        It has a ledger if all of them have.

        Raises:
            InputError: if there is no state, or if they are of different tasks or models.
        """
        if not states:
            raise InputError("merge takes one state or more; condition on no points for a prior")
        whole = merge_all(states)
        return replace(self._finished(whole), ledger=whole.ledger)

    def _finished(self, state: Any) -> Any:
        """The state with all that a query needs."""
        return state


class ForgettingProcess(MergingProcess):
    """A model whose states also give points back: `forget` is the inverse of `update`."""

    def forget(
        self,
        state: Any,
        x: Float[Tensor, "batch points dim_x"] | np.ndarray,
        y: Float[Tensor, "batch points dim_y"] | np.ndarray,
        mask: Bool[Tensor, "batch points"] | np.ndarray | None = None,
    ) -> Any:
        """The state without these points, which it has absorbed before: the inverse of `update`.

        It serves windows that slide, and data that must be deleted. What it guarantees:

        - Of points that the state has absorbed, with the same values in the model's type, nothing
          is left but rounding: the result is that of conditioning on the others. Where rounding
          would be more than the class documents, there is an error instead of a state.
        - A state of constant size does not know which points it has absorbed. Points that it never
          absorbed, or has forgotten already, are subtracted all the same: there is an error where
          what is left could be of no context, and else a state that is wrong without a word.
        - A state with a ledger (`condition(..., ledger=True)`) knows: it forgets exactly the points
          that it has absorbed, each as often as it has, and refuses all others.

        Raises:
            InputError: as `update`; and where the result would be ill-conditioned, or could be of
                no context.
            NotAbsorbed: where the state's ledger does not have a point.
        """
        points = self._inputs.points("x", x, "y", y, mask)
        check_batch("x", points.x, state.batch_size)
        ledger = None if state.ledger is None else state.ledger.without(points)
        return replace(self._forget(state, points), ledger=ledger)

    @abstractmethod
    def _forget(self, state: Any, points: Points) -> Any:
        """The state without these points; an InputError if it cannot be."""
