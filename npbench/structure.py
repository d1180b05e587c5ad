"""Immutable records of tensors: the base of tasks and states."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound="TensorRecord")


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A frozen dataclass of tensors and other records; fields of other kinds stay as they are.

    Lightning and `DataLoader` move such an object through its own `to` and `pin_memory`. It prints
    as one short line, without its values.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "__repr__" not in vars(cls):
            # `dataclass` would make one that prints all values.
            cls.__repr__ = TensorRecord.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        tensor = next(self.tensors(), None)
        where = "" if tensor is None else f", on {tensor.device}"
        return f"{type(self).__name__}({self.contents()}{where})"

    def contents(self) -> str:
        """What the record holds, in a few words."""
        return f"{counted(sum(1 for _ in self.tensors()), 'tensor')}, {in_bytes(self.nbytes)}"

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the record, those of nested records included."""
        return (tensor for _, tensor in self.named_tensors())

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The same with their names, of which those of nested records have dots."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, TensorRecord):
                for name, tensor in value.named_tensors():
                    yield f"{field.name}.{name}", tensor
            elif isinstance(value, Tensor):
                yield field.name, value

    def map(self: Record, function: Callable[[Tensor], Tensor]) -> Record:
        """A new record with `function` applied to every tensor."""

        def mapped(value: Any) -> Any:
            if isinstance(value, TensorRecord):
                return value.map(function)
            return function(value) if isinstance(value, Tensor) else value

        return replace(self, **{f.name: mapped(getattr(self, f.name)) for f in fields(self)})

    def to(self: Record, device: torch.device | str | int, non_blocking: bool = False) -> Record:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Record) -> Record:
        return self.map(Tensor.pin_memory)

    def detach(self: Record) -> Record:
        return self.map(Tensor.detach)

    @property
    def nbytes(self) -> int:
        """Bytes that the record's tensors hold."""
        return sum(tensor.nbytes for tensor in self.tensors())


def in_bytes(number: int) -> str:
    """A number of bytes, in a unit that suits it.

    Example:
        >>> in_bytes(33_792)
        '33.0 KiB'
    """
    kibibytes = number / 2**10
    return f"{kibibytes:,.1f} KiB" if kibibytes < 1024 else f"{kibibytes / 1024:,.1f} MiB"


def counted(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "task"), counted(1000, "target")
        ('1 task', '1,000 targets')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
