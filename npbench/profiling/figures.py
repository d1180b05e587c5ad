"""Peak memory and time of models, drawn."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from npbench.colors import colors_of
from npbench.profiling.phases import PHASES


def profile_figure(profiles: dict[str, pd.DataFrame]) -> Figure:
    """Peak memory (above) and time (below) against the context's size.

    There is a column for each phase, and a line for each model. Of a single size, a table.

    Args:
        profiles: the rows of `profile`, by the model's name.
    """
    phases = [p for p in PHASES if any((rows["phase"] == p).any() for rows in profiles.values())]
    sizes = {size for rows in profiles.values() for size in rows["num_context"]}
    if len(sizes) == 1:
        return _profile_table(profiles, phases, sizes.pop())
    colors = colors_of(profiles)
    figure = Figure(figsize=(1 + 2.4 * len(phases), 5.1), layout="constrained", dpi=110)
    axes = figure.subplots(2, len(phases), squeeze=False, sharex=True, sharey="row")
    for column, phase in zip(axes.T, phases, strict=True):
        for name, rows in profiles.items():
            measured = rows[(rows["phase"] == phase) & rows["seconds"].notna()]
            mebibytes = measured["peak_bytes"].astype(float) / 2**20
            for axis, values in zip(column, (mebibytes, measured["seconds"].astype(float))):
                axis.loglog(measured["num_context"], values, "o-", ms=3, color=colors[name],
                            label=name)  # fmt: skip
        column[0].set_title(phase, fontsize=9)
        column[1].set_xlabel("size of context")
        for axis in column:
            axis.grid(alpha=0.2)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("peak memory (MiB)")
    axes[1, 0].set_ylabel("seconds")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6,
                  fontsize=8, frameon=False)  # fmt: skip
    return figure


def _profile_table(
    profiles: dict[str, pd.DataFrame], phases: Sequence[str], num_context: int
) -> Figure:
    """Peak memory and time of each model and phase, as text."""
    cells = []
    for rows in profiles.values():
        by_phase = rows.set_index("phase").to_dict("index")
        cells.append([_cell(by_phase.get(phase)) for phase in phases])
    height = 0.75 + 0.3 * (len(cells) + 1)
    figure = Figure(figsize=(2 + 1.9 * len(phases), height), layout="constrained", dpi=110)
    axis = figure.subplots()
    axis.axis("off")
    axis.set_title(f"peak memory and time, {num_context:,} points or events of context", fontsize=9)
    table = axis.table(cells, rowLabels=list(profiles), colLabels=list(phases), loc="center",
                       cellLoc="right", edges="horizontal")  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.4)
    for index, color in enumerate(colors_of(profiles).values()):
        table[index + 1, -1].get_text().set_color(color)
    return figure


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if pd.isna(row["seconds"]):
        return "out of memory"
    seconds = row["seconds"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
    return f"{row['peak_bytes'] / 2**20:,.1f} MiB, {time}"
