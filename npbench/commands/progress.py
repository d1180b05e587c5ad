"""The bar that shows how far a command has come."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn


def progress_bar() -> Progress:
    """A bar that leaves nothing behind, and is not there where the output goes into a file."""
    console = Console()
    columns = "[progress.description]{task.description}", BarColumn(), MofNCompleteColumn()
    return Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
