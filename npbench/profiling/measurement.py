"""Peak memory and time, on CUDA and on a CPU: of one call, and of the phases of a model."""

import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npbench.models.base import NeuralProcess, evaluating, in_mode
from npbench.task import Task

# Bytes that CUDA's allocator takes from its cache rather than from the device.
_PIECE = 2**24
PHASES = ("condition", "query", "update", "train")


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
        ValueError: if `repeats` is not 1 or more.

    Example:
        >>> measure(lambda: torch.zeros(1000, 1000).sum()).peak_bytes
        4000004
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be 1 or more")
    device = torch.device(device)
    try:
        if device.type == "cuda":
            return _measure_cuda(function, device, repeats)
        with LiveTensors() as live:
            function()
        return Measurement(
            live.peak_bytes, statistics.median(_seconds(function) for _ in range(repeats))
        )
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
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
    """Bring the allocator's highest mark, which others read too, back to where it was: by holding
    as much for a moment, in pieces that fit into what it has cached."""
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


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )


def profile(
    model: NeuralProcess,
    context_sizes: Sequence[int],
    num_targets: int = 1000,
    phases: Sequence[str] = PHASES,
    device: torch.device | str = "cpu",
    time_limit: float = float("inf"),
) -> Iterator[dict[str, Any]]:
    """Peak memory and time of a model's phases for one task, as its context grows.

    - condition: from the context to the state;
    - query: the targets' means and standard deviations from the state;
    - update: the state after one more point;
    - train: the loss and its gradients, on context and targets.

    The model, its gradients and torch's random state are left as they were.

    Args:
        model: on `device`.
        context_sizes: numbers of context points, ascending.
        num_targets: number of targets, in query and train.
        phases: which to measure.
        device: where the model is.
        time_limit: seconds a call may take: a phase is left out from the size on for which its time
            at the size before, growing with the square, foretells more.

    Yields:
        One row a size and phase: `num_context`, `phase`, `peak_bytes` and `seconds`, as of
        `Measurement`; a phase that was left out has none.

    Raises:
        ValueError: on an unknown phase.
    """
    if unknown := set(phases) - set(PHASES):
        raise ValueError(f"unknown phase(s) {sorted(unknown)}; known: {', '.join(PHASES)}")
    device = torch.device(device)
    before: dict[str, tuple[int, float]] = {}
    for num_context in context_sizes:
        for phase in phases:
            size, seconds = before.get(phase, (num_context, 0.0))
            if seconds * (num_context / size) ** 2 > time_limit:
                continue
            measured = _measure_phase(model, phase, num_context, num_targets, device)
            before[phase] = num_context, measured.seconds or float("inf")
            yield {"num_context": num_context, "phase": phase} | vars(measured)


def draw(profiles: dict[str, pd.DataFrame]) -> Figure:
    """Peak memory (above) and time (below) against the context's size: a column a phase, a line a
    model.

    Args:
        profiles: the rows of `profile`, by the model's name.
    """
    phases = [p for p in PHASES if any((rows["phase"] == p).any() for rows in profiles.values())]
    figure = Figure(figsize=(1 + 2.4 * len(phases), 4.8), layout="constrained", dpi=110)
    axes = figure.subplots(2, len(phases), squeeze=False, sharex=True, sharey="row")
    for column, phase in zip(axes.T, phases, strict=True):
        for name, rows in profiles.items():
            measured = rows[(rows["phase"] == phase) & rows["seconds"].notna()]
            mebibytes = measured["peak_bytes"].astype(float) / 2**20
            column[0].loglog(measured["num_context"], mebibytes, "o-", ms=3, label=name)
            column[1].loglog(measured["num_context"], measured["seconds"].astype(float), "o-", ms=3)
        column[0].set_title(phase, fontsize=9)
        column[1].set_xlabel("context points")
        for axis in column:
            axis.grid(alpha=0.2)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("peak memory (MiB)")
    axes[1, 0].set_ylabel("seconds")
    axes[0, -1].legend(fontsize=7, frameon=False)
    return figure


def _measure_phase(
    model: NeuralProcess, phase: str, num_context: int, num_targets: int, device: torch.device
) -> Measurement:
    generator = torch.Generator(device).manual_seed(0)

    def points(number: int) -> tuple[Tensor, Tensor]:
        dims = model.dim_x, model.dim_y
        return tuple(torch.randn(1, number, d, device=device, generator=generator) for d in dims)

    context, targets, new = points(num_context), points(num_targets), points(1)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if phase == "train":
            parameters = [p for p in model.parameters() if p.requires_grad]
            with in_mode(model, training=True), torch.enable_grad():
                task = Task(*context, *targets)
                return measure(
                    lambda: torch.autograd.grad(model.loss(task), parameters), device, repeats=1
                )
        with evaluating(model):
            if phase == "condition":
                return measure(lambda: model.condition(*context), device, repeats=1)
            try:
                state = model.condition(*context)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                return Measurement(None, None)
            if phase == "query":
                return measure(lambda: model.marginals(state, targets[0]), device, repeats=1)
            return measure(lambda: model.update(state, *new), device)
