"""`npbench compare`: several models on the same tasks."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.progress import Progress
from torchmetrics import Metric

from npbench.colors import BAYES, EXACT, colors_of
from npbench.commands import checkpoints
from npbench.commands.arguments import add_allow, add_device, size
from npbench.commands.progress import progress_bar
from npbench.commands.sections import instantiate
from npbench.commands.tables import table_of
from npbench.errors import InputError
from npbench.files import only_writer, output_file
from npbench.messages import CommandParser
from npbench.metrics import metrics_of
from npbench.models.contracts.process import NeuralProcess, evaluating
from npbench.offers import OffersScaling
from npbench.profiling import PointPhases
from npbench.task import Task

_DESCRIPTION = """\
Evaluate several models on the same tasks.

  npbench compare runs/gp/cmanp/version_0 runs/gp/tnpd/version_0
  npbench compare CMANP=a/best.ckpt TNP-D=b/best.ckpt --config configs/gp/cmanp.yaml
  npbench compare RUN RUN --data.kernel configs/gp/kernels/matern52.yaml --data.num_test_tasks 1600

A RUN is a run's folder (of which best.ckpt is taken, or last.ckpt) or a checkpoint. The tasks are
the test tasks of the first run's configuration, unless --config names another; any field of its
data section can be set with --data.FIELD."""

# What is timed; training is not.
_PHASES = ("condition", "query", "update")
# Metrics that the table has where they are measured: their titles and formats.
_QUALITY = {
    "rmse": ("RMSE", ".3f"),
    "coverage_50": ("50 %", ".1%"),
    "coverage_95": ("95 %", ".1%"),
    "accuracy": ("accuracy", ".1%"),
    "calibration_error": ("calibration error", ".3f"),
}
# Groups of tasks of about one size, in the figure.
_MOST_BINS = 8
# What the best predictions are drawn as: those that know each task's process, and only the priors.
_CEILINGS = {
    "exact": ("--", EXACT),
    "exact jointly": (":", EXACT),
    "Bayes": ("--", BAYES),
    "Bayes jointly": (":", BAYES),
}


@dataclass
class Run:
    """A model to compare."""

    name: str
    checkpoint: Path
    model: NeuralProcess

    @property
    def config(self) -> Path:
        return self.checkpoint.parents[1] / "config.yaml"


def run(args: Sequence[str]) -> None:
    options, data_options = _parser().parse_with_fields(args, "data")
    runs = load_runs(options.runs)
    config = options.config or runs[0].config
    data = instantiate(config, "data", L.LightningDataModule, data_options)
    with only_writer(options.out):
        with progress_bar() as progress:
            table, tasks = compare(
                runs, data, options.device, options.sizes, progress, options.part
            )
        Console().print(render(table, len(tasks), options.sizes))
        with output_file(options.out / "comparison.csv") as file:
            table.to_csv(file, float_format="%.6g")
        with output_file(options.out / "tasks.csv") as file:
            tasks.to_csv(file, index_label="task", float_format="%.6g")
        with output_file(options.out / "comparison.png") as file:
            comparison_figure(table, tasks).savefig(file, format="png")
    print(f"comparison.csv, tasks.csv and comparison.png written to {options.out}")


def _parser() -> CommandParser:
    parser = CommandParser("compare", _DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN")
    parser.add_argument("--config", type=Path, help="whose data section to take the tasks from")
    parser.add_argument("--part", help="which of several sets of test tasks: EMNIST's seen, unseen")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder to write to")
    add_allow(parser)
    add_device(parser)
    parser.add_argument(
        "--sizes",
        type=size,
        nargs=3,
        default=(1000, 1000, 10),
        metavar=("N", "M", "n"),
        help="context points, targets and new points at which condition, query and update are "
        "timed, and the state is weighed, for one task (default: 1000 1000 10)",
    )
    return parser


def load_runs(arguments: Sequence[str]) -> list[Run]:
    """The models of these runs; those without a name are called after their class, or after their
    folder where several are of one class.

    Raises:
        InputError: if there is no checkpoint, or two runs have one name.
    """
    runs = []
    for argument in arguments:
        name, equals, path = argument.rpartition("=")
        checkpoint = checkpoints.find(Path(path))
        model = checkpoints.load(checkpoint)
        runs.append(Run(name if equals else type(model).__name__, checkpoint, model))
    names = [run.name for run in runs]
    for run, argument in zip(runs, arguments):
        if names.count(run.name) > 1 and "=" not in argument:
            run.name = argument
    if len({run.name for run in runs}) < len(runs):
        raise InputError(f"two runs have one name: {', '.join(run.name for run in runs)}")
    return runs


def compare(
    runs: Sequence[Run],
    data: L.LightningDataModule,
    device: torch.device,
    sizes: Sequence[int],
    progress: Progress,
    part: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluate all models on the test tasks of `data`; of several sets of them, on `part`.

    Returns:
        One row a model, the best first, with its difference to the best and that one's standard
        error over tasks; and one row a task: number of context points, the exact answers where they
        are known, and each model's log-likelihood.

    Raises:
        InputError: if there is no such part, or no choice of one; or on other data than tasks.
    """
    data.prepare_data()
    data.setup("test")
    batches: Any = data.test_dataloader()
    parts = batches if isinstance(batches, dict) else {}
    if part not in (parts or {None}):
        known = f"choose one of {', '.join(parts)}" if parts else "there are no parts to choose"
        raise InputError(f"--part {part or 'is missing'}: {known}")
    batches = parts.get(part, batches)
    rows, tasks = {}, pd.DataFrame(_facts(batches))
    for run in runs:
        model = run.model.to(device)
        if model.scaling is None and isinstance(data, OffersScaling):
            model.scaling = data.scaling  # as of a model that `npbench test` is given
        described = progress.track(batches, total=len(batches), description=run.name)
        rows[run.name], tasks[run.name] = evaluate(model, described, device)
        rows[run.name] |= cost(model, device, sizes)
        run.model.cpu()
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    table = table.sort_values("log_likelihood", ascending=False)
    difference = tasks[table.index].sub(tasks[table.index[0]], axis=0)
    table.insert(2, "difference", difference.mean())
    table.insert(3, "difference_stderr", difference.sem())
    return table, tasks


def evaluate(
    model: NeuralProcess, batches: Iterable[Task], device: torch.device
) -> tuple[dict[str, float], list[float]]:
    """The metrics over all tasks, and each task's log-likelihood."""
    metrics = metrics_of(model).to(device)
    measured: dict[str, Metric] = {}
    by_task: list[float] = []
    with evaluating(model), _own_randomness(device):
        for task in batches:
            task = task.to(device)
            evaluation = model.evaluate(task)
            measured |= metrics.update(task, evaluation, model.scores_jointly)
            by_task += evaluation.log_likelihood.tolist()
    return {name: float(metric.compute()) for name, metric in measured.items()}, by_task


def cost(model: NeuralProcess, device: torch.device, sizes: Sequence[int]) -> dict[str, float]:
    """Parameters; bytes of the state and milliseconds of each phase, for one task of these sizes:
    context points, targets, new points."""
    num_context, num_targets, num_new = sizes
    phases = PointPhases(model, num_context, num_targets, num_new, device)
    seconds = {name: phases.measure(name, repeats=3).seconds for name in _PHASES}
    with _own_randomness(device):
        state_bytes = phases.state.nbytes
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": state_bytes,
        **{f"{name}_ms": nan if s is None else 1000 * s for name, s in seconds.items()},
    }


def render(table: pd.DataFrame, num_tasks: int, sizes: Sequence[int]) -> Group:
    """The comparison as two tables for the terminal: how good, and at what cost."""
    gaps = {"gap": "gap", "gap_bayes": "gap to Bayes"}
    gaps = {name: title for name, title in gaps.items() if name in table}
    others = {name: titled for name, titled in _QUALITY.items() if name in table}
    titles = (title for title, _ in others.values())
    quality = table_of(
        ["model", "log-lik.", "difference", *gaps.values(), *titles],
        f"{num_tasks:,} tasks; nats per target ± standard error; difference to the first, paired "
        f"by task",
    )
    costs = table_of(
        ["model", "parameters", "state", *_PHASES],
        f"one task of {sizes[0]:,} context points, {sizes[1]:,} targets, {sizes[2]:,} new points",
    )
    for name, row in table.iterrows():
        first = name == table.index[0]
        quality.add_row(
            str(name),
            f"{row.log_likelihood:.3f} ± {row.log_likelihood_stderr:.3f}",
            "" if first else f"{row.difference:.3f} ± {row.difference_stderr:.3f}",
            *(f"{row[gap]:.3f}" for gap in gaps),
            *(format(row[name], how) for name, (_, how) in others.items()),
        )
        costs.add_row(
            str(name),
            f"{row.parameters:,.0f}",
            f"{row.state_bytes / 1024:,.1f} KiB",
            *(f"{row[f'{phase}_ms']:.1f} ms" for phase in _PHASES),
        )
    return Group(quality, costs)


def comparison_figure(table: pd.DataFrame, tasks: pd.DataFrame) -> Figure:
    """Log-likelihoods with two standard errors, over all tasks and by the context's size."""
    figure = Figure(figsize=(11, 3.6), layout="constrained", dpi=110)
    overall, by_size = figure.subplots(1, 2, width_ratios=[1, 1.3])
    bins = tasks["num_context"]
    if bins.nunique() > _MOST_BINS:
        bins = pd.qcut(bins, _MOST_BINS, duplicates="drop")
    grouped = tasks.groupby(bins, observed=True)
    x = grouped["num_context"].mean()
    colors = colors_of(map(str, table.index))
    for index, (name, row) in enumerate(table.iterrows()):
        color = colors[str(name)]
        overall.errorbar(
            row.log_likelihood, -index, xerr=2 * row.log_likelihood_stderr, fmt="o", color=color,
            capsize=3,
        )  # fmt: skip
        by_size.plot(x, grouped[name].mean(), "o-", ms=3, color=color, label=str(name))
    for column, (style, color) in _CEILINGS.items():
        if column in tasks:
            overall.axvline(tasks[column].mean(), color=color, ls=style, lw=1)
            by_size.plot(x, grouped[column].mean(), color=color, ls=style, lw=1, label=column)
    overall.set_yticks([-index for index in range(len(table))], [str(n) for n in table.index])
    overall.set_xlabel("log-likelihood per target")
    by_size.set_xlabel("context points")
    by_size.set_ylabel("log-likelihood per target")
    # Outside of the axes, no line crosses it.
    figure.legend(*by_size.get_legend_handles_labels(), loc="outside right upper", fontsize=7,
                  frameon=False)  # fmt: skip
    for axis in (overall, by_size):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _facts(batches: Iterable[Task]) -> dict[str, list[float]]:
    """What is known of each task without a model."""
    facts: dict[str, list[float]] = defaultdict(list)
    for task in batches:
        if not isinstance(task, Task):
            raise InputError(
                f"the data module gives {type(task).__name__}; npbench compare takes models and "
                f"tasks of regression"
            )
        mask = task.context_mask
        counts = [task.xc.shape[1]] * task.batch_size if mask is None else mask.sum(-1).tolist()
        facts["num_context"] += counts
        if task.exact is not None:
            facts["exact"] += task.exact.log_likelihood.tolist()
            facts["exact jointly"] += task.exact.joint_log_likelihood.tolist()
        if task.bayes is not None:
            facts["Bayes"] += task.bayes.log_likelihood.tolist()
            facts["Bayes jointly"] += task.bayes.joint_log_likelihood.tolist()
    return facts


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """The same random numbers for every model, and none taken from the caller's."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
