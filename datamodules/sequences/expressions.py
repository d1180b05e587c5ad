"""Expressions of ListOps as token ids: what they are worth, and how much of them one must know."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer

from datamodules.sequences.base import LabelledSequences
from npbench.errors import InputError

# Ids: 0 is padding, 1 what is unknown, then the digits, the operators, and the end of an operator.
UNKNOWN, DIGIT, OPERATOR, CLOSE = 1, 2, 12, 16
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
NAMES = ("", "?", *"0123456789", *OPERATORS, "]")
_MIN, _MAX, _MED, _SM = range(4)
# Number of expressions that are evaluated together.
_TOGETHER = 1024
# What is not known of an expression.
_NOTHING = -1


class Structure(NamedTuple):
    """Where each token of expressions that lie one after another stands in its tree."""

    depth: Int64[np.ndarray, "tokens"]
    """Number of operators around a token: that of the root is 0, of a closing one as of its own."""
    parent: Int64[np.ndarray, "tokens"]
    """Index of the operator around a token; −1 of a root."""


def structure_of(tokens: Integer[np.ndarray, "tokens"]) -> Structure:
    """The structure of balanced expressions, one after another."""
    opens, closes = is_operator(tokens), tokens == CLOSE
    depth = np.cumsum(opens, dtype=np.int64) - np.cumsum(closes, dtype=np.int64) - opens
    parent = np.full(len(tokens), -1)
    for level in range(int(depth.max(initial=0))):
        operators = np.flatnonzero(opens & (depth == level))
        inside = np.flatnonzero((depth == level + 1) & ~closes)
        parent[inside] = operators[np.searchsorted(operators, inside) - 1]
    return Structure(depth, parent)


def is_operator(tokens: Integer[np.ndarray, "tokens"]) -> Bool[np.ndarray, "tokens"]:
    return (tokens >= OPERATOR) & (tokens < CLOSE)


def values_of(
    tokens: Integer[np.ndarray, "tokens"],
    starts: Int64[np.ndarray, "expressions_1"],
    max_depth: int | None = None,
) -> Int64[np.ndarray, "expressions"]:
    """The value of each expression, 0 to 9.

    `[MED` of an even number of arguments is the mean of the middle two, rounded down, and `[SM` the
    sum modulo 10. An expression may be a digit alone.

    Args:
        tokens: ids of balanced expressions, one after another.
        starts: index of the first token of each, and behind the last.
        max_depth: how deep operators are known; deeper ones are left out from the arguments of
            those around them. Where nothing is left, the value is −1.

    Example:
        >>> expression = np.array([NAMES.index(name) for name in "[SM 9 [MAX 2 3 ] ]".split()])
        >>> values_of(expression, np.array([0, 7])), values_of(expression, np.array([0, 7]), 1)
        (array([2]), array([9]))
    """
    values = []
    for first in range(0, len(starts) - 1, _TOGETHER):
        some = starts[first : first + _TOGETHER + 1]
        values.append(_values_of_some(tokens[some[0] : some[-1]], some - some[0], max_depth))
    return np.concatenate([np.zeros(0, np.int64), *values])


def _values_of_some(
    tokens: Integer[np.ndarray, "tokens"],
    starts: Int64[np.ndarray, "expressions_1"],
    max_depth: int | None,
) -> Int64[np.ndarray, "expressions"]:
    depth, parent = structure_of(tokens)
    digits = (tokens >= DIGIT) & (tokens < OPERATOR)
    values = np.where(digits, tokens.astype(np.int64) - DIGIT, _NOTHING)
    deepest = int(depth.max(initial=0))
    for level in range(deepest if max_depth is None else min(deepest, max_depth), 0, -1):
        known = np.flatnonzero((depth == level) & (values >= 0))
        if len(known):
            operators, results = _applied(tokens, parent[known], values[known])
            values[operators] = results
    return values[starts[:-1]]


def _applied(
    tokens: Integer[np.ndarray, "tokens"],
    parents: Int64[np.ndarray, "arguments"],
    arguments: Int64[np.ndarray, "arguments"],
) -> tuple[Int64[np.ndarray, "operators"], Int64[np.ndarray, "operators"]]:
    """(index of each operator, its value), from its arguments, which lie together."""
    order = np.lexsort((arguments, parents))
    parents, ordered = parents[order], arguments[order]
    first = np.flatnonzero(np.diff(parents, prepend=-1))
    operators = parents[first]
    number = np.diff(first, append=len(parents))
    last = first + number - 1
    middle = (ordered[first + (number - 1) // 2] + ordered[first + number // 2]) // 2
    total = np.add.reduceat(ordered, first) % 10
    kinds = tokens[operators].astype(np.int64) - OPERATOR
    choices = {_MIN: ordered[first], _MAX: ordered[last], _MED: middle, _SM: total}
    return operators, np.choose(kinds, [choices[kind] for kind in range(4)])


def floors(
    train: LabelledSequences, test: LabelledSequences, depths: Sequence[int] = (2, 3)
) -> dict[str, float]:
    """The accuracy on `test` of whoever knows only a part of each expression.

    A model has learnt something of the task only above the second of them.

    - `majority`: the answer that is most frequent in `train`.
    - `root_operator`: for each root operator, the answer that is most frequent with it in `train`.
    - `own_digits`: the root operator applied to its own plain digits; `root_operator` where it has
      none.
    - `depth_2`, `depth_3`, …: all operators down to that depth (the root's is 1) applied to their
      plain digits and to each other.

    Args:
        train: expressions to learn guesses from.
        test: expressions to guess.
        depths: of the operators that are known.
    """
    if train.labels is None or test.labels is None:
        raise InputError("floors take expressions whose values are known")
    majority = _most_frequent(train.labels)
    roots, guesses = test.tokens[test.starts[:-1]], np.full(len(test), majority)
    of_train = train.tokens[train.starts[:-1]]
    for root in np.unique(of_train):
        guesses[roots == root] = _most_frequent(train.labels[of_train == root])
    found = {
        "majority": float((test.labels == majority).mean()),
        "root_operator": float((test.labels == guesses).mean()),
    }
    for depth in (1, *depths):
        values = values_of(test.tokens, test.starts, depth)
        name = "own_digits" if depth == 1 else f"depth_{depth}"
        known = np.where(values < 0, guesses, values)
        found[name] = float((test.labels == known).mean())
    return found


def _most_frequent(labels: Int64[np.ndarray, "sequences"]) -> int:
    return int(np.bincount(labels, minlength=10).argmax())
