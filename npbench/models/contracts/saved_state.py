"""The base of the states that files can keep."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from npbench.errors import InputError
from npbench.models.contracts import state_files
from npbench.models.contracts.ledger import Ledger
from npbench.models.contracts.process import NeuralProcess, State, evaluating, unwatched

Saved = TypeVar("Saved", bound="SavedState")

# The name of the ledger among the tensors of a file.
_LEDGER = "ledger"


@dataclass(frozen=True, eq=False)
class SavedState(State, ABC):
    """A state of constant size: it merges with others, and fits into a file.

    A file holds the state's tensors by the names of its fields. A subclass for which that is not
    enough, or too much, says by `_tensors_to_save` what a file holds of it, and by `_from_file` how
    the state follows from that.
    """

    ledger: Ledger | None = field(default=None, kw_only=True)
    """Which points it has absorbed, if that was asked for; it grows with them."""

    @abstractmethod
    def merge(self: Saved, other: Saved) -> Saved:
        """The state of the union of two contexts, exact in any order and any tree of merges.

        Raises:
            InputError: if the two are states of different numbers of tasks, or of other models.
        """

    def half(self: Saved) -> Saved:
        """The same state in float16, of half the bytes, in memory and in files.

        Raises:
            InputError: if the state's numbers do not bear it.
        """
        raise InputError(
            f"a {type(self).__name__} is not kept in float16, as its sums and means over all "
            f"points would lose what single points add: keep it as it is, or take a model whose "
            f"state is attention, such as LocatedCMANP"
        )

    def repeat(self: Saved, times: int) -> Saved:
        """All tasks, `times` times over, without a ledger, which is of one task."""
        return replace(super().repeat(times), ledger=None)

    def _tensors_to_save(self) -> Mapping[str, Tensor]:
        """What a file holds of the state, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @classmethod
    def _from_file(
        cls: type[Saved], tensors: Mapping[str, Tensor], notes: Mapping[str, str]
    ) -> Saved:
        """The state of these tensors and notes; a KeyError if they are another model's."""
        return cls(*(tensors[each.name] for each in fields(cls) if not each.kw_only))

    def _merged_ledger(self, other: "SavedState") -> Ledger | None:
        """The ledger of the union; None unless both states have one."""
        if self.ledger is None or other.ledger is None:
            return None
        return self.ledger.merge(other.ledger)

    def save(
        self,
        path: str | os.PathLike,
        model: NeuralProcess | None = None,
        ledger: bool = False,
        **notes: str,
    ) -> None:
        """Write the state to a safetensors file: whole, or not at all.

        Args:
            path: the file, whose size the context does not change, unless a ledger is written.
            model: whose state it is; its units and its fingerprint are written with it, for `load`
                to check. The fingerprint hashes the class, the weights and the arguments that
                differ from their defaults.
            ledger: write the state's ledger too, in 16 bytes a point: `load` then gives a state
                that forgets with certainty.
            notes: further facts to write into the file's metadata.

        Raises:
            InputError: if the state is not finite: no query of it would be; and if a ledger is
                asked for and it has none.
        """
        state_files.write(path, self._contents(str(path), ledger), model, self._all_notes(notes))

    def to_bytes(
        self, model: NeuralProcess | None = None, ledger: bool = False, **notes: str
    ) -> bytes:
        """What a file of the state holds, for a column of a table or a message to another machine.

        Args, raises: as `save`.

        Example:
            >>> import torch
            >>> from npbench.models import SecondMomentNP
            >>> model = SecondMomentNP(dim_x=1, dim_y=1).eval()
            >>> data = model.condition(torch.randn(1, 9, 1), torch.randn(1, 9, 1)).to_bytes(model)
            >>> model.state_class.from_bytes(data, model).batch_size
            1
        """
        return state_files.pack(self._contents("bytes", ledger), model, self._all_notes(notes))

    def _contents(self, name: str, ledger: bool) -> dict[str, Tensor]:
        """The tensors that are saved, which errors call `name`."""
        if ledger and self.ledger is None:
            raise InputError(
                "the state has no ledger, which only condition(..., ledger=True) begins; condition "
                "on all of the data again"
            )
        if not self.is_finite():
            raise InputError(
                f"the state holds NaN or infinite numbers, and is not written to {name}: condition "
                f"without the points that overflow"
            )
        tensors = dict(self._tensors_to_save())
        if ledger and self.ledger is not None:
            tensors[_LEDGER] = self.ledger.to_tensor()
        return tensors

    def _all_notes(self, notes: Mapping[str, str]) -> Mapping[str, str]:
        return {**notes, **self._notes()}

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
            InputError: if the file is no saved state or damaged, or one of another model or other
                weights, or of other shapes than the model's states have.
        """
        return cls._of(
            str(path), state_files.read(path, model), state_files.read_notes(path), model
        )

    @classmethod
    def from_bytes(cls: type[Saved], data: bytes, model: NeuralProcess | None = None) -> Saved:
        """The state that `to_bytes` has made of it.

        Args, raises: as `load`.
        """
        return cls._of("the state", *state_files.unpack("the state", data, model), model)

    @classmethod
    def _of(
        cls: type[Saved],
        name: str,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, str],
        model: NeuralProcess | None,
    ) -> Saved:
        """The state of what is saved, which errors call `name`."""
        try:
            state = cls._from_file(tensors, notes)
            if (digests := tensors.get(_LEDGER)) is not None:
                state = replace(state, ledger=Ledger.from_tensor(digests))
        except KeyError as error:
            raise InputError(
                f"{name} holds the state of another model: it has no {error}"
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name} holds no state of {cls.__name__}: {error}") from error
        if model is not None:
            state._check_shapes(name, model)
        return state if model is None else state.to(next(model.parameters()).device)

    def _check_shapes(self, source: str, model: NeuralProcess) -> None:
        """Refuse a state whose tensors are not those of the model's state of no points."""
        like = next(model.parameters())
        with evaluating(model), unwatched(model):
            x, y = (like.new_zeros(1, 0, dim) for dim in (model.dim_x, model.dim_y))
            like_this: Any = model.condition(x, y)
        expected = like_this._tensors_to_save()
        tasks = None
        for name, tensor in self._tensors_to_save().items():
            shape, there = list(tensor.shape), list(expected[name].shape)
            if len(shape) == len(there):
                tasks = there[self.batch_dim] = tasks or shape[self.batch_dim]
            if shape != there or tensor.is_floating_point() != expected[name].is_floating_point():
                raise InputError(
                    f"{source} holds {name} of shape {shape} and type {tensor.dtype}, where the "
                    f"model's has {there} and {expected[name].dtype}"
                )

    def _notes(self) -> Mapping[str, str]:
        """What the state has beside tensors, as notes in the file."""
        return {}
