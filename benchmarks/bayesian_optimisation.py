"""Bayesian optimisation by a neural process, by a Gaussian process, and by chance.

    python -m benchmarks.bayesian_optimisation --short           # two problems, two repeats
    python -m benchmarks.bayesian_optimisation                   # all problems, ten repeats
    python -m benchmarks.bayesian_optimisation --sizes 100 1000 10000  # time after so many points

Every method maximises the same functions from the same first points by the same acquisition
function, the logarithm of the expected improvement, with the same optimiser of it: the models are
all that differs. The functions are test functions of BoTorch, which are the same in all repeats,
and draws from Gaussian processes, which differ. A run is a line of a file; a command that was cut
off goes on where it was. The table has medians and quartiles over the repeats of the regret, in
standard deviations of the function, and the CPU seconds that the choice of a point takes.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.exceptions.warnings import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms import Normalize
from botorch.optim import optimize_acqf
from botorch.test_functions import Ackley, Branin, Levy, SyntheticTestFunction
from botorch.utils.sampling import draw_sobol_samples
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.optimize import minimize
from torch import Tensor

import npbench
from npbench.blocks import InferredNoise
from npbench.interop.botorch import NeuralProcessModel
from npbench.models import NeuralProcess, SecondMomentNP

# Frequencies of a draw from a Gaussian process.
_FREQUENCIES = 2000
# Points of a grid, from the best of which the optimum of a draw is found.
_GRID, _STARTS = 10_000, 5
# Points that the standard deviation of a function is of.
_POINTS = 4096
# Smallest regret that figures tell from none.
_LEAST = 1e-5
# Observations that a Gaussian process is fitted to at the most, when times are taken.
_MOST_OF_GP = 1000


@dataclass(frozen=True)
class Problem:
    """A function to be maximised, whose regret is in its standard deviations."""

    f: Callable[[Tensor], Tensor]
    bounds: Tensor
    optimum: float
    scale: float


@dataclass(frozen=True)
class Run:
    """The regret of the best value after each point, and the CPU seconds of each choice."""

    problem: str
    method: str
    repeat: int
    regret: list[float]
    seconds: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first repeat")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", help="take times after so many points")
    parser.add_argument("--runs", type=Path, default=Path("runs/bayesian-optimisation.jsonl"))
    parser.add_argument("--figure", type=Path, help="where the regret curves are drawn")
    options = parser.parse_args()
    warnings.simplefilter("ignore", BotorchWarning)
    if options.sizes is not None:
        print(times(options.sizes, options.methods))
        return
    if options.short:
        options.problems, options.repeats = ["GP draw 1-D", "Branin"], 2
        options.runs = options.runs.with_stem("bayesian-optimisation-short")
    repeats = range(options.first, options.first + options.repeats)
    runs = read(options.runs)
    done = {(run.problem, run.method, run.repeat) for run in runs}
    for repeat in repeats:
        for name in options.problems:
            for method in options.methods:
                if (name, method, repeat) in done:
                    continue
                run = optimised(name, method, repeat)
                runs.append(run)
                options.runs.parent.mkdir(parents=True, exist_ok=True)
                with options.runs.open("a") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
                print(f"{name}, {method}, {repeat}: {run.regret[-1]:.2g}", flush=True)
    chosen = [run for run in runs if run.repeat in repeats and run.method in options.methods]
    print(table(chosen, options.problems))
    if options.figure is not None:
        draw(chosen, options.problems, options.figure)


def read(path: Path) -> list[Run]:
    """The runs of a file, of which the last line may be cut off."""
    runs = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            runs.append(Run(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return runs


def optimised(name: str, method: str, repeat: int) -> Run:
    """One run: all methods of a repeat begin with the same points of the same function."""
    torch.manual_seed(repeat)
    problem = PROBLEMS[name](repeat)
    first, number = (4, 12) if problem.bounds.shape[1] == 1 else (6, 24)
    X = draw_sobol_samples(problem.bounds, n=first, q=1, seed=repeat).squeeze(1)
    Y = problem.f(X)
    seconds = []
    for step in range(number):
        torch.manual_seed(1000 * repeat + step)
        start = time.process_time()
        x = METHODS[method](X, Y, problem.bounds)
        seconds.append(time.process_time() - start)
        X, Y = torch.cat([X, x]), torch.cat([Y, problem.f(x)])
    best = Y[:, 0].cummax(dim=0).values[first - 1 :]
    regret = ((problem.optimum - best) / problem.scale).clamp(min=0.0)
    return Run(name, method, repeat, regret.tolist(), seconds)


def of_botorch(function: SyntheticTestFunction) -> Callable[[int], Problem]:
    """A test function of BoTorch, the same in each repeat."""
    return lambda repeat: problem_of(function, function.bounds.double(), function.optimal_value)


def gp_draw(d: int, length: float) -> Callable[[int], Problem]:
    """A draw from a Gaussian process on the unit cube with a Matérn-5/2 kernel.

    It is a sum of cosines whose frequencies have Student's law with five degrees of freedom.
    """
    degrees = torch.tensor(5.0, dtype=torch.float64)

    def draw(repeat: int) -> Problem:
        normal = torch.randn(_FREQUENCIES, d, dtype=torch.float64)
        squares = torch.distributions.Chi2(degrees).sample(torch.Size([_FREQUENCIES, 1]))
        frequencies = normal / (squares / degrees).sqrt() / length
        phases = 2 * math.pi * torch.rand(_FREQUENCIES, dtype=torch.float64)
        weights = math.sqrt(2 / _FREQUENCIES) * torch.randn(_FREQUENCIES, dtype=torch.float64)

        def f(x: Tensor) -> Tensor:
            return (x @ frequencies.T + phases).cos() @ weights

        def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.tensor(z, requires_grad=True)
            value = -f(x)
            return float(value), torch.autograd.grad(value, x)[0].numpy()

        bounds = torch.stack([torch.zeros(d), torch.ones(d)]).double()
        x = draw_sobol_samples(bounds, n=_GRID, q=1, seed=repeat).squeeze(1)
        starts = x[torch.cat([f(part) for part in x.split(1000)]).topk(_STARTS).indices]
        ends = [
            minimize(negative, start, jac=True, bounds=[(0, 1)] * d).fun for start in starts.numpy()
        ]
        return problem_of(f, bounds, -min(ends))

    return draw


def problem_of(f: Callable[[Tensor], Tensor], bounds: Tensor, optimum: float) -> Problem:
    """A function [n, d] to [n], with the standard deviation of its values."""
    values = f(draw_sobol_samples(bounds, n=_POINTS, q=1, seed=0).squeeze(1))
    return Problem(lambda x: f(x)[:, None], bounds, float(optimum), float(values.std()))


def by_chance(X: Tensor, Y: Tensor, bounds: Tensor) -> Tensor:
    """A point drawn uniformly."""
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(1, X.shape[1], dtype=X.dtype)


def by(model_of: Callable[[Tensor, Tensor, Tensor], Model]) -> Callable[..., Tensor]:
    """The point whose expected improvement is the largest by a model of the points so far."""

    def choose(X: Tensor, Y: Tensor, bounds: Tensor) -> Tensor:
        improvement = LogExpectedImprovement(model_of(X, Y, bounds), best_f=Y.max())
        options = {"maxiter": 50}
        return optimize_acqf(
            improvement, bounds, q=1, num_restarts=4, raw_samples=64, options=options
        )[0]

    return choose


def gaussian_process(X: Tensor, Y: Tensor, bounds: Tensor) -> Model:
    """BoTorch's default: hyper-parameters are fitted to the points."""
    model = SingleTaskGP(X, Y, input_transform=Normalize(X.shape[1], bounds=bounds))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def neural_process(X: Tensor, Y: Tensor, bounds: Tensor) -> Model:
    """`gp-1d` of one input; else Bayesian regression as it is initialised. Nothing is fitted."""
    return NeuralProcessModel(_process(X.shape[1]), X, Y, bounds)


@cache
def _process(d: int) -> NeuralProcess:
    if d == 1:
        return npbench.load("gp-1d")
    noise = InferredNoise(ratios=(5.0, 50.0))
    arguments = {"num_features": 64 * d, "num_heads": 6, "lengths": (0.25 * d, 4.0)}
    return SecondMomentNP(d, 1, noise=noise, corrected=False, **arguments)


def times(sizes: Iterable[int], methods: Iterable[str]) -> str:
    """CPU seconds that the choice of a point takes after so many noisy observations, as a table."""
    problem = PROBLEMS["GP draw 1-D"](0)
    lines = ["| observations | method | CPU s a point |", "|---|---|---|"]
    for size in sizes:
        torch.manual_seed(size)
        X = torch.rand(size, 1, dtype=torch.float64)
        Y = problem.f(X) + 0.3 * torch.randn_like(X)
        for method in methods:
            if method == "random" or (method == "SingleTaskGP" and size > _MOST_OF_GP):
                continue
            METHODS[method](X[:10], Y[:10], problem.bounds)  # what is loaded once is not counted
            start = time.process_time()
            METHODS[method](X, Y, problem.bounds)
            lines += [f"| {size:,} | {method} | {time.process_time() - start:.2g} |"]
    return "\n".join(lines)


def table(runs: list[Run], problems: Iterable[str]) -> str:
    """Median and quartiles of the regret after half and after all points, in Markdown."""
    lines = ["| problem | method | half of the points | all points | CPU s a point | repeats |"]
    lines += ["|---|---|---|---|---|---|"]
    for problem, method, of_method in grouped(runs, problems):
        regret = np.array([run.regret for run in of_method])
        half, end = (
            "{1:.2g} ({0:.2g} to {2:.2g})".format(*np.quantile(values, [0.25, 0.5, 0.75]))
            for values in (regret[:, regret.shape[1] // 2], regret[:, -1])
        )
        seconds = np.median([run.seconds for run in of_method])
        lines += [f"| {problem} | {method} | {half} | {end} | {seconds:.2g} | {len(regret)} |"]
    return "\n".join(lines)


def grouped(runs: list[Run], problems: Iterable[str]) -> Iterator[tuple[str, str, list[Run]]]:
    """The runs of each problem and method that has some."""
    for problem in problems:
        for method in METHODS:
            of_method = [run for run in runs if (run.problem, run.method) == (problem, method)]
            if of_method:
                yield problem, method, of_method


def draw(runs: list[Run], problems: Sequence[str], path: Path) -> None:
    """Median regret after each point, and its quartiles, of all methods."""
    colors = dict(zip(METHODS, ("#8a8f94", "#3a9a5b", "#2a6fbb"), strict=True))
    columns = min(3, len(problems))
    rows = math.ceil(len(problems) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    axis_of = dict(zip(problems, axes.flat))
    for axis in axes.flat[len(problems) :]:
        axis.remove()
    for problem, method, of_method in grouped(runs, problems):
        regret = np.array([run.regret for run in of_method]).clip(_LEAST)
        low, median, high = np.quantile(regret, [0.25, 0.5, 0.75], axis=0)
        axis, steps = axis_of[problem], range(len(median))
        axis.plot(steps, median, color=colors[method], label=method)
        axis.fill_between(steps, low, high, color=colors[method], alpha=0.15, linewidth=0)
        axis.set(title=problem, yscale="log", xlabel="points after the first")
    axes[0, 0].set(ylabel="regret")
    axes[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "GP draw 1-D": gp_draw(1, 0.1),
    "Levy 1-D": of_botorch(Levy(dim=1, negate=True)),
    "GP draw 2-D": gp_draw(2, 0.25),
    "Branin": of_botorch(Branin(negate=True)),
    "Ackley 2-D": of_botorch(Ackley(dim=2, negate=True)),
}
METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "random": by_chance,
    "SingleTaskGP": by(gaussian_process),
    "neural process": by(neural_process),
}

if __name__ == "__main__":
    main()
