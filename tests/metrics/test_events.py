"""Metrics of predicted events add up over batches, and padding never counts."""

import math

import numpy as np
import pytest
import torch
from helpers import few_examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npbench import EventSequences
from npbench.likelihoods import NextEvent
from npbench.metrics import EventMetrics, KolmogorovSmirnov, MedianAbsoluteError, PerEvent
from npbench.models import THP
from npbench.models.contracts.events import EventEvaluation


def test_a_sum_is_divided_by_all_events_of_all_batches() -> None:
    values = torch.randn(100, dtype=torch.float64)
    metric = PerEvent()
    for batch in values.split([1, 30, 69]):
        metric.update(batch, num_events=2 * len(batch))
    torch.testing.assert_close(metric.compute(), values.mean() / 2)


def test_a_sum_of_many_small_numbers_is_exact() -> None:
    """Where float32 would stand still from 2²⁴ on."""
    metric = PerEvent()
    metric.update(torch.tensor([2.0**24]), num_events=2**24)
    for _ in range(4):
        metric.update(torch.tensor([1.0]), num_events=1)
    assert metric.total == metric.num_events == 2**24 + 4


@few_examples
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_the_median_error_is_that_of_all_batches_together(sizes: list[int]) -> None:
    prediction, truth = torch.randn(2, sum(sizes))
    metric = MedianAbsoluteError()
    for batch in zip(prediction.split(sizes), truth.split(sizes)):
        metric.update(*batch)
    expected = np.median((prediction - truth).abs().numpy())
    assert metric.compute() == pytest.approx(expected, rel=1e-6)


def distance_from_uniform(u: Tensor) -> float:
    """The supremum itself, at and just before each value."""
    u, n = u.double().sort().values, len(u)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(steps[1:] - u, u - steps[:-1]).max())


@few_examples
@given(st.integers(1, 400), st.floats(0.3, 3.0), st.integers(0, 99))
def test_the_distance_from_uniform_is_right_to_the_width_of_a_bin(
    size: int, power: float, seed: int
) -> None:
    u = torch.rand(size, generator=torch.Generator().manual_seed(seed)) ** power
    metric = KolmogorovSmirnov(num_bins=500)
    for batch in u.split(37):
        metric.update(batch)
    exact = distance_from_uniform(u)
    assert exact - 1 / 500 <= metric.compute() <= exact + 1e-6


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_values_that_are_all_at_an_end_are_as_far_as_can_be(value: float) -> None:
    metric = KolmogorovSmirnov()
    metric.update(torch.full([5], value))
    assert metric.compute() == pytest.approx(1.0, abs=1.1e-4)


def test_uniform_values_are_close_to_uniform() -> None:
    metric = KolmogorovSmirnov()
    metric.update(torch.rand(40_000))
    assert metric.compute() < 1.63 / 200  # passed by one sample in 100


def test_a_number_of_bins_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_bins=0 must be 1 or more"):
        KolmogorovSmirnov(num_bins=0)


def sequences_of(lengths: list[int], end: bool = True, exact: bool = True) -> EventSequences:
    """Padding holds what no metric may take in."""
    shape = len(lengths), max(lengths)
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    times = torch.rand(shape, dtype=torch.float64).cumsum(-1)
    last = times.gather(1, torch.tensor(lengths)[:, None] - 1)[:, 0]
    return EventSequences(
        times.masked_fill(~mask, 1e6),
        torch.randint(3, shape).masked_fill(~mask, -1),
        mask,
        last + 0.5 if end else None,
        torch.randn(shape[0], shape[1] - 1).masked_fill(~mask[:, 1:], 0.0) if exact else None,
    )


def rows(sequences: EventSequences, select: slice) -> EventSequences:
    return sequences.map(lambda tensor: tensor[select])


@pytest.fixture(scope="module")
def model() -> THP:
    torch.manual_seed(0)
    model = THP(3, dim_model=8, dim_feedforward=8, num_layers=1, num_components=3).eval()
    model.set_time_scale(0.5, -1.0, 0.7)
    return model.double()


def measure(model: THP, batches: list[EventSequences]) -> dict[str, float]:
    metrics, measured = EventMetrics(), {}
    with torch.no_grad():
        for sequences in batches:
            measured |= metrics.update(sequences, model.evaluate(sequences))
    return {name: float(metric.compute()) for name, metric in measured.items()}


@torch.no_grad()
def by_hand(model: THP, sequences: EventSequences) -> dict[str, float]:
    """From every predicted event, one by one, of sequences without padding."""
    found: dict[str, list[float]] = {}
    survival = 0.0
    for row, length in enumerate(sequences.full_mask.sum(-1).tolist()):
        times, marks = sequences.times[row, :length], sequences.marks[row, :length]
        for i in range(length):
            dist = model.query(model.condition(times[: i + 1], marks[: i + 1]))
            if i == length - 1:
                rest = sequences.end[row] - times[i]
                survival -= float(dist.log_survival(rest[None]))
                continue
            tau, mark = (times[i + 1] - times[i])[None], marks[None, i + 1]
            log_time, log_mark = dist.log_prob_time(tau), dist.log_prob_mark(mark)
            for name, value in {
                "nll_time": -log_time, "nll_mark": -log_mark,
                "rmse": (dist.mean - tau).square(), "rmse_median": (dist.median - tau).square(),
                "error": (dist.median - tau).abs(), "u": dist.cdf(tau),
                "accuracy": (dist.mark_probs.argmax(-1) == mark).float(),
                "gap": sequences.exact[row, i] - log_time - log_mark,
            }.items():  # fmt: skip
                found.setdefault(name, []).append(float(value))
    results = {name: float(np.mean(values)) for name, values in found.items()}
    results["nll_survival"] = survival / len(found["u"])
    results["nll"] = sum(results[f"nll_{part}"] for part in ("time", "mark", "survival"))
    results |= {name: math.sqrt(results[name]) for name in ("rmse", "rmse_median")}
    results["median_absolute_error"] = float(np.median(found["error"]))
    results["ks"] = distance_from_uniform(torch.tensor(found["u"]))
    return {name: value for name, value in results.items() if name not in ("u", "error")}


@pytest.mark.parametrize("cuts", [[6], [1, 2, 3]])
def test_every_metric_is_that_of_the_events_one_by_one(model: THP, cuts: list[int]) -> None:
    torch.manual_seed(1)
    sequences = sequences_of([5, 2, 9, 1, 4, 7])
    stops = np.cumsum(cuts)
    batches = [rows(sequences, slice(stop - size, stop)) for stop, size in zip(stops, cuts)]
    measured, expected = measure(model, batches), by_hand(model, sequences)
    assert measured.keys() == expected.keys()
    ks, expected_ks = measured.pop("ks"), expected.pop("ks")
    assert measured == pytest.approx(expected, rel=1e-6)
    assert expected_ks - 1e-4 <= ks <= expected_ks + 1e-9


def test_what_is_not_known_is_not_measured(model: THP) -> None:
    sequences = sequences_of([4, 3], end=False, exact=False)
    measured = measure(model, [sequences])
    assert not measured.keys() & {"nll_survival", "gap"}
    assert measured["nll"] == pytest.approx(measured["nll_time"] + measured["nll_mark"])


def test_a_batch_with_nothing_to_predict_changes_nothing(model: THP) -> None:
    sequences, single = sequences_of([4, 3], end=False), sequences_of([1, 1], end=False)
    assert measure(model, [single, sequences]) == measure(model, [sequences])
    assert all(math.isnan(value) for value in measure(model, [single]).values())


def certain(sequences: EventSequences, log_mean: float, log_std: float) -> EventEvaluation:
    """Of a model that says the same of every event, in float32."""
    shape = sequences.predicted.shape
    one = torch.ones(*shape, 1)
    dist = NextEvent(0 * one, log_mean * one, log_std * one, torch.zeros(*shape, 3))
    return EventEvaluation(dist, one[..., 0], one[..., 0], torch.zeros(shape[0]))


@pytest.mark.parametrize(("log_std", "rmse"), [(10.0, math.exp(50.0)), (20.0, math.inf)])
def test_a_mean_beyond_all_numbers_is_an_infinite_error(log_std: float, rmse: float) -> None:
    """Where only its square is beyond float32, the error is there."""
    metrics, sequences = EventMetrics(), sequences_of([4, 3])
    measured = metrics.update(sequences, certain(sequences, 0.0, log_std))
    assert float(measured["rmse"].compute()) == pytest.approx(rmse, rel=1e-4)
    assert measured["rmse_median"].compute() < 1


def test_intervals_of_the_predicted_distribution_are_calibrated() -> None:
    times = torch.randn(1, 40_000).mul(0.5).exp().double().cumsum(-1)
    sequences = EventSequences(times, torch.zeros_like(times).long())
    for log_std, low, high in ((0.5, 0.0, 0.01), (2.0, 0.2, 1.0)):
        measured = EventMetrics().update(sequences, certain(sequences, 0.0, log_std))
        assert low <= measured["ks"].compute() <= high
