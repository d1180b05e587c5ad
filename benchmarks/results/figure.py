"""The figure of the results: what accuracy costs in bytes of state and in time of a query."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from benchmarks.results.cell import NUM_CONTEXT, NUM_TARGETS
from benchmarks.results.rivals import RIVALS
from benchmarks.results.tasks import BENCHMARKS
from npbench.colors import EXACT, colors_of

_MARKERS = {"CMANP-small": "s", "TNP-KR-deep-kernel": "s", "TNP-KR-performer": "^"}
_COSTS = {
    "state_bytes": (f"bytes of the state of {NUM_CONTEXT:,} points", 1.0),
    "query_seconds": (f"milliseconds to query {NUM_TARGETS:,} targets", 1e3),
}


def draw(results: dict[str, dict[str, dict[str, Any]]]) -> Figure:
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
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
