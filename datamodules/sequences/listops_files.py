"""The official files of ListOps."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from datamodules.sequences.base import LabelledSequences
from datamodules.sequences.expressions import CLOSE, DIGIT, NAMES, OPERATOR, OPERATORS, is_operator
from npbench.errors import InputError

_HEADER = "Source\tTarget"
# Each token as one byte, so that a line is read in a few passes.
_LETTERS = {name: chr(ord("a") + index) for index, name in enumerate(OPERATORS)}
_IDS = np.zeros(256, np.uint8)
for _index, _name in enumerate(NAMES):
    if _name and _name != "?":
        _IDS[ord(_LETTERS.get(_name, _name))] = _index
# Some call the end of an operator so, which a tokeniser would split from it otherwise.
_IDS[ord("X")] = CLOSE


def load_official(path: Path) -> LabelledSequences:
    """The expressions of a file: a header, and on each line an expression and its value.

    Parentheses are left out. The values are those of the file, which nothing computes anew.

    Args:
        path: a file with the columns Source and Target, separated by a tab.

    Raises:
        InputError: if there is no such file or header, an expression is not balanced or has an
            unknown token, or a value is no digit; it names the line.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}; ListOps has basic_train.tsv, _val.tsv and _test.tsv")
    try:
        lines = path.read_text("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no file of ListOps: {error}") from error
    if not lines or lines[0] != _HEADER:
        raise InputError(
            f"{path}, line 1: the header is {lines[0] if lines else ''!r} in place of Source and "
            f"Target, with a tab between them"
        )
    expressions, labels = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        where = f"{path}, line {number}"
        source, *rest = line.split("\t")
        if len(rest) != 1:
            raise InputError(f"{where}: there are {len(rest)} tabs, and one is expected")
        if rest[0] not in NAMES[DIGIT:OPERATOR]:
            raise InputError(f"{where}: the value {rest[0]!r} is no digit from 0 to 9")
        expressions.append(parsed(source, where))
        labels.append(int(rest[0]))
    if not labels:
        raise InputError(f"{path} has no expressions behind its header")
    return LabelledSequences.of(expressions, labels)


def parsed(source: str, where: str) -> UInt8[np.ndarray, "length"]:
    """The ids of an expression's tokens, without parentheses.

    Args:
        source: tokens with blanks between them.
        where: file and line, for messages.

    Raises:
        InputError: if it is empty, not balanced, or has an unknown token.

    Example:
        >>> parsed("( ( ( [MED 3 ) 4 ) ] )", "here")
        array([14,  5,  6, 16], dtype=uint8)
    """
    short = source
    for name, letter in _LETTERS.items():
        short = short.replace(name, letter)
    symbols = short.replace("(", "").replace(")", "").split()
    text = "".join(symbols)
    tokens = _IDS[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
    if len(text) != len(symbols) or not tokens.all():
        known = {*NAMES[DIGIT:], "X", "(", ")"}
        unknown = next((token for token in source.split() if token not in known), short)
        raise InputError(f"{where}: the token {unknown!r} is none of {', '.join(sorted(known))}")
    if not len(tokens):
        raise InputError(f"{where}: the expression is empty")
    _check_balance(tokens, source, where)
    return tokens


def _check_balance(tokens: UInt8[np.ndarray, "length"], source: str, where: str) -> None:
    opens = is_operator(tokens)
    inside = np.cumsum(opens.astype(np.int64) - (tokens == CLOSE))
    if inside[-1] or (inside < 0).any() or source.count("(") != source.count(")"):
        raise InputError(f"{where}: the expression is not balanced: each [ takes a ], each ( a )")
    if (inside[:-1] == 0).any():
        raise InputError(f"{where}: there is more than one expression")
    if (opens[:-1] & (tokens[1:] == CLOSE)).any():
        raise InputError(f"{where}: an operator has no arguments")
