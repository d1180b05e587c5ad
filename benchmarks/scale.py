r"""Far more points than in training: error, log-likelihood and coverage as the context grows.

    python -m benchmarks.scale runs/gp/located/version_0 runs/gp/second-moment/version_0

Each function is a draw from a Gaussian process with an RBF kernel of one length and one scale,
made of random waves, so that it can be evaluated at any number of points. A model absorbs N noisy
values of it at random inputs, and is asked for noisy values at 1,000 others. The best possible
log-likelihood, if the function were known, is that of the noise alone.

Options ask for other noise than the tasks had in training (`--noise`), for inputs that are all
shifted (`--shift`), and for a range that is so many times as wide (`--width`); the places of a
`LocatedCMANP` move and grow with them (`on`). Several values, with commas in between, make one
table:

    python -m benchmarks.scale runs/gp/stream/version_0 --noise 0.02,0.1,0.5 \
        --shift 0,10,0 --width 1,1,3
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from npbench.commands.checkpoints import find, load
from npbench.commands.tables import table_of
from npbench.metrics import Coverage
from npbench.models import FourierMomentNP, LocatedCMANP, NeuralProcess
from npbench.models.contracts.process import evaluating

_CHUNK = 16_384
_NUM_TARGETS = 1000
_NUM_WAVES = 200


@dataclass
class NoisyFunction:
    r"""Noisy values of $f(x) = a \sqrt{2 / F} \sum_k \cos(w_k x + b_k)$ at random inputs.

    With $w_k \sim \mathcal{N}(0, \ell^{-2})$ and $b_k \sim U[0, 2\pi)$ it tends to a Gaussian
    process with an RBF kernel as the number F of waves grows.
    """

    length: float
    scale: float
    noise: float
    low: float
    high: float
    seed: int

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        waves = {"generator": self.generator, "dtype": torch.float64}
        self.frequency = torch.randn(_NUM_WAVES, **waves) / self.length
        self.phase = 2 * math.pi * torch.rand(_NUM_WAVES, **waves)

    def true(self, x: Float[Tensor, "1 points 1"]) -> Float[Tensor, "1 points 1"]:
        """The function itself."""
        waves = (x.double() * self.frequency + self.phase).cos().sum(dim=-1, keepdim=True)
        return (self.scale * math.sqrt(2 / _NUM_WAVES) * waves).float()

    def draw(self, number: int) -> tuple[Float[Tensor, "1 points 1"], Float[Tensor, "1 points 1"]]:
        """So many inputs, with noisy values."""
        shape = 1, number, 1
        x = self.low + (self.high - self.low) * torch.rand(shape, generator=self.generator)
        return x, self.true(x) + self.noise * torch.randn(shape, generator=self.generator)

    def chunks(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, a chunk at a time."""
        for start in range(0, number, _CHUNK):
            yield self.draw(min(_CHUNK, number - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="checkpoints, or the folders of runs")
    parser.add_argument(
        "--sizes", type=_numbers, default="50,500,5000,50000,500000", help="of the context, N"
    )
    parser.add_argument("--length", type=float, default=0.3)
    parser.add_argument("--scale", type=float, default=0.7)
    parser.add_argument("--noise", type=_numbers, default="0.02")
    parser.add_argument("--functions", type=int, default=8)
    parser.add_argument("--shift", type=_numbers, default="0", help="as many as of --width")
    parser.add_argument("--width", type=_numbers, default="1")
    options = parser.parse_args()
    table = table_of(
        ["model", "range", "noise", "N", "RMSE", "log-lik.", "95 %"],
        f"{options.functions} functions of length {options.length} and scale {options.scale}; RMSE "
        f"to the function itself",
    )
    rows = []
    for run in options.runs:
        trained = load(find(run))
        for shift, width in zip(options.shift, options.width, strict=True):
            low, high = shift - 2 * width, shift + 2 * width
            model = trained
            if isinstance(model, LocatedCMANP | FourierMomentNP):
                model = model.on(low, high)
            for noise, size in product(options.noise, map(int, options.sizes)):
                functions = [
                    NoisyFunction(options.length, options.scale, noise, low, high, seed)
                    for seed in range(options.functions)
                ]
                row = {
                    "model": type(model).__name__, "run": str(run), "low": low, "high": high,
                    "noise": noise, "N": size, **measure(model, size, functions),
                    "noise_alone": -0.5 * math.log(2 * math.pi * math.e * noise**2),
                }  # fmt: skip
                rows.append(row)
                table.add_row(
                    row["model"], f"[{low:g}, {high:g}]", f"{noise:g}", f"{size:,}",
                    f"{row['rmse']:.4f}", f"{row['log_likelihood']:.3f}",
                    f"{row['coverage']:.1%}",
                )  # fmt: skip
    Console().print(table)
    out = Path("runs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out / "scale.csv", index=False)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def measure(model: NeuralProcess, size: int, functions: list[NoisyFunction]) -> dict[str, float]:
    """Means over all functions and targets, from a context of this size."""
    squares, log_likelihoods, coverage = [], [], Coverage(0.95)
    with evaluating(model):
        for function in functions:
            state = model.condition(function.chunks(size))
            xt, yt = function.draw(_NUM_TARGETS)
            mean, std = model.marginals(state, xt)
            log_likelihoods.append(model.query(state, xt).log_prob(yt).mean())
            squares.append((mean - function.true(xt)).square().mean())
            coverage.update(mean, std, yt)
    return {
        "rmse": float(torch.stack(squares).mean().sqrt()),
        "log_likelihood": float(torch.stack(log_likelihoods).mean()),
        "coverage": float(coverage.compute()),
    }


if __name__ == "__main__":
    main()
