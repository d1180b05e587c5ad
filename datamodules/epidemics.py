"""Epidemics on a lattice: which sites are infected, recovered or susceptible."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Beta, Gamma

from datamodules.loading import DrawnTaskDataModule, Part, at_least_one, check_range
from datamodules.seeding import seeded
from npbench.errors import InputError
from npbench.task import Task

CLASSES = ("infected", "recovered", "susceptible")
"""The classes of a site, in the order of the one-hot outputs."""
INFECTED, RECOVERED, SUSCEPTIBLE = range(3)

# How many sites away an infection still reaches, in either direction.
_REACH = 4


class Rates(NamedTuple):
    """How an epidemic spreads: the rate β of infection, and the probability γ of recovery."""

    infection: Float[Tensor, "runs"]
    recovery: Float[Tensor, "runs"]


def draw_rates(runs: int) -> Rates:
    r"""$\beta \sim \mathrm{Beta}(2, 8)$ and $1 / \gamma \sim \mathrm{Gamma}(5, 0.4)$ from torch's
    generator; where γ exceeds 1 recovery is certain."""
    infection = Beta(torch.tensor(2.0), torch.tensor(8.0)).sample((runs,))
    recovery = Gamma(torch.tensor(5.0), torch.tensor(0.4)).sample((runs,)).reciprocal()
    return Rates(infection, recovery.clamp(max=1.0))


def draw_start(runs: int, size: int, most_infected: int = 4) -> Int[Tensor, "runs size size"]:
    """Lattices of susceptible sites, of which 1 to `most_infected` at random are infected."""
    numbers = torch.randint(1, most_infected + 1, (runs, 1))
    ranks = torch.rand(runs, size * size).argsort(dim=-1).argsort(dim=-1)
    infected = (ranks < numbers).unflatten(1, (size, size))
    return torch.where(infected, INFECTED, SUSCEPTIBLE)


def spread(start: Int[Tensor, "runs size size"], rates: Rates, num_steps: int) -> Iterator[Tensor]:
    r"""The states of epidemics after 0, 1, …, `num_steps` steps, on the device of the start.

    All sites change at once, by the state before. A susceptible one is infected with probability
    $\min(1, \beta \sum_{ij} w_{ij} I_{ij})$, with weights $w = 1 / (i^2 + j^2)$ of the 9 × 9 sites
    around it, and nobody beyond the lattice; an infected one recovers with probability γ, and stays
    so.

    Args:
        start: the classes of all sites, by `CLASSES`.
        rates: of each epidemic.
        num_steps: number of steps.

    Raises:
        InputError: if a site is of no class.

    Example:
        >>> start = draw_start(runs=2, size=16)
        >>> states = list(spread(start, draw_rates(2), num_steps=3))
        >>> len(states), states[-1].shape
        (4, torch.Size([2, 16, 16]))
    """
    if start.numel() and not 0 <= int(start.min()) <= int(start.max()) < len(CLASSES):
        raise InputError(
            f"a lattice holds classes from {int(start.min())} to {int(start.max())}; sites are "
            f"0 ({CLASSES[0]}), 1 ({CLASSES[1]}) or 2 ({CLASSES[2]})"
        )
    away = torch.arange(-_REACH, _REACH + 1, device=start.device).square()
    squared = (away[:, None] + away).float()
    weights = torch.where(squared > 0, squared.reciprocal(), 0.0)[None, None]
    infection, recovery = (rate.to(start.device)[:, None, None] for rate in rates)
    state = start
    yield state
    for _ in range(num_steps):
        infected = (state == INFECTED).float()
        pressure = F.conv2d(infected[:, None], weights, padding=_REACH)[:, 0]
        chance = torch.rand_like(pressure)
        caught = (state == SUSCEPTIBLE) & (chance < infection * pressure)
        healed = (state == INFECTED) & (chance < recovery)
        state = torch.where(caught, INFECTED, torch.where(healed, RECOVERED, state))
        yield state


class SIRDataModule(DrawnTaskDataModule):
    """Tasks from epidemics: the classes of some sites of a state are given, those of others asked.

    Inputs are the positions of sites, outputs their one-hot classes (`CLASSES`), for models with a
    categorical likelihood. Tasks come in groups of `states_per_run`, which are states of one
    epidemic; the sites are in another random order in each group. The first `num_targets` of them
    are targets, and the first N are the context, which are among the targets too, as in the
    authors' code. The batch of a training step and a fixed evaluation task are functions of the
    seed and of their index.

    For larger domains at the same spacing, give the size and the range together: `size=128,
    x_range=(-4, 4)`; `x_range=(8, 12)` is shifted.

    Args:
        size: sites on a side of the lattice.
        x_range: where they lie, in either direction.
        num_steps: steps of an epidemic; its states are the start and those after each step.
        most_infected: most infected sites at the start.
        min_context: fewest context points N.
        max_context: N stays below.
        num_targets: number of targets.
        states_per_run: tasks that come from one epidemic.
        batch_size: tasks a training step, on each rank.
        eval_batch_size: tasks an evaluation step; it changes no result.
        steps_per_epoch: training batches an epoch; a validation follows each epoch.
        num_val_tasks: number of fixed validation tasks.
        num_test_tasks: number of fixed test tasks.
        num_predict_tasks: number of fixed tasks for `predict`.
        seed: seed of the training tasks.
        eval_seed: seed of the validation, test and prediction tasks.
        num_workers: processes that draw tasks; 0 draws in the training process.

    Source: Jenson et al., *Transformer Neural Processes – Kernel Regression*, 2024.

    Example:
        >>> data = SIRDataModule(size=16, min_context=8, max_context=32, num_targets=64)
        >>> task = data.training_batch(0)
        >>> task.xt.shape, task.yt.shape
        (torch.Size([8, 64, 2]), torch.Size([8, 64, 3]))
    """

    def __init__(
        self,
        size: int = 64,
        x_range: tuple[float, float] = (-2.0, 2.0),
        num_steps: int = 24,
        most_infected: int = 4,
        min_context: int = 128,
        max_context: int = 512,
        num_targets: int = 1024,
        states_per_run: int = 8,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        steps_per_epoch: int = 1000,
        num_val_tasks: int = 400,
        num_test_tasks: int = 4000,
        num_predict_tasks: int = 8,
        seed: int = 0,
        eval_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            steps_per_epoch,
            num_val_tasks,
            num_test_tasks,
            num_predict_tasks,
            eval_batch_size,
            num_workers,
        )
        at_least_one(
            num_steps=num_steps,
            most_infected=most_infected,
            min_context=min_context,
            num_targets=num_targets,
            states_per_run=states_per_run,
            batch_size=batch_size,
        )
        if size < 2:
            raise InputError(f"size={size}: a lattice has two sites or more on a side")
        check_range(x_range)
        if max_context <= min_context:
            raise InputError(f"max_context={max_context} must be above min_context={min_context}")
        for name, number in (("max_context", max_context - 1), ("num_targets", num_targets)):
            if number > size**2:
                raise InputError(
                    f"{name} asks for {number} sites, of which a lattice of {size} × {size} has "
                    f"{size**2}"
                )
        if most_infected > size**2:
            raise InputError(f"most_infected={most_infected} exceeds the {size**2} sites")
        if states_per_run > num_steps + 1:
            raise InputError(
                f"states_per_run={states_per_run} must not exceed the {num_steps + 1} states of an "
                f"epidemic of num_steps={num_steps}"
            )
        self.size = size
        self.x_range = x_range
        self.num_steps = num_steps
        self.most_infected = most_infected
        self.min_context = min_context
        self.max_context = max_context
        self.num_targets = num_targets
        self.states_per_run = states_per_run
        self.batch_size = batch_size
        self.seed = seed
        self.eval_seed = eval_seed

    @property
    def positions(self) -> Float[Tensor, "sites 2"]:
        """Where the sites are, row by row."""
        axis = torch.linspace(*self.x_range, self.size)
        return torch.cartesian_prod(axis, axis)

    def training_batch(self, index: int, rank: int = 0) -> Task:
        with seeded(self.seed, Part.TRAIN, rank, index):
            groups = -(-self.batch_size // self.states_per_run)
            tasks = [self._group() for _ in range(groups)]
            return _rows(_joined(tasks), slice(self.batch_size))

    def evaluation_batch(self, indices: range, part: Part = Part.TEST) -> Task:
        groups: dict[int, Task] = {}
        rows = []
        for index in indices:
            group, row = divmod(index, self.states_per_run)
            if group not in groups:
                with seeded(self.eval_seed, part, group):
                    groups[group] = self._group()
            rows.append(_rows(groups[group], slice(row, row + 1)))
        return _joined(rows)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return CLASSES

    def figure_task(self, index: int = 0) -> Task:
        """A task for figures: a state half-way through an epidemic; all sites are targets."""
        return self.frames(index)[self.num_steps // 2]

    def frames(self, index: int = 0, num_context: int | None = None) -> list[Task]:
        """The states of one epidemic, the start first; the targets are all sites, row by row.

        Args:
            index: of the epidemic.
            num_context: number of known sites, the same ones in all states; by default as many as
                training has on average.

        Raises:
            InputError: if the lattice has not so many.
        """
        if num_context is None:
            num_context = (self.min_context + self.max_context) // 2
        if not 0 <= num_context <= self.size**2:
            raise InputError(
                f"num_context={num_context} must be from 0 to the {self.size**2} sites of the "
                f"lattice"
            )
        with seeded(self.eval_seed, Part.FIGURES, index):
            start, rates = draw_start(1, self.size, self.most_infected), draw_rates(1)
            states = torch.cat(list(spread(start, rates, self.num_steps))).flatten(1)
            known = torch.randperm(self.size**2)[:num_context]
        x = self.positions[None]
        classes = F.one_hot(states, len(CLASSES)).float()
        return [Task(x[:, known], y[None, known], x, y[None]) for y in classes]

    def _group(self) -> Task:
        """Tasks of the states of one epidemic, from torch's generator."""
        start, rates = draw_start(1, self.size, self.most_infected), draw_rates(1)
        states = torch.cat(list(spread(start, rates, self.num_steps))).flatten(1)
        chosen = torch.randperm(len(states))[: self.states_per_run]
        sites = torch.randperm(self.size**2)
        sizes = torch.randint(self.min_context, self.max_context, (self.states_per_run,))
        context, target = sites[: self.max_context - 1], sites[: self.num_targets]
        mask = torch.arange(len(context)) < sizes[:, None]
        classes = F.one_hot(states[chosen], len(CLASSES)).float()
        positions = self.positions.expand(self.states_per_run, -1, -1)
        real = mask[..., None]
        return Task(
            positions[:, context] * real,
            classes[:, context] * real,
            positions[:, target],
            classes[:, target],
            mask,
        )


def _joined(tasks: list[Task]) -> Task:
    names = ("xc", "yc", "xt", "yt", "context_mask")
    parts = ([getattr(task, name) for task in tasks] for name in names)
    xc, yc, xt, yt, context_mask = (torch.cat(part) for part in parts)
    return Task(xc, yc, xt, yt, context_mask)


def _rows(task: Task, rows: slice) -> Task:
    return task.map(lambda z: z[rows])
