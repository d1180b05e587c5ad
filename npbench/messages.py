"""One sentence out of an argument parser's report."""

import difflib
import re
from collections.abc import Sequence

# Lines of jsonargparse that tell how it looked, not what is wrong.
_NOISE = re.compile(
    r"Does not validate against any|^Subtypes:|^Errors:|Expected a <class 'NoneType'>|"
    r"^Given value"
)
# How it reports a name that it does not know, on the command line and in a file.
_UNKNOWN = re.compile(
    r"unrecognized arguments: (--\S+)|Option '(\S+)' is not accepted|"
    r"does not accept option '(\S+)'"
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
        if close := difflib.get_close_matches(name, known, n=1):
            sentence += f"; did you mean {close[0]}?"
    return sentence
