"""The base of the states that files can keep."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from npbench.errors import InputError
from npbench.models.contracts import state_files
from npbench.models.contracts.process import NeuralProcess, State

Saved = TypeVar("Saved", bound="SavedState")


class SavedState(State, ABC):
    """A state of constant size: it merges with others, and fits into a file.

    A subclass says by `_tensors_to_save` what a file holds of it, and by `_from_file` how the state
    follows from that.
    """

    @abstractmethod
    def merge(self: Saved, other: Saved) -> Saved:
        """The state of the union of two contexts, exact in any order and any tree of merges.

        Raises:
            InputError: if the two are states of different numbers of tasks, or of other models.
        """

    @abstractmethod
    def _tensors_to_save(self) -> Mapping[str, Tensor]:
        """What a file holds of the state, by name."""

    @classmethod
    @abstractmethod
    def _from_file(
        cls: type[Saved], tensors: Mapping[str, Tensor], notes: Mapping[str, str]
    ) -> Saved:
        """The state of these tensors and notes; a KeyError if they are another model's."""

    def save(
        self, path: str | os.PathLike, model: NeuralProcess | None = None, **notes: str
    ) -> None:
        """Write the state to a safetensors file: whole, or not at all.

        Args:
            path: the file, whose size the context does not change.
            model: whose state it is; its fingerprint is written with it, for `load` to check. It
                hashes the class, the weights and the arguments that differ from their defaults.
            notes: further facts to write into the file's metadata.

        Raises:
            InputError: if the state is not finite: no query of it would be.
        """
        if not self.is_finite():
            raise InputError(
                f"the state holds NaN or infinite numbers, and is not written to {path}: condition "
                f"without the points that overflow"
            )
        state_files.write(path, self._tensors_to_save(), model, {**notes, **self._notes()})

    @classmethod
    def load(
        cls: type[Saved], path: str | os.PathLike, model: NeuralProcess | None = None
    ) -> Saved:
        """The state that `save` of this release or of an earlier one has written.

        It is on the model's device if a model is given.

        Args:
            path: the file.
            model: to be used with the state, and refused if it is not the one that made it.

        Raises:
            InputError: if the file is no saved state, or one of another model or other weights.
        """
        tensors = state_files.read(path, model)
        try:
            state = cls._from_file(tensors, state_files.read_notes(path))
        except KeyError as error:
            raise InputError(
                f"{path} holds the state of another model: it has no {error}"
            ) from error
        return state if model is None else state.to(next(model.parameters()).device)

    def _notes(self) -> Mapping[str, str]:
        """What the state has beside tensors, as notes in the file."""
        return {}
