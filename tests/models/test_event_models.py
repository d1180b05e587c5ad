"""What CMHP and THP have in common, and what sets CMHP apart."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_mixed_precision_is_near, few_examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npbench import EventSequences
from npbench.blocks import CausalConvolution, HistoryBlock, LayerConfig, PointGate
from npbench.likelihoods import NextEvent
from npbench.models import CMHP, THP, EventModel
from npbench.profiling import LiveTensors

NUM_MARKS = 3
SIZES = {
    "dim_model": 16,
    "num_layers": 2,
    "num_heads": 2,
    "dim_feedforward": 16,
    "num_components": 4,
}


def filtered_cmhp() -> CMHP:
    """With a filter of every kind that events can have, far from where they start."""
    model = CMHP(
        NUM_MARKS, num_latents=3, num_block_latents=4, scan_chunk_size=4,
        filter=PointGate(open=0.5), convolution=CausalConvolution(num_taps=3), **SIZES,
    )  # fmt: skip
    for parameter in (model.convolve.kernel, *(block.filter.weight for block in model.blocks)):
        torch.nn.init.normal_(parameter)
    return model


MODELS = {
    "CMHP": lambda: CMHP(NUM_MARKS, num_latents=3, num_block_latents=4, scan_chunk_size=4, **SIZES),
    "CMHP-paper": lambda: CMHP(
        NUM_MARKS, num_latents=3, num_block_latents=4, scan_chunk_size=4, recency=False, **SIZES
    ),
    "CMHP-filtered": filtered_cmhp,
    "THP": lambda: THP(NUM_MARKS, **SIZES),
}  # fmt: skip
every_model = pytest.mark.parametrize("name", MODELS)
OUTPUTS = "log_weights", "log_mean", "log_std", "mark_logits"


def small(name: str, dtype: torch.dtype = torch.float64) -> EventModel:
    """With weights large enough for events to matter, and units of its own."""
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    model.set_time_scale(mean=0.5, log_mean=-1.0, log_std=1.5)
    return model


def histories(batch: int, events: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(events)
    times = torch.rand(batch, events, generator=generator, dtype=torch.float64).cumsum(-1)
    return times.to(dtype), torch.randint(NUM_MARKS, (batch, events), generator=generator)


def lengths(*sizes: int) -> Tensor:
    return torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]


def assert_same(one: NextEvent, other: NextEvent) -> None:
    for output in OUTPUTS:
        assert_close(getattr(one, output), getattr(other, output))


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_prefixes_at_once_equal_one_event_at_a_time_and_each_by_itself(
    name: str, dtype: torch.dtype
) -> None:
    model, (times, marks) = small(name, dtype), histories(2, 11, dtype)
    at_once = model(EventSequences(times, marks))
    state = model.condition(times[:, :0], marks[:, :0])
    for i in range(11):
        state = model.update(state, times[:, i], marks[:, i])
        assert_same(model.query(state), at_once[:, i])
        naive = model.condition(times[:, : i + 1], marks[:, : i + 1])
        assert_same(model.query(naive), at_once[:, i])


@every_model
def test_every_event_matters_to_all_that_follow_and_to_none_before(name: str) -> None:
    model, (times, marks) = small(name), histories(1, 8)
    before = model(EventSequences(times, marks)).mark_logits
    changed = marks.clone()
    changed[0, 3] = (changed[0, 3] + 1) % NUM_MARKS
    after = model(EventSequences(times, changed)).mark_logits
    differs = (before - after).abs().amax(-1)[0] > 1e-9
    assert differs.tolist() == [i >= 3 for i in range(8)]


@every_model
@few_examples
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(lambda s: max(s) > 0))
def test_padding_is_as_if_it_were_not_there(name: str, sizes: list[int]) -> None:
    model, mask = small(name), lengths(*sizes)
    times, marks = histories(len(sizes), max(sizes))
    padded_times = times.masked_fill(~mask, torch.nan)
    padded_marks = marks.masked_fill(~mask, 99)
    at_once = model(EventSequences(padded_times, padded_marks, mask))
    state = model.condition(padded_times, padded_marks, mask)
    together = model.query(state)
    later = model.query(model.update(state, 100.0, 1))
    for row, size in enumerate(sizes):
        alone = model.condition(times[row, :size], marks[row, :size])
        assert_same(together[row : row + 1], model.query(alone))
        assert_same(later[row : row + 1], model.query(model.update(alone, 100.0, 1)))
        if size:
            assert_same(at_once[row : row + 1, size - 1], model.query(alone))


@every_model
def test_whatever_stands_at_padding_changes_no_gradient(name: str) -> None:
    model, mask = small(name), lengths(5, 3)
    times, marks = histories(2, 5)
    gradients = []
    for padding in (torch.nan, 7.0):
        padded = EventSequences(times.masked_fill(~mask, padding), marks, mask)
        gradients.append(torch.autograd.grad(model.loss(padded), list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@every_model
def test_only_differences_of_times_matter(name: str) -> None:
    model, (times, marks) = small(name), histories(2, 9)
    since_1970 = model.query(model.condition(times + 2.0**30, marks))
    for output in OUTPUTS:
        expected = getattr(model.query(model.condition(times, marks)), output)
        torch.testing.assert_close(getattr(since_1970, output), expected, rtol=1e-5, atol=1e-5)


@every_model
def test_likelihoods_are_per_unit_of_the_data(name: str) -> None:
    model, (times, marks) = small(name), histories(2, 9)
    seconds = model.log_likelihood(EventSequences(times, marks))
    model.set_time_scale(mean=0.5 / 60, log_mean=-1.0 - math.log(60), log_std=1.5)
    minutes = model.log_likelihood(EventSequences(times / 60, marks))
    torch.testing.assert_close(minutes, seconds + math.log(60), rtol=0, atol=1e-5)


@every_model
def test_log_likelihood_is_of_each_event_given_those_before(name: str) -> None:
    model, (times, marks) = small(name), histories(2, 6)
    mask = lengths(6, 4)
    found = model.log_likelihood(EventSequences(times, marks, mask))
    assert found.shape == (2, 5)
    assert (found[1, 3:] == 0).all()
    for row, size in ((0, 6), (1, 4)):
        for i in range(1, size):
            dist = model.query(model.condition(times[row, :i], marks[row, :i]))
            tau, mark = times[row, i : i + 1] - times[row, i - 1], marks[row, i : i + 1]
            assert_close(found[row, i - 1 : i], dist.log_prob(tau, mark))


@every_model
def test_loss_is_the_mean_over_predicted_events_with_the_survival_until_the_end(name: str) -> None:
    model, (times, marks) = small(name), histories(3, 6)
    mask = lengths(6, 4, 0)
    last = torch.tensor([float(times[0, 5]), float(times[1, 3]), 0.0], dtype=torch.float64)
    ended = EventSequences(times, marks, mask, end=last + torch.tensor([0.7, 0.0, 3.0]))
    survival = model.query(model.condition(times[:1], marks[:1])).log_survival(torch.tensor([0.7]))
    evaluation = model.evaluate(ended)
    assert_close(evaluation.log_survival, torch.cat([survival, torch.zeros(2)]))
    total = model.log_likelihood(ended).sum() + survival.sum()
    assert_close(model.loss(ended), -total / 8)
    unended = EventSequences(times, marks, mask)
    assert (model.evaluate(unended).log_survival == 0).all()
    assert_close(model.loss(unended), -model.log_likelihood(unended).sum() / 8)


@every_model
@pytest.mark.parametrize("events", [0, 1])
def test_sequences_without_a_predicted_event(name: str, events: int) -> None:
    model, (times, marks) = small(name), histories(2, events)
    sequences = EventSequences(times, marks)
    assert model.log_likelihood(sequences).shape == (2, 0)
    assert model.loss(sequences).item() == 0.0


@every_model
def test_all_parameters_learn_and_no_gradient_is_nan(name: str) -> None:
    model, (times, marks) = small(name), histories(3, 9)
    times = times.masked_fill(torch.arange(9) == 4, float(times[0, 3]))[:1].cummax(-1).values
    sequences = EventSequences(times, marks[:1])
    assert (sequences.intervals == 0).any()
    model.loss(sequences).backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).any()


@every_model
def test_bfloat16_autocast(name: str) -> None:
    model, (times, marks) = small(name, torch.float32), histories(2, 9)
    sequences = EventSequences(times, marks, lengths(9, 5))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(sequences)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model.loss(sequences), rtol=0.1, atol=0.1)


@every_model
def test_numpy_arrays_are_taken_as_they_are(name: str) -> None:
    model, (times, marks) = small(name), histories(1, 5)
    state = model.condition(times.numpy()[0], marks.numpy()[0])
    assert_same(model.query(state), model.query(model.condition(times, marks)))
    whole = model.condition(np.arange(5), marks.numpy()[0])
    assert whole.last.tolist() == [4.0]


@every_model
def test_states_repeat_detach_and_stay_as_they_were(name: str) -> None:
    model, (times, marks) = small(name), histories(2, 5)
    state = model.condition(times, marks)
    dist = model.query(state)
    model.update(state, 50.0, 0)
    assert_same(model.query(state), dist)
    twice = state.repeat(2).detach()
    assert_same(model.query(twice)[:2], dist)
    assert_same(model.query(twice)[2:], dist)
    assert not any(tensor.requires_grad for tensor in twice.tensors())


@every_model
def test_a_future_follows_its_history_and_the_seed(name: str) -> None:
    model, (times, marks) = small(name), histories(2, 5)
    state = model.condition(times, marks).repeat(50)
    futures = []
    for _ in range(2):
        torch.manual_seed(1)
        futures.append(model.sample(state, num_events=7))
    first, second = futures
    assert first.times.shape == (100, 7)
    assert (first.times == second.times).all()
    assert (first.times.diff(dim=-1) >= 0).all()
    assert (first.times[:, 0] >= state.last).all()
    assert set(first.marks.unique().tolist()) <= set(range(NUM_MARKS))
    assert first.mask.all()
    assert not first.times.requires_grad


@every_model
def test_a_future_ends_where_it_is_told_to(name: str) -> None:
    model, (times, marks) = small(name), histories(2, 5)
    state = model.condition(times, marks).repeat(20)
    until = float(state.last.max()) + 0.5
    torch.manual_seed(1)
    future = model.sample(state, num_events=30, until=until)
    assert future.mask.shape[1] < 30
    assert (future.times[future.mask] <= until).all()
    assert (future.times[~future.mask] > until).all()
    assert model.sample(state, 30, until=float(state.last.min())).times.shape == (40, 0)


@every_model
def test_the_first_event_of_all_comes_from_an_empty_history(name: str) -> None:
    model = small(name)
    nothing = model.condition(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.long))
    future = model.sample(nothing, num_events=4)
    assert future.times.shape == (3, 4)
    assert future.times.isfinite().all()


def test_next_events_are_sampled_as_they_are_predicted() -> None:
    model, (times, marks) = small("CMHP"), histories(1, 5)
    state = model.condition(times, marks)
    torch.manual_seed(0)
    future = model.sample(state.repeat(4000), num_events=1)
    dist = model.query(state)
    u = dist.cdf((future.times - state.last)[:, 0]).sort().values
    uniform = (torch.arange(4000) + 0.5) / 4000
    assert float((u - uniform).abs().max()) < 1.6 / math.sqrt(4000)
    shares = future.marks.flatten().bincount(minlength=NUM_MARKS) / 4000
    torch.testing.assert_close(shares.double(), dist.mark_probs[0], rtol=0, atol=0.03)


@pytest.mark.parametrize("name", ["CMHP", "CMHP-paper"])
def test_the_state_of_cmhp_is_of_one_size_and_takes_any_length(name: str) -> None:
    model, (times, marks) = small(name), histories(1, 700)
    with torch.no_grad():
        short = model.condition(times[:, :10], marks[:, :10])
        whole = model.condition(times, marks)
        state = model.condition(times[:, :300], marks[:, :300])
        for i in range(300, 700):
            state = model.update(state, times[:, i], marks[:, i])
    assert short.nbytes == whole.nbytes == state.nbytes
    assert_same(model.query(whole), model.query(state))


def test_the_memory_of_cmhp_does_not_depend_on_the_history() -> None:
    model = small("CMHP")

    def peak(number: int) -> int:
        times, marks = histories(1, number)
        with torch.no_grad(), LiveTensors() as live:
            model.condition(times, marks)
        return live.peak_bytes

    assert peak(20_000) == peak(40_000)


def test_the_state_of_thp_grows() -> None:
    model, (times, marks) = small("THP"), histories(1, 40)
    short = model.condition(times[:, :10], marks[:, :10])
    assert model.condition(times, marks).nbytes > 2 * short.nbytes


def test_a_latent_can_hold_what_the_intensity_of_a_hawkes_process_depends_on() -> None:
    block = HistoryBlock(LayerConfig(4, 1, 8), num_block_latents=1, recency=True).double()
    with torch.no_grad():
        block.log_rates.fill_(math.log(0.7))
        block.latents.zero_()
        block.attend_points.attention.to_q.weight.zero_()
    times, _ = histories(1, 6)
    points = torch.randn(1, 6, 4, dtype=torch.float64)
    state = block.final(points, times, torch.ones(1, 6, dtype=torch.bool))
    excitation = (-0.7 * (times[:, -1:] - times)).exp().sum()
    assert_close(state.lse.flatten(), excitation.log()[None])


def test_without_recency_it_is_the_papers_block() -> None:
    block = HistoryBlock(LayerConfig(4, 2, 8), num_block_latents=3, recency=False).double()
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {
        "latents", "attend_points", "mix_block", "attend_block", "mix_latents",
    }  # fmt: skip
    points, times = torch.randn(1, 6, 4, dtype=torch.float64), histories(1, 6)[0]
    final = block.final(points, times, torch.ones(1, 6, dtype=torch.bool))
    expected = block.absorb(points)
    assert_close(final.lse, expected.lse)
    assert_close(final.out, expected.out)


def fails(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".") as failure:
        call()
    return str(failure.value)


def test_errors_at_the_door() -> None:
    model, (times, marks) = small("CMHP"), histories(2, 5)
    state = model.condition(times, marks)
    wrong = times.clone()
    wrong[1, 3] = 0.0
    assert fails(lambda: model.condition(wrong, marks)).startswith(
        "event 3 of sequence 1 lies before the event ahead of it"
    )
    long = torch.zeros(1, 5000, dtype=torch.long)
    for place in (4095, 4096, 4097):
        clock = torch.arange(5000.0)[None]
        clock[0, place] = 7.0
        assert f"event {place} of sequence 0 lies before" in fails(
            lambda clock=clock: model.condition(clock, long)
        )
    wrong[1, 3] = torch.nan
    assert "event 3 of sequence 1 is not finite" in fails(lambda: model.condition(wrong, marks))
    assert "has a mark outside 0, …, 2" in fails(lambda: model.condition(times, marks + 2))
    assert "has a mark outside 0, …, 2" in fails(lambda: model.condition(times, marks - 2))
    assert "expected [batch, events]" in fails(lambda: model.condition(times, marks[:1].numpy()))
    assert "expected [batch, events]" in fails(
        lambda: model.condition(times[..., None].numpy(), marks[..., None].numpy())
    )
    assert "marks are torch.float64" in fails(lambda: model.condition(times, times.numpy()))
    holes = torch.tensor([[True, False, True, True, True]]).expand(2, -1)
    assert "event 2 of sequence 0 is real behind padding" in fails(
        lambda: model.condition(times, marks, holes)
    )
    assert "before its last" in fails(lambda: model.update(state, 0.0, 0))
    assert "expected [2], one for each sequence" in fails(
        lambda: model.update(state, torch.full((3,), 9.0), 0)
    )
    assert "has a mark outside" in fails(lambda: model.update(state, 9.0, 3))
    assert "is not finite" in fails(lambda: model.update(state, math.inf, 0))
    early = EventSequences(times, marks, end=times[:, -1] - torch.tensor([0.0, 0.1]))
    assert "sequence 1 ends at" in fails(lambda: model.loss(early))
    for end in (math.nan, math.inf):
        forever = EventSequences(times, marks, end=torch.tensor([99.0, end]))
        assert "an end is finite" in fails(lambda forever=forever: model.loss(forever))
    assert "num_events=0" in fails(lambda: model.sample(state, 0))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32])
def test_marks_may_be_of_any_whole_type(dtype: type) -> None:
    model, (times, marks) = small("CMHP"), histories(2, 5)
    found = model.query(model.condition(times.numpy(), marks.numpy().astype(dtype)))
    assert_same(found, model.query(model.condition(times, marks)))
    empty = np.zeros((2, 0), dtype)
    assert model.condition(empty, empty).mark.tolist() == [-1, -1]


def test_a_row_of_padding_alone_adds_nothing() -> None:
    """Whatever its times and its end."""
    model, (times, marks) = small("CMHP"), histories(2, 5)
    whole = EventSequences(times[:1], marks[:1], end=torch.tensor([99.0]))
    times[1], mask = 100.0, torch.tensor([[True], [False]]).expand(2, 5)
    padded = EventSequences(times, marks, mask, end=torch.tensor([99.0, 9.0]))
    assert_close(model.loss(padded), model.loss(whole))


def test_errors_of_the_arguments() -> None:
    assert "num_marks=0" in fails(lambda: THP(0))
    assert "min_interval=0" in fails(lambda: THP(2, min_interval=0.0))
    assert "dim_model=15 must be even" in fails(lambda: THP(2, dim_model=15))
    assert "scan_chunk_size=0" in fails(lambda: CMHP(2, scan_chunk_size=0))
    model = THP(2)
    assert "no statistics of intervals" in fails(lambda: model.set_time_scale(0.0, 0.0, 1.0))
    assert "no statistics of intervals" in fails(lambda: model.set_time_scale(1.0, math.nan, 1.0))


@every_model
def test_units_are_kept_in_checkpoints(name: str) -> None:
    model, (times, marks) = small(name), histories(2, 5)
    again = MODELS[name]().double().eval()
    again.load_state_dict(model.state_dict())
    assert_same(
        again.query(again.condition(times, marks)), model.query(model.condition(times, marks))
    )
    assert type(model)(**model.hparams).hparams == model.hparams


@every_model
def test_a_step_in_mixed_precision_is_near_that_of_float32(name: str) -> None:
    model = small(name, torch.float32).train()
    assert_mixed_precision_is_near(model, EventSequences(*histories(2, 9, torch.float32)))
