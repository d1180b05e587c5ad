"""The table and the figure of the results."""

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.fine_tuning.methods import AS_IT_COMES, OF_ALL, OF_EACH, SCRATCH, TUNED
from npbench.commands.tables import table_of


def show(results: pd.DataFrame) -> None:
    """Print a table for each data set."""
    columns = ["", "log-likelihood", "gain", "over scratch", "RMSE", "95 %", "seconds"]
    pairs = [("log_likelihood", "stderr"), ("gain", "gain_stderr"),
             ("over_scratch", "over_scratch_stderr")]  # fmt: skip
    for name, rows in results.groupby("data", sort=False):
        table = table_of(columns, f"{name}: per held-out value, ± the standard error")
        for _, row in rows.iterrows():
            steps = f", {row['steps']} steps" if row["steps"] else ""
            cells = (
                "–" if pd.isna(row[value]) else f"{row[value]:.3f} ± {row[error]:.3f}"
                for value, error in pairs
            )
            table.add_row(
                f"{row['method']}{steps}", *cells, f"{row['rmse']:.3g}",
                f"{row['coverage_95']:.1%}", f"{row['seconds']:.1f}",
            )  # fmt: skip
        Console(width=120).print(table)


def draw(results: pd.DataFrame) -> Figure:
    """The gain on the model as it comes, against steps. Methods without steps are level lines,
    unless they lose."""
    names = results["data"].unique()
    figure = Figure(figsize=(4.6 * len(names), 3.4), layout="constrained", dpi=110)
    styles = {TUNED: ("o-", "#8a5cb0"), SCRATCH: ("o--", "#4d5a66")}
    lines = {OF_EACH: "--", OF_ALL: ":"}
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        rows = results[results["data"] == name]
        for method, (style, color) in styles.items():
            shown = rows[rows["method"] == method]
            axis.errorbar(
                shown["steps"], shown["gain"], shown["gain_stderr"], fmt=style, color=color, ms=4,
                capsize=3, label=method,
            )  # fmt: skip
        for method, line in lines.items():
            for level in rows.loc[(rows["method"] == method) & (rows["gain"] > 0), "gain"]:
                axis.axhline(level, ls=line, color="#c8402f", lw=1, label=method)
        axis.axhline(0.0, color="#9aa3aa", lw=1, label=AS_IT_COMES)
        axis.set(title=name, xlabel="steps")
        axis.spines[["top", "right"]].set_visible(False)
    axis = figure.axes[0]
    axis.set_ylabel("nats per held-out value gained")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=5,
                  fontsize=8, frameon=False)  # fmt: skip
    return figure
