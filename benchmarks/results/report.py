"""The tables of the results, which follow from the cells alone."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.results.cell import NUM_CONTEXT, NUM_TARGETS
from benchmarks.results.figure import draw
from benchmarks.results.rivals import RIVALS
from benchmarks.results.tasks import BENCHMARKS

Record = dict[str, Any]
Results = dict[str, dict[str, Record]]

_BEGIN, _END = "<!-- results: made by python -m benchmarks.results -->", "<!-- end of results -->"
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


def write_report(folder: Path, readme: Path | None = None) -> None:
    """Write `FOLDER.md` and `FOLDER.png` of the cells in a folder, and the table in a README."""
    results = load_results(folder)
    if not results:
        raise SystemExit(f"{folder} holds no results yet")
    page, figure = folder.with_suffix(".md"), folder.with_suffix(".png")
    page.write_text(markdown(results, figure.name))
    draw(results).savefig(figure)
    if readme is not None:
        readme.write_text(with_summary(readme.read_text(), results))
    print(f"{page}, {figure}")


def with_summary(readme: str, results: Results) -> str:
    """A README whose part between the two marks is the table of `summary`."""
    before, rest = readme.split(_BEGIN)
    _, after = rest.split(_END)
    return "\n".join([before + _BEGIN, *summary(results), _END + after])


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


def summary(results: Results) -> list[str]:
    """A row for each model, with the state and the query of the first task."""
    of_first = next(iter(results.values()))
    exact = [next((c["exact"] for c in cells.values() if c["metrics"]), None)
             for cells in results.values()]  # fmt: skip
    rows = [["exact", *("–" if value is None else f"{value:.3f}" for value in exact), "", ""]]
    for name in RIVALS:
        row = [name, *(_written(cells, name) for cells in results.values())]
        if any(row[1:]):
            cell = of_first.get(name, {"metrics": None})
            rows.append([*row, *(_cost(cell) if cell["metrics"] else ["", ""])])
    titles = (BENCHMARKS[task].title for task in results)
    return _table(["", *titles, "state", "query"], rows)


def overview(results: Results) -> list[str]:
    """A row for each task: the exact answer first, then the models; the best stands in bold."""
    rows = []
    for task, of_task in results.items():
        values = {name: _log_likelihood(cell) for name, cell in of_task.items()}
        best = max(value for value in values.values() if value is not None)
        exact = next((cell["exact"] for cell in of_task.values() if cell["metrics"]), None)
        row = [BENCHMARKS[task].title, "–" if exact is None else f"{exact:.3f}"]
        for name in RIVALS:
            text = _written(of_task, name)
            row.append(f"**{text}**" if text and values[name] == best else text)
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
        metrics, (state, query) = cell["metrics"], _cost(cell)
        rows.append([
            cell["model"],
            f"{metrics['log_likelihood']:.3f} ± {metrics['log_likelihood_stderr']:.3f}",
            f"{metrics['gap']:.3f}" if "gap" in metrics else "–",
            *(written(metrics[name]) for name, (_, written) in quality.items()),
            f"{cell['steps']:,}",
            f"{cell['parameters']:,}",
            state,
            f"{cell['bytes_per_point']:,.0f} bytes",
            f"{1e3 * cell['condition_seconds']:.1f} ms",
            query,
        ])  # fmt: skip
    return _table(columns, rows)


def _written(cells: dict[str, Record], name: str) -> str:
    """A model's log-likelihood; "–" if it cannot do the task, nothing if it is not trained yet."""
    if name not in cells:
        return ""
    value = _log_likelihood(cells[name])
    return "–" if value is None else f"{value:.3f}"


def _cost(cell: Record) -> tuple[str, str]:
    """The size of the state and the time of a query."""
    return f"{cell['state_bytes'] / 1024:,.1f} KiB", f"{1e3 * cell['query_seconds']:.1f} ms"


def _log_likelihood(cell: Record) -> float | None:
    return cell["metrics"] and cell["metrics"]["log_likelihood"]


def _each(cells: Iterable[Record], name: str) -> str:
    """The values of a field, each once."""
    return ", ".join(dict.fromkeys(f"{cell[name]:g}" if isinstance(cell[name], float) else
                                   str(cell[name]) for cell in cells))  # fmt: skip


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
