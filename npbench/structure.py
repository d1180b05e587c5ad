"""Immutable records of tensors: the base of tasks and states."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound="TensorRecord")


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A frozen dataclass whose fields are tensors, other records, or None.

    Lightning and `DataLoader` move such an object through its own `to` and `pin_memory`.
    """

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the record, those of nested records included."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, TensorRecord):
                yield from value.tensors()
            elif isinstance(value, Tensor):
                yield value

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
