"""The table and the figure of the results, which follow from the cells alone."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results.cell import NUM_CONTEXT, NUM_TARGETS
from benchmarks.results.rivals import RIVALS
from benchmarks.results.tasks import BENCHMARKS
from npbench.colors import EXACT, colors_of

Record = dict[str, Any]
Results = dict[str, dict[str, Record]]

_MARKERS = {"CMANP-small": "s", "TNP-KR-deep-kernel": "s", "TNP-KR-performer": "^"}
_COSTS = {
    "state_bytes": (f"bytes of the state of {NUM_CONTEXT:,} points", 1.0),
    "query_seconds": (f"milliseconds to query {NUM_TARGETS:,} targets", 1e3),
}

_INTRODUCTION = """\
# Results

Made by `python -m benchmarks.results` from the files in `docs/results`, and not by hand. Each model
trains for {seconds} seconds of one processor (the drawing of tasks included, tests not) on the same
tasks; seed {seed}; {machine}; torch {torch}; commit {commit}.

Log-likelihood per target on fixed test tasks, in nats; "exact" knows the process that made each
task. "–" stands where the model cannot do the task, or nobody knows the exact answer; an empty cell
has not been trained yet.
"""
_HOW = f"""\
## How

In training each task has its own number of context points, and all have the same number of targets.
The rate of MuonAdam (0.01, and 0.001 for vectors; of Adam, for ConvCNP, 0.002) rises over the first
twentieth of the time and falls to 0 by a line; gradients are clipped at a norm of 1. Nothing was
chosen by the test tasks. CMANP is as in its paper, CMANP-small as in `configs/gp/cmanp-small.yaml`
and LBANP like it; the other Transformers have three layers, and all else is as shipped
(`benchmarks/results/rivals.py`). Standard deviations of digits are bounded below by 0.05 (those of
CNP everywhere by 0.1, as it is defined); moment models have no such bound.

State and times are those of one task of {NUM_CONTEXT:,} context points and {NUM_TARGETS:,} targets;
times are of the processor. A state in memory holds all that answers queries: that of moment models
holds the solved equations beside the sums.
"""


def write_report(folder: Path) -> None:
    """Write `FOLDER.md` and `FOLDER.png` of the cells in a folder."""
    results = load_results(folder)
    if not results:
        raise SystemExit(f"{folder} holds no results yet")
    figure = folder.with_suffix(".png")
    folder.with_suffix(".md").write_text(markdown(results, figure.name))
    draw(results).savefig(figure)
    print(f"{folder.with_suffix('.md')}, {figure}")


def load_results(folder: Path) -> Results:
    """The cells of each task that has one, in the order of `BENCHMARKS` and `RIVALS`."""
    results: Results = {}
    for task in BENCHMARKS:
        files = {name: folder / task / f"{name}.json" for name in RIVALS}
        cells = {name: json.loads(f.read_text()) for name, f in files.items() if f.is_file()}
        if any(cell["metrics"] for cell in cells.values()):
            results[task] = cells
    return results


def markdown(results: Results, figure: str) -> str:
    """The page: one table of log-likelihoods, the figure, and a table for each task."""
    cells = [cell for of_task in results.values() for cell in of_task.values()]
    known = [cell for cell in cells if cell["metrics"]]
    lines = [
        _INTRODUCTION.format(
            seconds=_each(known, "seconds"),
            seed=_each(known, "seed"),
            machine=_each(known, "machine"),
            torch=_each([cell["versions"] for cell in known], "torch"),
            commit=_each(known, "commit"),
        ),
        *overview(results),
        "",
        f"![Log-likelihood against bytes of state and against query time]({figure})",
    ]
    for task, of_task in results.items():
        lines += ["", f"## {BENCHMARKS[task].title}", "", *details(of_task)]
    return "\n".join([*lines, "", _HOW])


def overview(results: Results) -> list[str]:
    """A row for each task: the exact answer first, then the models; the best stands in bold."""
    rows = []
    for task, of_task in results.items():
        values = {name: _log_likelihood(cell) for name, cell in of_task.items()}
        best = max(value for value in values.values() if value is not None)
        exact = next((cell["exact"] for cell in of_task.values() if cell["metrics"]), None)
        row = [BENCHMARKS[task].title, "–" if exact is None else f"{exact:.3f}"]
        for name in RIVALS:
            value = values.get(name)
            text = "–" if value is None else f"{value:.3f}"
            row.append("" if name not in values else f"**{text}**" if value == best else text)
        rows.append(row)
    return _table(["task", "exact", *RIVALS], rows)


def details(of_task: dict[str, Record]) -> list[str]:
    """All that was measured on a task, the best model first."""
    cells = [cell for cell in of_task.values() if cell["metrics"]]
    cells.sort(key=lambda cell: -cell["metrics"]["log_likelihood"])
    quality: dict[str, tuple[str, Callable[[float], str]]] = {
        "rmse": ("RMSE", "{:.3f}".format),
        "accuracy": ("accuracy", "{:.1%}".format),
        "calibration_error": ("calibration error", "{:.3f}".format),
        "coverage_50": ("50 % holds", "{:.1%}".format),
        "coverage_95": ("95 % holds", "{:.1%}".format),
    }
    quality = {name: how for name, how in quality.items() if name in cells[0]["metrics"]}
    columns = [
        "", "log-likelihood", "gap", *(title for title, _ in quality.values()), "steps",
        "parameters", "state", "a point more", "condition", "query",
    ]  # fmt: skip
    rows = []
    for cell in cells:
        metrics = cell["metrics"]
        rows.append([
            cell["model"],
            f"{metrics['log_likelihood']:.3f} ± {metrics['log_likelihood_stderr']:.3f}",
            f"{metrics['gap']:.3f}" if "gap" in metrics else "–",
            *(written(metrics[name]) for name, (_, written) in quality.items()),
            f"{cell['steps']:,}",
            f"{cell['parameters']:,}",
            f"{cell['state_bytes'] / 1024:,.1f} KiB",
            f"{cell['bytes_per_point']:,.0f} bytes",
            f"{1e3 * cell['condition_seconds']:.1f} ms",
            f"{1e3 * cell['query_seconds']:.1f} ms",
        ])  # fmt: skip
    return _table(columns, rows)


def draw(results: Results) -> Figure:
    """A column for each task: log-likelihood against bytes of the state, and against query time."""
    figure = Figure(figsize=(3.1 * len(results) + 0.6, 6.6), layout="constrained", dpi=110)
    axes = figure.subplots(2, len(results), squeeze=False, sharey="col")
    colors = {name: colors_of([rival.family])[rival.family] for name, rival in RIVALS.items()}
    for column, (task, of_task) in zip(axes.T, results.items()):
        cells = {name: cell for name, cell in of_task.items() if cell["metrics"]}
        for axis, (cost, (label, unit)) in zip(column, _COSTS.items()):
            for name, cell in cells.items():
                axis.plot(
                    unit * cell[cost], cell["metrics"]["log_likelihood"],
                    _MARKERS.get(name, "o"), color=colors[name], ms=7, mec="white", mew=0.6,
                    label=name,
                )  # fmt: skip
            _finish(axis, label, next(iter(cells.values()))["exact"])
        column[0].set_title(BENCHMARKS[task].title, fontsize=10)
    for axis in axes[:, 0]:
        axis.set_ylabel("log-likelihood (nats)", fontsize=9)
    found = {}
    for axis in axes.flat:
        found |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=5, fontsize=8,
                  frameon=False)  # fmt: skip
    return figure


def _finish(axis: Axes, label: str, exact: float | None) -> None:
    if exact is not None:
        axis.axhline(exact, color=EXACT, ls="--", lw=1, label="exact")
    axis.set_xscale("log")
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _log_likelihood(cell: Record) -> float | None:
    return cell["metrics"] and cell["metrics"]["log_likelihood"]


def _each(cells: Iterable[Record], name: str) -> str:
    """The values of a field, each once."""
    return ", ".join(dict.fromkeys(f"{cell[name]:g}" if isinstance(cell[name], float) else
                                   str(cell[name]) for cell in cells))  # fmt: skip


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
