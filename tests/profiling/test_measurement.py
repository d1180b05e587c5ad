import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from npbench.profiling import LiveTensors, Measurement, measure

KIB = 1024


def block(kib: int = 1) -> Tensor:
    return torch.zeros(kib * KIB // 4)


def test_the_peak_is_that_of_the_tensors_which_live_at_one_time() -> None:
    with LiveTensors() as live:
        first = block(4)
        second = block(2)
        del first
        third = block(1)
    assert live.peak_bytes == 6 * KIB
    assert live.bytes == 3 * KIB
    del second, third
    assert live.bytes == 0


def test_tensors_from_before_and_views_do_not_count() -> None:
    before = block(8)
    with LiveTensors() as live:
        before.reshape(2, -1)[0].add_(1.0)
        mine = block(1)
        mine.view(4, -1).mT  # noqa: B018
    assert live.peak_bytes == KIB


def test_memory_that_is_used_again_counts_again() -> None:
    with LiveTensors() as live:
        for _ in range(5):
            held = [block(1), block(2)]
            del held
    assert live.peak_bytes == 3 * KIB
    assert live.bytes == 0


def test_what_autograd_keeps_counts_until_it_is_let_go() -> None:
    layers = nn.Sequential(*(nn.Tanh() for _ in range(4)))
    x = block(4).requires_grad_()
    with LiveTensors() as live:
        y = layers(x)
        assert live.bytes == 4 * 4 * KIB
        y.sum().backward()
    assert live.peak_bytes >= 5 * 4 * KIB
    x.grad = None
    del y
    gc.collect()
    assert live.bytes == 0


@pytest.mark.parametrize("layers", [2, 8])
def test_the_peak_of_a_training_step_equals_the_allocator_s(layers: int) -> None:
    """The profiler's trace of every allocation, against the operators' outputs."""
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(layers)))
    x = torch.randn(64, 32)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(x).square().sum().backward()

    step()
    model.zero_grad(set_to_none=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    model.zero_grad(set_to_none=True)
    with LiveTensors() as live:
        step()
    assert live.peak_bytes == pytest.approx(peak, rel=0.02)


def test_measure_calls_once_more_than_it_times() -> None:
    calls = []
    measured = measure(lambda: calls.append(block(2)), repeats=3)
    assert len(calls) == 4
    assert measured.peak_bytes == 2 * KIB
    assert measured.seconds is not None
    assert measured.seconds > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_a_result(error: Exception) -> None:
    def function() -> None:
        raise error

    measured = measure(function)
    assert measured == Measurement(None, None)
    assert measured.out_of_memory


@pytest.mark.parametrize("function", [lambda: torch.zeros(2) @ torch.zeros(3), lambda: [][0]])
def test_other_errors_are_errors(function: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        measure(function)


def test_too_much_for_the_machine_is_out_of_memory() -> None:
    assert measure(lambda: torch.empty(2**60, dtype=torch.uint8)).out_of_memory


def test_at_least_one_call_is_timed() -> None:
    with pytest.raises(ValueError, match="repeats=0 must be 1 or more"):
        measure(block, repeats=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_peak_is_the_allocator_s() -> None:
    measured = measure(lambda: torch.zeros(2**20, device="cuda").sum(), "cuda")
    assert measured.peak_bytes is not None
    assert 2**22 <= measured.peak_bytes <= 2**22 + 2**12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_it_leaves_the_highest_mark_of_others_where_it_was() -> None:
    torch.zeros(2**26, device="cuda")
    peak = torch.cuda.max_memory_allocated()
    measured = measure(lambda: torch.zeros(2**20, device="cuda"), "cuda")
    assert measured.peak_bytes < 2**23
    assert peak <= torch.cuda.max_memory_allocated() <= peak + 2**14
