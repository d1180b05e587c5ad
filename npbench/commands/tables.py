"""Tables for the terminal."""

from collections.abc import Sequence

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
