"""Epidemics obey their rules, and tasks of them are functions of their index."""

import pytest
import torch
from helpers import assert_same_record
from torch import Tensor

from datamodules import SIRDataModule
from datamodules.epidemics import (
    INFECTED,
    RECOVERED,
    SUSCEPTIBLE,
    Rates,
    draw_rates,
    draw_start,
    spread,
)
from datamodules.loading import Part


def small(**arguments: object) -> SIRDataModule:
    sizes = {
        "size": 12, "num_steps": 10, "min_context": 8, "max_context": 32, "num_targets": 40,
        "states_per_run": 4,
    }  # fmt: skip
    return SIRDataModule(**(sizes | arguments))


def states(runs: int = 20, size: int = 16, steps: int = 15) -> Tensor:
    return torch.stack(list(spread(draw_start(runs, size), draw_rates(runs), steps)))


def test_a_site_goes_from_susceptible_to_infected_to_recovered_and_never_back() -> None:
    all_states = states()
    before, after = all_states[:-1], all_states[1:]
    assert (after[before == RECOVERED] == RECOVERED).all()
    assert (after[before == INFECTED] != SUSCEPTIBLE).all()
    assert (after[before == SUSCEPTIBLE] != RECOVERED).all()
    assert {0, 1, 2} == set(all_states.unique().tolist())


def test_without_rates_nothing_happens_and_with_certain_ones_all_does() -> None:
    start = draw_start(3, 8)
    never = Rates(torch.zeros(3), torch.zeros(3))
    assert all(torch.equal(state, start) for state in spread(start, never, 3))
    always = Rates(torch.full((3,), 1e9), torch.ones(3))
    *_, last = spread(start, always, 8)
    assert (last == RECOVERED).all()


def test_an_infection_reaches_four_sites_away() -> None:
    start = torch.full((1, 21, 21), SUSCEPTIBLE)
    start[0, 10, 10] = INFECTED
    _, after = spread(start, Rates(torch.tensor([1e9]), torch.zeros(1)), 1)
    expected = torch.zeros(21, 21, dtype=torch.bool)
    expected[6:15, 6:15] = True
    assert torch.equal(after[0] == INFECTED, expected)


def test_a_start_has_one_to_four_infected_sites() -> None:
    numbers = (draw_start(500, 8) == INFECTED).sum(dim=(1, 2))
    assert set(numbers.tolist()) == {1, 2, 3, 4}


def test_the_chance_of_infection_is_the_weighted_number_of_infected_neighbours() -> None:
    """Within five standard errors, at each distance; γ is the chance of recovery."""
    runs = 4000
    start = torch.full((1, 9, 9), SUSCEPTIBLE)
    start[0, 4, 4] = INFECTED
    rates = Rates(torch.full((runs,), 0.3), torch.full((runs,), 0.2))
    _, after = spread(start.expand(runs, -1, -1), rates, 1)
    share = (after == INFECTED).float().mean(dim=0)
    for i, j, squared in ((4, 5, 1), (5, 5, 2), (4, 6, 4), (2, 1, 13), (0, 0, 32)):
        chance = 0.3 / squared
        assert abs(share[i, j] - chance) < 5 * (chance * (1 - chance) / runs) ** 0.5
    assert abs((after[:, 4, 4] == RECOVERED).float().mean() - 0.2) < 5 * 0.4 / runs**0.5


@pytest.mark.slow
def test_mean_fractions_are_those_of_the_authors_simulator() -> None:
    """Of 150 and 150 runs of theirs and a rewrite: standard errors of 0.02 and less here."""
    all_states = torch.stack(list(spread(draw_start(300, 64), draw_rates(300), 24)))
    theirs = {5: (0.91, 0.08, 0.01), 12: (0.57, 0.31, 0.12), 24: (0.21, 0.32, 0.47)}
    for step, expected in theirs.items():
        for kind, share in zip((SUSCEPTIBLE, INFECTED, RECOVERED), expected):
            assert abs((all_states[step] == kind).float().mean() - share) < 0.08


def test_a_dense_epidemic_follows_the_mean_field() -> None:
    """With half of the sites infected at random, far from the edge, a site's pressure is close to
    β Σw / 2, and so is the share of infections."""
    runs, size = 200, 40
    start = torch.where(torch.rand(runs, size, size) < 0.5, INFECTED, SUSCEPTIBLE)
    _, after = spread(start, Rates(torch.full((runs,), 0.05), torch.full((runs,), 0.1)), 1)
    inner = slice(4, -4)
    before, after = start[:, inner, inner], after[:, inner, inner]
    caught = (after[before == SUSCEPTIBLE] == INFECTED).float().mean()
    assert abs(caught - 0.05 * 12.748 / 2) < 0.005
    assert abs((after[before == INFECTED] == RECOVERED).float().mean() - 0.1) < 0.005


def test_a_task_has_positions_and_one_hot_classes() -> None:
    data = small()
    task = data.training_batch(0)
    assert task.xc.shape == (8, 31, 2)
    assert task.yt.shape == (8, 40, 3)
    assert (task.yt.sum(dim=-1) == 1).all()
    assert (task.yc.sum(dim=-1) == task.context_mask).all()
    sizes = task.context_mask.sum(dim=-1)
    assert ((sizes >= 8) & (sizes < 32)).all()
    steps = (task.xt - task.xt.amin()) / (4 / 11)
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert (task.xc[0, 0] == task.xt[0, 0]).all()


def test_batches_are_functions_of_their_index() -> None:
    data, same = small(), small()
    assert_same_record(data.training_batch(3), same.training_batch(3))
    assert not torch.equal(data.training_batch(3).yt, data.training_batch(4).yt)
    assert not torch.equal(data.training_batch(3).xt, data.training_batch(3, rank=1).xt)
    together = data.evaluation_batch(range(2, 7), Part.TEST)
    for row, index in enumerate(range(2, 7)):
        alone = data.evaluation_batch(range(index, index + 1), Part.TEST)
        assert_same_record(alone, together.map(lambda z, row=row: z[row : row + 1]))
    assert data.training_batch(0).batch_size == small(batch_size=6).training_batch(0).batch_size + 2


def test_a_domain_may_be_larger_or_elsewhere() -> None:
    larger = small(size=24, x_range=(-4.0, 4.0)).positions
    assert larger.amin() == -4.0
    assert small(x_range=(8.0, 12.0)).positions.amax() == 12.0


@pytest.mark.usefixtures("as_a_user")
def test_classes_outside_0_to_2_are_refused() -> None:
    start = draw_start(1, 4)
    start[0, 0, 0] = 3
    with pytest.raises(ValueError, match=r"classes from 0 to 3; sites are 0 \(infected\)"):
        next(iter(spread(start, draw_rates(1), 1)))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "size=1: a lattice has two sites or more on a side"),
        ({"x_range": (1.0, 1.0)}, "must go from a number to a greater one"),
        ({"max_context": 8}, "max_context=8 must be above min_context=8"),
        ({"max_context": 200}, "max_context asks for 199 sites, of which a lattice of 12 × 12 has"),
        ({"num_targets": 145}, "num_targets asks for 145 sites"),
        ({"most_infected": 145}, "most_infected=145 exceeds the 144 sites"),
        ({"states_per_run": 12}, "states_per_run=12 must not exceed the 11 states"),
        ({"num_steps": 0}, "num_steps=0 must be 1 or more"),
    ],
)
def test_lattices_that_cannot_be_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)
