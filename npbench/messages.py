"""What the user is told: one sentence in place of an argument parser's report, and no noise."""

import difflib
import inspect
import logging
import re
import shlex
import sys
import warnings
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

from npbench.errors import DataWarning

_PYTHON_S_FORMAT = warnings.formatwarning
# These lines of jsonargparse tell how it searched, not what is wrong.
_NOISE = re.compile(
    r"Does not validate against any|^Subtypes:|^Errors:|Expected a <class 'NoneType'>|"
    r"^Given value"
)
# So Python reports a class that a module has not, and a module that is not there.
_NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")
# Lightning's lines that tell nothing, or what another line tells.
_NOTICE = re.compile(
    r"💡 Tip|^[TH]PU available|^Loaded model weights from|^Trainer already configured with model"
)
# So it reports a name that it does not know, on the command line and in a file.
_UNKNOWN = re.compile(
    r"unrecognized arguments: (--\S+)|Option '(\S+)' is not accepted|"
    r"does not accept option '(\S+)'|there is no command '(\S+)'"
)


def explain(report: str, options: Sequence[str] = ()) -> str:
    """What is wrong, and the likely meaning of a misspelt name.

    Args:
        report: jsonargparse's message, which may run over many lines.
        options: the options there are, "--" before their names.

    Example:
        >>> explain("unrecognized arguments: --trainer.max_stepz 10", ["--trainer.max_steps"])
        'unrecognized arguments: --trainer.max_stepz 10; did you mean trainer.max_steps?'
    """
    lines = [line.strip().removeprefix("- ") for line in report.splitlines()]
    sentence = " ".join(line for line in lines if line and not _NOISE.search(line))
    if match := _UNKNOWN.search(sentence):
        name = next(group for group in match.groups() if group).removeprefix("--")
        known = [option.removeprefix("--") for option in options]
        sentence += _suggestion(name, [other for other in known if other != name])
    elif match := _NO_CLASS.search(sentence):
        module, name = match.groups()
        classes = inspect.getmembers(sys.modules.get(module), inspect.isclass)
        sentence += _suggestion(name, [each for each, _ in classes], f"{module}.")
    elif match := _NO_MODULE.search(sentence):
        package, _, _ = match[1].partition(".")
        if package not in sys.modules:
            sentence += (
                f"; modules are looked for in the working folder, in PYTHONPATH and among what is "
                f"installed: change to the folder that holds {package}, or add it to PYTHONPATH"
            )
    return sentence


def _suggestion(name: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def refuse(report: str, options: Sequence[str], command: str) -> NoReturn:
    """End with what is wrong with a command's arguments, and exit code 2."""
    print(f"npbench: error: {explain(report, options)}", file=sys.stderr)
    print(f"(all options: {command} --help)", file=sys.stderr)
    raise SystemExit(2)


def options_of(parser: ArgumentParser) -> list[str]:
    """All options of a parser, and its subcommands with theirs."""
    options: list[str] = []
    for action in parser._actions:
        options += action.option_strings
        if isinstance(action.choices, dict):
            for name, subparser in action.choices.items():
                options += [name, *options_of(subparser)]
    return options


class CommandParser(ArgumentParser):
    """The arguments of a command that is not the trainer's."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"npbench {command}",
            description=description,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_with_fields(self, args: Sequence[str], section: str) -> tuple[Namespace, list[str]]:
        """The options, and those that set fields of a configuration's section: --section.FIELD."""
        options, fields = self.parse_known_args(args)
        if fields and not fields[0].startswith(f"--{section}."):
            self.error(f"unrecognized arguments: {shlex.join(fields)}")
        return options, fields

    def error(self, message: str) -> NoReturn:
        refuse(message, options_of(self), self.prog)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """How a warning is shown: one about the data in one line, others as Python shows them."""
    if issubclass(category, DataWarning):
        return f"npbench: warning: {message}\n"
    return _PYTHON_S_FORMAT(message, category, filename, lineno, line)


def quieten() -> None:
    """Leave out Lightning's advertisements, and warnings that no user can do anything about."""
    for message in (
        ".*does not have many workers.*",
        ".*torch.jit.script.* is deprecated.*",
        ".*isinstance\\(treespec, LeafSpec\\).* is deprecated.*",
        ".*`IterableDataset` has `__len__` defined.*",
        ".*Previous log files in this directory will be deleted.*",
        ".*is smaller than the logging interval.*",
        ".*The dirpath has changed from.*",
        ".*infer the batch indices fetched.*",
    ):
        warnings.filterwarnings("ignore", message)
    warnings.formatwarning = _format_warning
    notices = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    notices.addFilter(lambda record: not _NOTICE.search(record.getMessage()))
