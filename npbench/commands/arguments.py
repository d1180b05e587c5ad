"""Types of arguments that several commands take."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from importlib import import_module
from math import nan
from pathlib import Path
from types import ModuleType

import torch

from npbench.errors import InputError


def size(text: str) -> int:
    """A number of points, such as 1000 or 1e3."""
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not (number >= 1 and number.is_integer()):
        raise ArgumentTypeError(f"{text} is no number of points")
    return int(number)


def columns(text: str) -> list[str]:
    """Names of columns, such as lat,lon."""
    names = text.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise ArgumentTypeError(f"{text} is no list of different columns, such as lat,lon")
    return names


def unit(text: str) -> tuple[str, str]:
    """The scaling of a column, such as hour=circular(24)."""
    name, equals, kind = text.rpartition("=")
    if not (name and equals and kind):
        raise ArgumentTypeError(f"{text} is no scaling of a column, such as rain=log")
    return name, kind


def levels(text: str) -> list[float]:
    """Probabilities, such as 0.05,0.95."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = [nan]
    if not all(0 < number < 1 for number in numbers):
        raise ArgumentTypeError(f"{text} is no list of probabilities between 0 and 1")
    return numbers


def device(text: str) -> torch.device:
    """A device that is there."""
    try:
        torch.zeros(1, device=text)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentTypeError(f"there is no device {text}") from error
    return torch.device(text)


def given(option: str, value: str | None) -> str:
    """The value that an option has from elsewhere.

    Raises:
        InputError: if it is not there either.
    """
    if value is None:
        raise InputError(f"{option} is missing")
    return value


def check_out(out: Path, *sources: Path) -> None:
    """Refuse to write a file onto a folder, or over what it is made from.

    Raises:
        InputError: if it is one of them.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file in it by --out")
    if out.exists() and any(path.exists() and out.samefile(path) for path in sources):
        raise InputError(f"{out} is what the result is made from; name another file by --out")


def imported(path: str) -> type:
    """A class that the user trusts, such as mine.Model, in the working folder or installed."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentTypeError(f"{path} cannot be imported: {error}") from error
    if not isinstance(found, type):
        raise ArgumentTypeError(f"{path} is no class")
    return found


def add_allow(parser: ArgumentParser) -> None:
    """Add `--allow`, which imports a class that a checkpoint may then name."""
    parser.add_argument(
        "--allow", type=imported, action="append", default=[], metavar="MODULE.CLASS",
        help="a class outside npbench that the checkpoint may name; its module is imported, which "
        "runs its code",
    )  # fmt: skip


def separator(text: str) -> str:
    """A character between columns; a tab is hard to type, and may be called so."""
    character = "\t" if text in ("tab", "\\t") else text
    if len(character) != 1:
        raise ArgumentTypeError(f"{text} is no single character, nor tab")
    return character


def add_table_format(parser: ArgumentParser) -> None:
    """Add how numbers stand in the files of points: `--separator`, `--decimal` and `--dates`."""
    parser.add_argument(
        "--separator", type=separator, metavar="CHAR",
        help="between the columns of a CSV file, such as ';' or tab, if it is not recognised",
    )  # fmt: skip
    parser.add_argument(
        "--decimal", choices=[".", ","], help="before the decimals in a CSV file, likewise"
    )
    parser.add_argument(
        "--dates", metavar="UNIT",
        help='what dates are as numbers, such as "days since 2020-01-01"',
    )  # fmt: skip


def add_device(parser: ArgumentParser) -> None:
    """Add `--device`, which must be there: cuda by default where there is one, else cpu."""
    parser.add_argument(
        "--device",
        type=device,
        default=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        help="cuda where there is one, else cpu",
    )


def add_engine(parser: ArgumentParser) -> None:
    """`--engine` and `--address`, for work that a cluster shares."""
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="ray: share the work among the processes of a Ray cluster (the extra npbench[ray])",
    )  # fmt: skip
    parser.add_argument(
        "--address", help="of the Ray cluster; by default one starts on this machine"
    )


def engine_of(options: Namespace) -> ModuleType | None:
    """The module of `--engine`, connected to the cluster at `--address`; None: this process.

    Raises:
        InputError: if Ray is not installed, or no cluster answers.
    """
    if options.engine == "local":
        if options.address:
            raise InputError("--address is for --engine ray")
        return None
    try:
        engine = import_module("npbench.interop.ray")
    except ModuleNotFoundError as error:
        raise InputError(f"--engine ray needs {error.name}: pip install 'npbench[ray]'") from error
    engine.connect(options.address)
    return engine
