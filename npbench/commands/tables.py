"""Tables for the terminal."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table


def table_of(columns: Sequence[str], caption: str | None = None) -> Table:
    """An empty table of numbers: the first column, of names, to the left, the others to the right.

    Example:
        >>> table = table_of(["model", "state"], "one task")
        >>> table.add_row("CMANP", "33.0 KiB")
    """
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table


def metrics_table(results: Mapping[str, float]) -> Table:
    """What a test or a validation has measured, in four digits: a row for each metric.

    Args:
        results: the values by names such as "test/rmse"; of several sets of test tasks
            "test/rmse/seen" and so on, each of which gets a column.

    Example:
        >>> table = metrics_table({"test/rmse": 0.6581516861915588})
        >>> [list(column.cells) for column in table.columns]
        [['rmse'], ['0.6582']]
    """
    stages = {name.split("/")[0] for name in results}
    cells: dict[str, dict[str, str]] = {}
    for name, value in results.items():
        _, metric, *part = name.split("/")
        cells.setdefault(metric, {})[" ".join(part)] = f"{value:.4g}"
    parts = list(dict.fromkeys(part for row in cells.values() for part in row))
    table = table_of([" ".join(stages), *parts])
    for metric, row in cells.items():
        table.add_row(metric, *(row.get(part, "") for part in parts))
    return table
