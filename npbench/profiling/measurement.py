"""Peak memory and time of one call, on CUDA and on a CPU."""

import gc
import statistics
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npbench.errors import InputError

# CUDA's allocator takes pieces of so many bytes from its cache rather than from the device.
_PIECE = 2**24


@dataclass(frozen=True)
class Measurement:
    """What one call takes: seconds, and the most bytes of tensors beyond those that were there
    before. Both are None if it ran out of memory."""

    peak_bytes: int | None
    seconds: float | None

    @property
    def out_of_memory(self) -> bool:
        return self.peak_bytes is None


def measure(
    function: Callable[[], Any], device: torch.device | str = "cpu", repeats: int = 3
) -> Measurement:
    """Peak memory and median time of `function()`, which is called `repeats` + 1 times.

    The first call warms up. On CUDA the peak is the allocator's; on a CPU it is that of the live
    tensors which torch's operators return (buffers inside an operator are not seen).

    Args:
        function: what to measure; its result is let go after every call.
        device: where it runs.
        repeats: timed calls.

    Raises:
        InputError: if `repeats` is not 1 or more.

    Example:
        >>> measure(lambda: torch.zeros(1000, 1000).sum()).peak_bytes
        4000004
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats} must be 1 or more")
    device = torch.device(device)
    gc.collect()  # otherwise it would come at any time, and take long
    try:
        if device.type == "cuda":
            return _measure_cuda(function, device, repeats)
        with LiveTensors() as live:
            function()
        return Measurement(
            live.peak_bytes, statistics.median(_seconds(function) for _ in range(repeats))
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Measurement(None, None)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the block and still live.

    `peak_bytes` is the most there were at a time. Tensors that were there before do not count, nor
    do views.

    Example:
        >>> with LiveTensors() as live:
        ...     for _ in range(10):
        ...         x = torch.zeros(1000)
        >>> live.peak_bytes
        8000
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._track(storage, counts=False)
        result = function(*args, **kwargs)
        for storage in _storages(result):
            self._track(storage, counts=True)
        return result

    def _track(self, storage: torch.UntypedStorage, counts: bool) -> None:
        key = storage.data_ptr()
        if key == 0 or key in self._known:
            return
        self._known[key] = storage.nbytes() if counts else 0
        self.bytes += self._known[key]
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes -= self._known.pop(key)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _measure_cuda(function: Callable[[], Any], device: torch.device, repeats: int) -> Measurement:
    with torch.cuda.device(device):
        function()
        torch.cuda.synchronize()
        before, earlier_peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        milliseconds = []
        try:
            for _ in range(repeats):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                function()
                end.record()
                torch.cuda.synchronize()
                milliseconds.append(start.elapsed_time(end))
            peak = torch.cuda.max_memory_allocated() - before
        finally:
            _raise_peak(earlier_peak)
    return Measurement(peak, statistics.median(milliseconds) / 1000)


def _raise_peak(peak: int) -> None:
    """Bring the allocator's highest mark, on which others rely too, back to where it was.

    It holds as much memory for a moment, in pieces that fit into what the allocator has cached.
    """
    if torch.cuda.max_memory_allocated() >= peak:
        return
    missing = peak - torch.cuda.memory_allocated()
    sizes = [_PIECE] * (missing // _PIECE) + [missing % _PIECE]
    with suppress(torch.OutOfMemoryError):
        _held = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )
