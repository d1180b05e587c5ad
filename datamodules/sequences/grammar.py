"""The grammar of ListOps, from which expressions are drawn many at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from datamodules.sequences.base import starts_of
from datamodules.sequences.expressions import CLOSE, DIGIT, OPERATOR, OPERATORS
from npbench.errors import InputError

# Number of trees that are drawn together.
_TOGETHER = 8192


@dataclass(frozen=True)
class Grammar:
    """Which expressions there are, and how likely each is.

    A node is an operator with a probability, unless it is as deep as operators may not be, and else
    a digit, uniform in 0–9. Operators and their numbers of arguments are uniform. An expression has
    a token for each digit and two for each operator. The defaults are those of Long Range Arena.

    Args:
        max_depth: depth at which all nodes are digits; that of the root is 1.
        max_args: most arguments of an operator; there are two at least.
        operator_probability: that a node is an operator.
        min_length: fewest tokens of an expression.
        max_length: most tokens.

    Source: Nangia and Bowman, *ListOps*, 2018; Tay et al., *Long Range Arena*, ICLR 2021.
    """

    max_depth: int = 10
    max_args: int = 10
    operator_probability: float = 0.25
    min_length: int = 501
    max_length: int = 1999

    def __post_init__(self) -> None:
        if self.max_depth < 2 or self.max_args < 2:
            raise InputError(
                f"max_depth={self.max_depth} and max_args={self.max_args} must be 2 or more"
            )
        if not 0 < self.operator_probability <= 1:
            raise InputError(
                f"operator_probability={self.operator_probability} must be above 0, and 1 or less"
            )
        if not 1 <= self.min_length <= self.max_length:
            raise InputError(
                f"min_length={self.min_length} must be 1 or more, and not above "
                f"max_length={self.max_length}"
            )

    def expressions(self, seed: tuple[int, ...]) -> Iterator[UInt8[np.ndarray, "length"]]:
        """Expressions without end, as token ids; they are a function of the seed."""
        random = np.random.default_rng(seed)
        while True:
            levels = self._trees(random)
            tokens, starts = _written(levels)
            for start, stop in pairwise(starts):
                yield tokens[start:stop]

    def _trees(self, random: np.random.Generator) -> list["_Level"]:
        """The trees of one draw whose lengths fit, level by level."""
        levels = [_Level(np.arange(_TOGETHER), np.zeros(_TOGETHER, np.int64))]
        lengths = np.zeros(_TOGETHER, np.int64)
        for depth in range(1, self.max_depth + 1):
            level = levels[-1]
            level.draw(random, 0.0 if depth == self.max_depth else self.operator_probability)
            lengths += np.bincount(level.tree, level.own_lengths, _TOGETHER).astype(np.int64)
            # Trees that are too long already need not grow on.
            grows = (lengths <= self.max_length)[level.tree] & level.is_operator
            level.arguments[grows] = random.integers(2, self.max_args, grows.sum(), endpoint=True)
            levels.append(level.children())
        fits = (lengths >= self.min_length) & (lengths <= self.max_length)
        kept: list[_Level] = []
        for level in levels[:-1]:
            kept.append(level.only(fits, kept[-1] if kept else None))
        return kept


class _Level:
    """All nodes of one depth; those of one parent lie together, in the order of the parents.

    Args:
        tree: the tree of each node.
        parent: index of its parent in the level above.
    """

    def __init__(
        self, tree: Int64[np.ndarray, "nodes"], parent: Int64[np.ndarray, "nodes"]
    ) -> None:
        self.tree = tree
        self.parent = parent
        self.token = np.zeros(len(tree), np.uint8)
        self.arguments = np.zeros(len(tree), np.int64)
        self.kept = np.arange(len(tree))

    @property
    def is_operator(self) -> Bool[np.ndarray, "nodes"]:
        return self.token >= OPERATOR

    @property
    def own_lengths(self) -> Int64[np.ndarray, "nodes"]:
        """The tokens of each node, without its arguments."""
        return 1 + self.is_operator.astype(np.int64)

    def draw(self, random: np.random.Generator, probability: float) -> None:
        """Draw which nodes are which operator or digit."""
        number = len(self.tree)
        digits = random.integers(DIGIT, OPERATOR, number)
        operators = random.integers(OPERATOR, OPERATOR + len(OPERATORS), number)
        self.token = np.where(random.random(number) < probability, operators, digits)
        self.token = self.token.astype(np.uint8)

    def children(self) -> "_Level":
        """The level below, before anything of it is drawn."""
        parent = np.repeat(np.arange(len(self.tree)), self.arguments)
        return _Level(self.tree[parent], parent)

    def only(self, trees: Bool[np.ndarray, "trees"], above: "_Level | None") -> "_Level":
        """The nodes of some trees alone, whose parents are in what is left of the level above."""
        chosen = np.flatnonzero(trees[self.tree])
        parent = self.parent[chosen]
        if above is not None:
            parent = np.searchsorted(above.kept, parent)
        level = _Level(self.tree[chosen], parent)
        level.token, level.arguments = self.token[chosen], self.arguments[chosen]
        level.kept = chosen
        return level


def _written(
    levels: list[_Level],
) -> tuple[UInt8[np.ndarray, "tokens"], Int64[np.ndarray, "trees_1"]]:
    """The trees as token ids, one after another, and where each begins."""
    sizes = [level.own_lengths for level in levels]
    for above, below, inner in zip(levels[-2::-1], levels[:0:-1], range(len(levels) - 1, 0, -1)):
        inside = np.bincount(below.parent, sizes[inner], len(above.tree))
        sizes[inner - 1] = sizes[inner - 1] + inside.astype(np.int64)
    starts = starts_of(sizes[0])
    tokens = np.zeros(starts[-1], np.uint8)
    first = starts[:-1]
    for number, (level, size) in enumerate(zip(levels, sizes)):
        if number:
            # A node begins behind its parent's token and its elder siblings.
            before = np.cumsum(size) - size
            eldest = np.flatnonzero(np.diff(level.parent, prepend=-1))
            before -= np.repeat(before[eldest], np.diff(eldest, append=len(size)))
            first = first[level.parent] + 1 + before
        tokens[first] = level.token
        tokens[(first + size - 1)[level.is_operator]] = CLOSE
    return tokens, starts
