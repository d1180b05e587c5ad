import gc
from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from npbench import EventSequences
from npbench.models import CMHP, THP
from npbench.profiling import PHASES, LiveTensors, Measurement, measure, profile, profile_figure

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


def thp(**arguments: float) -> THP:
    return THP(3, dim_model=8, num_layers=1, dim_feedforward=8, num_components=2, **arguments)


class Recorded(THP):
    """Remembers what it was given, and in which mode."""

    calls: dict[str, tuple]

    def _note(self, phase: str, times: Tensor) -> None:
        self.calls[phase] = (times, self.training, torch.is_grad_enabled())

    def _condition(self, times: Tensor, marks: Tensor, mask: Tensor) -> object:
        self._note("condition", times)
        return super()._condition(times, marks, mask)

    def _history(self, state: object) -> Tensor:
        self._note("query", state.times)
        return super()._history(state)

    def _update(self, state: object, time: Tensor, mark: Tensor) -> object:
        self._note("update", torch.cat([state.times, time[:, None]], dim=-1))
        return super()._update(state, time, mark)

    def loss(self, sequences: EventSequences) -> Tensor:
        self._note("train", sequences.times)
        return super().loss(sequences)


def test_the_phases_of_an_event_model_are_those_of_a_history_of_so_many_events() -> None:
    model = Recorded(3, dim_model=8, num_layers=1)
    model.calls = {}
    model.set_time_scale(1000.0, 6.0, 1.0)
    rows = list(profile(model, [400]))
    assert [row["phase"] for row in rows] == list(PHASES)
    assert all(row["num_context"] == 400 and row["seconds"] > 0 for row in rows)
    times, modes = {}, {}
    for phase, (of, *mode) in model.calls.items():
        times[phase], modes[phase] = of, mode
    assert {phase: of.shape[1] for phase, of in times.items()} == {
        "condition": 400, "query": 400, "update": 401, "train": 400,
    }  # fmt: skip
    assert modes.pop("train") == [True, True]
    assert all(mode == [False, False] for mode in modes.values())
    # One sequence, in the model's units.
    tau = times["update"].diff(dim=-1)
    assert torch.equal(times["update"][:, :-1], times["train"])
    assert (tau >= 0).all()
    assert float(tau.mean()) == pytest.approx(1000.0, rel=0.1)


def test_what_absorbs_a_history_by_storing_it_grows_with_it() -> None:
    table = pd.DataFrame(profile(thp(), [100, 1000]))
    peaks = table.pivot(index="phase", columns="num_context", values="peak_bytes")
    # A time, a mark and a mask of each event; a score of each two.
    assert peaks.loc["update", 1000] - peaks.loc["update", 100] == 900 * (8 + 8 + 1)
    assert peaks.loc["query", 1000] > 50 * peaks.loc["query", 100]
    assert peaks.loc["train", 1000] > peaks.loc["query", 1000]


def test_what_keeps_a_history_at_constant_size_takes_constant_memory() -> None:
    model = CMHP(3, dim_model=8, num_layers=1, num_heads=2, dim_feedforward=8, num_components=2)
    table = pd.DataFrame(profile(model, [1, 100, 1000], phases=["query", "update"]))
    for _, peaks in table.groupby("phase")["peak_bytes"]:
        assert peaks.nunique() == 1


@pytest.mark.parametrize("training", [False, True])
def test_profiling_leaves_an_event_model_and_the_random_state_alone(training: bool) -> None:
    model = thp(dropout=0.3).train(training)
    model.loss(EventSequences(torch.arange(5.0)[None], torch.arange(5)[None] % 3)).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = torch.random.get_rng_state()
    assert len(list(profile(model, [1, 20]))) == 8
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training == model.layers.training == training
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_the_figure_has_a_line_for_each_model_and_a_column_for_each_phase() -> None:
    profiles = {name: pd.DataFrame(profile(thp(), [10, 20], phases=["query", "update"]))
                for name in ("one", "two")}  # fmt: skip
    memory = profile_figure(profiles).axes[:2]
    assert [axis.get_title() for axis in memory] == ["query", "update"]
    for axis in memory:
        assert [line.get_label() for line in axis.lines] == ["one", "two"]
        assert all(list(line.get_xdata()) == [10, 20] for line in axis.lines)
