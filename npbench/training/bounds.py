"""A bound on what is built from a file, by what the file itself holds."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from npbench.errors import InputError

# All that makes a tensor of a size that is only said.
_FACTORIES = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.linspace,
    torch.logspace, torch.rand, torch.randn, torch.randint, torch.randperm, torch.empty_strided,
}  # fmt: skip
# On the meta device this imports the symbols of torch's compiler, which takes a second.
_INSTEAD_OF: dict[Callable[..., Any], Callable[..., Any]] = {torch.randn: torch.empty}
# A constructor makes more tensors than it keeps.
_ABOUT_DEVICES = {"device", "generator", "out", "pin_memory"}
_SPARE_BYTES, _SPARE_TENSORS, _SPARE_FACTOR = 2**26, 1000, 16

# A layer has a weight of its own and a dimension a number in one; places are few to begin with.
_DEPTHS, _WIDTHS, _PLACES, _MOST_PLACES = ("depth", "layers"), "dim_", "number", 2**20


def check_numbers(arguments: Any, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse a model whose arguments announce more layers or dimensions than a file can be of.

    It finds what a constructor would do before it makes its first tensor, such as a list of 10⁹
    widths.

    Args:
        arguments: hyper-parameters of a model, with others within them.
        weights: of the checkpoint.
        source: the checkpoint, for the message.

    Raises:
        InputError: if one of them is too large; names it.

    Example:
        >>> check_numbers({"num_layers": 6}, {f"layer{i}": torch.zeros(2) for i in range(6)}, "a")
    """
    numbers = sum(weight.numel() for weight in weights.values())
    for name, value in arguments.items() if isinstance(arguments, Mapping) else ():
        check_numbers(value, weights, source)
        most = math.inf
        if name.endswith(_DEPTHS):
            most = len(weights)
        elif name.startswith(_WIDTHS):
            most = numbers
        elif name == _PLACES:
            most = _MOST_PLACES
        if isinstance(value, int) and value > most:
            raise InputError(
                f"{source} announces {name}={value:,}, and holds {len(weights)} weights of "
                f"{numbers:,} numbers"
            )


class WithinWeights(TorchFunctionMode):
    """A context in which no model is built that is much larger than these weights.

    Every tensor that is to be made is first made on the meta device, where it takes no memory. What
    a constructor makes may take 16 times the bytes of the weights and 64 MiB, in 16 times as many
    tensors and 1000.

    Args:
        weights: of a checkpoint, whose hyper-parameters may announce another model.
        source: the checkpoint, for the message.

    Raises:
        InputError: within the context, before a tensor is made that is too large.

    Example:
        >>> try:
        ...     with WithinWeights({"weight": torch.zeros(64)}, "small.ckpt"):
        ...         torch.nn.Linear(100_000, 100_000)
        ... except InputError as error:
        ...     print(error)
        small.ckpt announces a model far larger than the 64 weights that it holds
    """

    def __init__(self, weights: Mapping[str, Tensor], source: str) -> None:
        super().__init__()
        held = sum(weight.numel() * weight.element_size() for weight in weights.values())
        self._number = sum(weight.numel() for weight in weights.values())
        self._bytes = _SPARE_BYTES + _SPARE_FACTOR * held
        self._tensors = _SPARE_TENSORS + _SPARE_FACTOR * len(weights)
        self._source = source

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        size = _size_of_result(func, args, kwargs)
        if func in _FACTORIES:
            self._tensors -= 1
            self._bytes -= size
            size = 0
        if self._bytes < size or self._tensors < 0:
            raise InputError(
                f"{self._source} announces a model far larger than the {self._number:,} weights "
                f"that it holds"
            )
        return func(*args, **kwargs)


def _size_of_result(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> int:
    """The bytes of the tensor that a function would return; 0 where that cannot be told."""
    without = {name: value for name, value in kwargs.items() if name not in _ABOUT_DEVICES}
    if func in _FACTORIES:
        without["device"] = "meta"
        func = _INSTEAD_OF.get(func, func)
    with suppress(Exception):  # many functions do not work without values
        result = func(
            *map(_without_values, args), **{k: _without_values(v) for k, v in without.items()}
        )
        if isinstance(result, Tensor) and result.is_meta:
            return result.numel() * result.element_size()
    return 0


def _without_values(argument: Any) -> Any:
    """The same with every tensor on the meta device."""
    if isinstance(argument, list | tuple):
        return type(argument)(map(_without_values, argument))
    return torch.empty_like(argument, device="meta") if isinstance(argument, Tensor) else argument
