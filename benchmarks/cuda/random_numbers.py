"""The same random numbers on every device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RANDOM = {
    torch.rand, torch.randn, torch.randn_like, torch.rand_like, torch.normal, torch.randint,
    torch.multinomial, torch.bernoulli, torch.randperm,
}  # fmt: skip
_RANDOM_IN_PLACE = {Tensor.normal_, Tensor.uniform_}


class SameRandomNumbers(TorchFunctionMode):
    """Random numbers are drawn on the CPU, so that one seed gives the same ones on any device."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_IN_PLACE:
            tensor, *rest = args
            return tensor.copy_(func(torch.empty_like(tensor, device="cpu"), *rest, **kwargs))
        if func not in _RANDOM:
            return func(*args, **kwargs)
        given = [a for a in args if isinstance(a, Tensor)]
        device = kwargs.get("device") or (given[0].device if given else "cpu")
        args = tuple(a.cpu() if isinstance(a, Tensor) else a for a in args)
        return func(*args, **kwargs | ({"device": "cpu"} if "device" in kwargs else {})).to(device)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """A context in which one seed gives the same random numbers on any device."""
    torch.manual_seed(1)
    with SameRandomNumbers():
        yield
