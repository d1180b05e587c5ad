"""What block size and latents buy: figure 4 of CMANP's paper, in small and on an easy process.

    python -m benchmarks.blocks                       # 4 minutes on one core
    python -m benchmarks.blocks --steps 100           # too short to learn much

One CMANP-AND is trained and then evaluated with several block sizes b_Q; and a CMANP is trained for
as many steps for each number of latents. All tasks are from one RBF kernel, so that a short
training gets somewhere. Prints both tables and leaves `docs/blocks.png`; times are seconds of the
processor.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results.cell import NUM_CONTEXT, NUM_TARGETS, factor, processor_seconds, step
from datamodules import GPDataModule
from npbench.colors import EXACT, colors_of
from npbench.commands.sections import instantiate
from npbench.models import CMANP, CMANPAND, NeuralProcess
from npbench.models.contracts.process import evaluating, unwatched
from npbench.optim import MuonAdam

_CONFIGS = Path(__file__).parents[1] / "configs" / "gp"
_BLOCK_SIZES = (1, 2, 4, 8, 16, 32)
_LATENTS = (4, 16, 64, 128)
_TOGETHER = 64
# As in configs/gp/cmanp-small.yaml.
_SMALL: dict[str, Any] = {
    "num_heads": 2, "num_layers": 2, "qk_norm": True, "norm_residual": False
}  # fmt: skip


class Row(NamedTuple):
    """What one block size or one number of latents comes to."""

    number: int
    log_likelihood: float
    stderr: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--test_tasks", type=int, default=640)
    parser.add_argument("--figure", type=Path, default=Path("docs/blocks.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = tasks(min_num_points=10), tasks(min_num_points=1)
    blocks, joint = by_block_size(*data, options.steps, options.test_tasks)
    print(f"exact, jointly: {joint:.3f}", flush=True)
    show("block size b_Q", "log-likelihood, jointly", f"s for {_TOGETHER} tasks", blocks)
    latents, exact = by_latents(*data, options.steps, options.test_tasks)
    print(f"exact: {exact:.3f}")
    title = f"s for {NUM_CONTEXT:,} points and {NUM_TARGETS:,} targets"
    show("latents", "log-likelihood", title, latents)
    draw(blocks, joint, latents, exact).savefig(options.figure)
    print(f"figure: {options.figure}")


def tasks(min_num_points: int) -> GPDataModule:
    """From so many context points and targets on, of which there are 49 at most together.

    The test is on 10 and more; training is on 1 and more, since a block may be as small.
    """
    options = [
        f"--data.kernel={_CONFIGS}/kernels/rbf-fixed.yaml", "--data.vary_sizes=true",
        f"--data.min_num_points={min_num_points}",
    ]  # fmt: skip
    return instantiate(_CONFIGS / "cmanp.yaml", "data", GPDataModule, options)


def train(model: NeuralProcess, data: GPDataModule, steps: int) -> NeuralProcess:
    """MuonAdam, whose rate rises over the first twentieth of the run and falls to 0 by a line."""
    optimizer = MuonAdam(model.parameters(), lr=0.01, adam_lr=1e-3)
    rates = [group["lr"] for group in optimizer.param_groups]
    for index in range(steps):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * factor(index / steps)
        step(model, optimizer, data.training_batch(index))
    return model.eval()


def by_block_size(
    data: GPDataModule, training: GPDataModule, steps: int, test_tasks: int
) -> tuple[list[Row], float]:
    """One model with several block sizes; and what the exact process scores jointly."""
    torch.manual_seed(0)
    latents = {"num_latents": 32, "num_block_latents": 32}
    model = train(CMANPAND(1, 1, **_SMALL, **latents), training, steps)
    rows = []
    for size in _BLOCK_SIZES:
        model.block_size = size
        values = log_likelihoods(model, data, test_tasks)
        batch = data.evaluation_batch(range(_TOGETHER))
        with evaluating(model), unwatched(model):
            seconds = processor_seconds(lambda: model.log_likelihood(batch))  # noqa: B023
        rows.append(_row(size, values, seconds))
    exact = [task.exact.joint_log_likelihood for task in batches(data, test_tasks)]
    return rows, float(torch.cat(exact).mean())


def by_latents(
    data: GPDataModule, training: GPDataModule, steps: int, test_tasks: int
) -> tuple[list[Row], float]:
    """A model for each number of latents; and what the exact process scores one by one."""
    rows = []
    for number in _LATENTS:
        torch.manual_seed(0)
        model = CMANP(1, 1, **_SMALL, num_latents=number, num_block_latents=number)
        values = log_likelihoods(train(model, training, steps), data, test_tasks)
        x, y = torch.randn(2, 1, NUM_CONTEXT, 1)
        xt = torch.randn(1, NUM_TARGETS, 1)
        with evaluating(model), unwatched(model):
            seconds = processor_seconds(lambda: model.query(model.condition(x, y), xt))  # noqa: B023
        rows.append(_row(number, values, seconds))
    exact = [task.exact.log_likelihood for task in batches(data, test_tasks)]
    return rows, float(torch.cat(exact).mean())


def batches(data: GPDataModule, test_tasks: int) -> list[Any]:
    starts = range(0, test_tasks, _TOGETHER)
    return [data.evaluation_batch(range(i, min(i + _TOGETHER, test_tasks))) for i in starts]


def log_likelihoods(model: NeuralProcess, data: GPDataModule, test_tasks: int) -> torch.Tensor:
    with evaluating(model), unwatched(model):
        return torch.cat([model.log_likelihood(task) for task in batches(data, test_tasks)])


def _row(number: int, values: torch.Tensor, seconds: float) -> Row:
    return Row(number, float(values.mean()), float(values.std() / len(values) ** 0.5), seconds)


def show(first: str, second: str, third: str, rows: Sequence[Row]) -> None:
    print(f"\n| {first} | {second} | {third} |\n|---|---|---|")
    for row in rows:
        print(f"| {row.number} | {row.log_likelihood:.3f} ± {row.stderr:.3f} | {row.seconds:.3f} |")
    print(flush=True)


def draw(blocks: list[Row], joint: float, latents: list[Row], exact: float) -> Figure:
    figure = Figure(figsize=(8.4, 5.6), layout="constrained", dpi=110)
    axes = figure.subplots(2, 2, sharex="col")
    names = "CMANPAND", "CMANP"
    for column, rows, ceiling, name in zip(axes.T, (blocks, latents), (joint, exact), names):
        numbers, color = [row.number for row in rows], colors_of([name])[name]
        column[0].errorbar(
            numbers, [row.log_likelihood for row in rows], [2 * row.stderr for row in rows],
            fmt="o-", color=color, capsize=3,
        )  # fmt: skip
        column[0].axhline(ceiling, color=EXACT, ls="--", lw=1, label="exact")
        column[0].legend(frameon=False, fontsize=8)
        column[1].plot(numbers, [row.seconds for row in rows], "o-", color=color)
        column[1].set_ylim(bottom=0.0)
        for axis in column:
            _finish(axis, numbers)
    axes[0, 0].set(title="CMANP-AND", ylabel="log-likelihood per target, jointly")
    axes[1, 0].set(xlabel="block size b_Q", ylabel=f"seconds for {_TOGETHER} tasks")
    axes[0, 1].set(title="CMANP", ylabel="log-likelihood per target")
    axes[1, 1].set(xlabel="latents", ylabel=f"seconds, {NUM_CONTEXT:,} points and targets")
    return figure


def _finish(axis: Axes, numbers: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
