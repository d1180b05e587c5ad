"""The processes draw what their likelihoods say, and these are densities."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import assert_close, assert_same_record
from torch import Tensor

from datamodules import HawkesProcess, PointProcess, PoissonProcess, RenewalProcess
from npbench import EventSequences

# Nothing is symmetric: a transposed matrix would be seen.
HAWKES = HawkesProcess([0.3, 0.1, 0.2], [[0.3, 0.5, 0.0], [0.1, 0.2, 0.1], [0.0, 0.3, 0.4]], 1.5)
PROCESSES = {
    "hawkes": HAWKES,
    "gamma": RenewalProcess("gamma", 2.0, 1.2, [0.2, 0.8]),
    "lognormal": RenewalProcess("lognormal", 2.0, 1.2, [0.2, 0.8]),
    "poisson": PoissonProcess(1.5, 0.9, 4.0, [0.5, 0.2, 0.3]),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def sequence(
    times: list[float], marks: list[int] | None = None, **fields: Tensor
) -> EventSequences:
    marks = [0] * len(times) if marks is None else marks
    return EventSequences(torch.tensor([times]).double(), torch.tensor([marks]), **fields)


def followed_by(history: EventSequences, intervals: Tensor, mark: int) -> EventSequences:
    """A history and one more event, after each of some intervals."""
    times = history.times.expand(len(intervals), -1)
    last = times[:, -1:] + intervals[:, None]
    marks = history.marks.expand(len(intervals), -1)
    return EventSequences(
        torch.cat([times, last], dim=1), torch.cat([marks, torch.full_like(marks[:, :1], mark)], 1)
    )


# Likelihoods


def test_the_likelihood_of_two_events_by_hand() -> None:
    process = HawkesProcess([0.5], [[0.4]], decay=2.0)
    expected = math.log(0.5 + 0.8 * math.exp(-1)) - (0.25 + 0.4 * (1 - math.exp(-1)))
    assert process.log_likelihood(sequence([1.0, 1.5])).item() == pytest.approx(expected, rel=1e-12)


def test_an_event_excites_the_marks_of_its_row() -> None:
    process = HawkesProcess([0.5, 0.5], [[0.0, 0.4], [0.0, 0.0]], decay=2.0)
    compensator = 0.5 + 0.4 * (1 - math.exp(-1))
    intensities = {(0, 1): 0.5 + 0.8 * math.exp(-1), (0, 0): 0.5}
    for marks, intensity in intensities.items():
        found = process.log_likelihood(sequence([1.0, 1.5], list(marks))).item()
        assert found == pytest.approx(math.log(intensity) - compensator, rel=1e-12)


def naive_hawkes(process: HawkesProcess, times: list[float], marks: list[int]) -> list[float]:
    """By sums over all events before, twice, as the formula stands."""
    mu, alpha, beta = process.baseline.tolist(), process.excitation.tolist(), process.decay
    answers = []
    for n in range(1, len(times)):
        before = list(zip(times[:n], marks[:n]))
        intensity = mu[marks[n]] + sum(
            alpha[k][marks[n]] * beta * math.exp(-beta * (times[n] - t)) for t, k in before
        )
        integral = sum(mu) * (times[n] - times[n - 1]) + sum(
            sum(alpha[k])
            * (math.exp(-beta * (times[n - 1] - t)) - math.exp(-beta * (times[n] - t)))
            for t, k in before
        )
        answers.append(math.log(intensity) - integral)
    return answers


def test_the_hawkes_likelihood_is_the_double_sum_over_all_events_before() -> None:
    drawn = HAWKES.sample(3, end=15.0)
    likelihood = HAWKES.log_likelihood(drawn)
    for row in range(3):
        events = drawn.mask[row]
        expected = naive_hawkes(
            HAWKES, drawn.times[row][events].tolist(), drawn.marks[row][events].tolist()
        )
        assert_close(likelihood[row][events[1:]], torch.tensor(expected, dtype=torch.float64))


@every_process
def test_densities_of_all_times_and_marks_sum_up_to_one(process: PointProcess) -> None:
    """By the trapezoidal rule, and what is left beyond its range is the survival."""
    history = process.sample(1, num_events=4)
    intervals = torch.linspace(1e-9, 3, 6001, dtype=torch.float64)
    density = sum(
        process.log_likelihood(followed_by(history, intervals, mark))[:, -1].exp()
        for mark in range(process.num_marks)
    )
    beyond = process.log_survival(replace(history, end=history.times[:, -1] + 3)).exp()
    assert 0.001 < beyond.item() < 0.5
    mass = torch.trapezoid(density, intervals) + beyond
    assert mass.item() == pytest.approx(1, abs=1e-6)


@every_process
def test_the_compensator_is_what_the_survival_until_the_next_event_leaves(
    process: PointProcess,
) -> None:
    drawn = process.sample(5, num_events=8)
    before = EventSequences(drawn.times[:, :-1], drawn.marks[:, :-1], end=drawn.times[:, -1])
    assert_close(process.compensator(drawn)[:, -1], -process.log_survival(before))


@every_process
def test_a_sequence_without_events_survives_from_time_zero(process: PointProcess) -> None:
    """The first event of many comes after 1 as often as that says, within 4 standard errors."""
    empty = sequence([0.0], mask=torch.tensor([[False]]), end=torch.tensor([1.0]).double())
    survival = process.log_survival(empty).exp().item()
    first = process.sample(2000, num_events=1).times[:, 0]
    error = (survival * (1 - survival) / 2000) ** 0.5
    assert abs((first > 1).double().mean().item() - survival) < 4 * error


def test_without_excitation_hawkes_is_poisson() -> None:
    drawn = HAWKES.sample(4, end=10.0)
    hawkes = HawkesProcess([0.5, 0.2, 0.3], [[0.0] * 3] * 3)
    poisson = PoissonProcess(1.0, mark_probs=[0.5, 0.2, 0.3])
    assert_close(hawkes.log_likelihood(drawn), poisson.log_likelihood(drawn))
    assert_close(hawkes.log_survival(drawn), poisson.log_survival(drawn))


def test_exponential_intervals_are_poisson() -> None:
    drawn = RenewalProcess("gamma", 0.5, 0.3).sample(4, end=5.0)
    renewal, poisson = RenewalProcess("gamma", 0.5, 0.5), PoissonProcess(2.0)
    assert_close(renewal.log_likelihood(drawn), poisson.log_likelihood(drawn))
    assert_close(renewal.compensator(drawn), poisson.compensator(drawn))
    assert_close(renewal.log_survival(drawn), poisson.log_survival(drawn))


def test_a_swinging_rate_by_hand() -> None:
    """Over a quarter of a period from the middle on, where the sine is at its height."""
    process = PoissonProcess(2.0, 0.5, 4.0, [0.25, 0.75])
    expected = math.log(2 * 1.5 * 0.75) - 2 * (1 + 0.5 * 4 / (2 * math.pi))
    found = process.log_likelihood(sequence([4.0, 5.0], [0, 1]))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_the_mean_nll_of_a_constant_rate_is_one_less_its_logarithm() -> None:
    """λτ has variance 1: within 4 standard errors."""
    process = PoissonProcess(3.0)
    likelihood = process.log_likelihood(process.sample(100, num_events=101))
    assert abs(-likelihood.mean().item() - (1 - math.log(3))) < 4 / 100


@every_process
def test_answers_at_padding_are_zero_and_padding_changes_none(process: PointProcess) -> None:
    drawn = process.sample(2, num_events=6)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    padded = EventSequences(drawn.times, drawn.marks, mask, drawn.times[:, -1])
    alone = EventSequences(drawn.times[1:, :3], drawn.marks[1:, :3], end=drawn.times[1:, -1])
    for answer in (process.log_likelihood, process.compensator):
        assert_close(answer(padded)[1:, :2], answer(alone))
        assert (answer(padded)[1, 2:] == 0).all()
        assert_close(answer(padded)[0], answer(drawn)[0])
    assert_close(process.log_survival(padded)[1:], process.log_survival(alone))


# Drawing


@pytest.mark.parametrize("distribution", ["gamma", "lognormal"])
def test_renewal_intervals_have_their_mean_and_deviation(distribution: str) -> None:
    """Within 4 %."""
    intervals = RenewalProcess(distribution, 2.0, 1.2).sample(400, num_events=101).intervals
    assert intervals.mean().item() == pytest.approx(2, rel=0.04)
    assert intervals.std().item() == pytest.approx(1.2, rel=0.04)


@every_process
def test_rescaled_intervals_are_exponential(process: PointProcess) -> None:
    """Time-rescaling: a Kolmogorov–Smirnov test at 1 %."""
    compensator = process.compensator(process.sample(200, num_events=51))
    uniform = -torch.expm1(-compensator.flatten().sort().values)
    steps = torch.arange(len(uniform) + 1) / len(uniform)
    distance = torch.maximum((uniform - steps[:-1]).max(), (steps[1:] - uniform).max())
    assert distance.item() * len(uniform) ** 0.5 < 1.63


@every_process
def test_marks_are_as_frequent_as_their_intensities_say(process: PointProcess) -> None:
    """After a history, also where that ends in each mark; within 4 standard errors."""
    drawn = process.sample(4000, num_events=6)
    likelihood = torch.stack(
        [
            process.log_likelihood(
                replace(drawn, marks=torch.cat([drawn.marks[:, :-1], torch.full((4000, 1), k)], 1))
            )[:, -1]
            for k in range(process.num_marks)
        ]
    )
    probs, last, previous = likelihood.softmax(0), drawn.marks[:, -1], drawn.marks[:, -2]
    for mark in range(process.num_marks):
        surprise = (last == mark).double() - probs[mark]
        variance = probs[mark] * (1 - probs[mark])
        for before in range(process.num_marks):
            behind = previous == before
            assert surprise[behind].sum().abs() < 4 * variance[behind].sum().sqrt() + 1e-9


def test_the_rate_of_hawkes_is_that_of_the_stationary_process() -> None:
    """(I − αᵀ)⁻¹ μ, within 4 %."""
    drawn = HAWKES.sample(20, end=2000.0)
    counts = torch.bincount(drawn.marks[drawn.mask], minlength=3)
    rate = torch.linalg.solve(torch.eye(3).double() - HAWKES.excitation.T, HAWKES.baseline)
    assert ((counts / 40000 - rate).abs() < 0.04 * rate).all()


def test_a_faster_clock_draws_the_same_events_sooner() -> None:
    excitation = HAWKES.excitation.tolist()
    fast = HawkesProcess((3 * HAWKES.baseline).tolist(), excitation, 3 * HAWKES.decay)
    torch.manual_seed(1)
    slow_draw = HAWKES.sample(10, num_events=20)
    torch.manual_seed(1)
    fast_draw = fast.sample(10, num_events=20)
    assert_close(fast_draw.times * 3, slow_draw.times)
    assert torch.equal(fast_draw.marks, slow_draw.marks)


@every_process
def test_so_many_events_or_those_until_an_end_begin_alike(process: PointProcess) -> None:
    torch.manual_seed(2)
    counted = process.sample(30, num_events=40)
    assert counted.times.shape == (30, 40)
    assert counted.mask.all()
    assert counted.end is None
    assert (counted.intervals > 0).all()
    torch.manual_seed(2)
    observed = process.sample(30, end=6.0)
    assert torch.equal(observed.end, torch.full([30], 6.0, dtype=torch.float64))
    width = observed.times.shape[1]
    within = counted.times[:, :width] <= 6
    assert torch.equal(observed.mask, within)
    assert within.any(0).all()
    assert torch.equal(observed.times[within], counted.times[:, :width][within])
    assert torch.equal(observed.marks[within], counted.marks[:, :width][within])
    last = torch.where(within, observed.times, 0.0).amax(1, keepdim=True)
    assert torch.equal(observed.times, torch.where(within, observed.times, last))
    assert (observed.marks[~within] == 0).all()


def test_the_number_of_events_until_an_end_is_poisson() -> None:
    """Mean and variance within 4 standard errors."""
    counts = PoissonProcess(2.0, 0.7, 5.0).sample(2000, end=5.0).mask.sum(1).double()
    assert abs(counts.mean().item() - 10) < 4 * (10 / 2000) ** 0.5
    assert abs(counts.var().item() - 10) < 4 * 10 * (2 / 2000) ** 0.5


def test_a_window_too_short_for_events_is_empty() -> None:
    drawn = HAWKES.sample(3, end=1e-9)
    assert not drawn.mask.any()
    assert drawn.times.shape == (3, 1)
    assert_close(HAWKES.log_survival(drawn), torch.full([3], -0.6e-9, dtype=torch.float64), 1e-15)
    assert HAWKES.log_likelihood(drawn).shape == (3, 0)


@every_process
def test_draws_are_functions_of_torch_s_seed(process: PointProcess) -> None:
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(process.sample(3, num_events=5))
    assert_same_record(draws[0], draws[1])
    assert not torch.equal(draws[0].times, draws[2].times)


@every_process
def test_times_in_float32_are_followed_in_float64(process: PointProcess) -> None:
    drawn = process.sample(3, end=4.0)
    single = drawn.map(lambda values: values.float() if values.is_floating_point() else values)
    for answer in (process.log_likelihood, process.compensator, process.log_survival):
        assert answer(single).dtype == torch.float64
        assert_close(answer(single), answer(drawn), 1e-4)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], [[0.2, 0.1]]), r"excitation=\[\[0.2, 0.1\]\] must be 1 rows of 1 numbers"),
        (([0.1, 0.1], [[0.2, 0.1]]), "must be 2 rows of 2 numbers, as the baseline has 2"),
        (([0.0], [[0.2]]), r"baseline=\[0.0\] must be 0 or more, and somewhere above 0"),
        (([0.5, -0.1], [[0.0, 0.0], [0.0, 0.0]]), "must be 0 or more, and somewhere above 0"),
        (([math.nan], [[0.2]]), "must be 0 or more, and somewhere above 0"),
        (([0.1], [[-0.2]]), r"excitation=\[\[-0.2\]\] must be 0 or more, and finite"),
        (([0.1], [[math.inf]]), r"excitation=\[\[inf\]\] must be 0 or more, and finite"),
        (([0.1], [[0.2]], 0.0), "decay=0.0 must be above 0"),
        (([0.1], [[1.0]]), r"the spectral radius of excitation=\[\[1.0\]\] is 1 and must be below"),
        (([0.1, 0.1], [[0.5, 0.9], [0.9, 0.5]]), r"is 1.4 and must be below 1: .* smaller"),
    ],
    ids=[
        "row",
        "rows",
        "none",
        "negative",
        "nan",
        "inhibition",
        "infinite",
        "decay",
        "critical",
        "explosion",
    ],
)
def test_hawkes_processes_that_are_none_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HawkesProcess(*arguments)


@pytest.mark.parametrize(
    ("process", "arguments", "message"),
    [
        (RenewalProcess, {"mean": 0.0}, "mean=0.0 and std=0.5 must be above 0"),
        (RenewalProcess, {"std": -1.0}, "mean=1.0 and std=-1.0 must be above 0"),
        (RenewalProcess, {"distribution": "normal"}, "'normal' must be 'gamma' or 'lognormal'"),
        (RenewalProcess, {"mark_probs": [0.5, 0.4]}, r"\[0.5, 0.4\] must be 0 or more, and sum up"),
        (PoissonProcess, {"mark_probs": [1.5, -0.5]}, "must be 0 or more, and sum up to 1"),
        (PoissonProcess, {"rate": 0.0}, "rate=0.0 and period=1.0 must be above 0"),
        (PoissonProcess, {"period": 0.0}, "rate=1.0 and period=0.0 must be above 0"),
        (PoissonProcess, {"amplitude": 1.1}, "amplitude=1.1 must be between 0 and 1"),
    ],
    ids=["mean", "std", "distribution", "sum", "negative", "rate", "period", "amplitude"],
)
@pytest.mark.usefixtures("as_a_user")
def test_other_processes_that_are_none_are_refused(
    process: type, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        process(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of num_events=None and end=None, not both"),
        ({"num_events": 3, "end": 1.0}, "give one of num_events=3 and end=1.0"),
        ({"num_events": 0}, "num_events=0, end=None must be above 0"),
        ({"end": -1.0}, "num_events=None, end=-1.0 must be above 0"),
    ],
    ids=["neither", "both", "none", "before"],
)
def test_draws_without_extent_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HAWKES.sample(3, **arguments)


@every_process
def test_survival_takes_an_end(process: PointProcess) -> None:
    with pytest.raises(ValueError, match=r"have no end; give EventSequences\(..., end=\)"):
        process.log_survival(process.sample(2, num_events=3))
