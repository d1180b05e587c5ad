"""ListOps: nested operations on digits, drawn from the official grammar or read from its files."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from datamodules.loading import Part, at_least_one
from datamodules.sequences.base import LabelledSequences, TokenDataModule, starts_of
from datamodules.sequences.expressions import NAMES, floors, values_of
from datamodules.sequences.grammar import Grammar
from datamodules.sequences.listops_files import load_official
from npbench.errors import InputError
from npbench.files import whole_file

# This number is in the name of a cache. It must change when the expressions of a setting do.
_VERSION = 1
# How many expressions in a row may be ones that were drawn before.
_MOST_REPEATS = 10_000
_FILES = {
    Part.TRAIN: "basic_train.tsv",
    Part.VALIDATE: "basic_val.tsv",
    Part.TEST: "basic_test.tsv",
}


class ListOpsDataModule(TokenDataModule):
    """Expressions such as `[MAX 2 9 [MIN 4 7 ] 0 ]`, whose value, 0 to 9, is their class.

    Expressions are drawn from the official grammar, and kept in a cache. No two are the same, in
    one part or in two. A larger training set begins with the smaller one. With `path` they are read
    from the official files in place of that, `basic_train.tsv`, `basic_val.tsv` and
    `basic_test.tsv`. Tokens have the ids of `expressions.NAMES`; parentheses are no tokens, as they
    say nothing. Batches are made as `PassDataModule` says.

    Args:
        path: folder of the official files; None draws expressions.
        max_depth: depth at which all nodes are digits; that of the root is 1.
        max_args: most arguments of an operator; there are two at least.
        operator_probability: that a node is an operator.
        min_length: fewest tokens of an expression.
        max_length: most tokens.
        num_train: number of training expressions.
        num_val: number of validation expressions.
        num_test: number of test expressions.
        batch_size: expressions a training step, on each rank.
        eval_batch_size: expressions an evaluation step; it changes no result.
        seed: seed of the training expressions and of their order.
        eval_seed: seed of the validation and test expressions.
        cache_dir: folder of the caches.
        num_workers: processes that make batches; 0 makes them in the training process.

    Source: Nangia and Bowman, *ListOps: A Diagnostic Dataset for Latent Tree Learning*, NAACL 2018
    Student Research Workshop; in the setting of Tay et al., *Long Range Arena*, ICLR 2021.

    Example:
        >>> from tempfile import mkdtemp
        >>> sizes = {"num_train": 50, "num_val": 10, "num_test": 10, "cache_dir": mkdtemp()}
        >>> data = ListOpsDataModule(max_depth=4, min_length=10, max_length=40, **sizes)
        >>> data.training_batch(0).labels.shape
        torch.Size([32])
    """

    def __init__(
        self,
        path: str | Path | None = None,
        max_depth: int = 10,
        max_args: int = 10,
        operator_probability: float = 0.25,
        min_length: int = 501,
        max_length: int = 1999,
        num_train: int = 96_000,
        num_val: int = 2000,
        num_test: int = 2000,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        seed: int = 0,
        eval_seed: int = 0,
        cache_dir: str | Path = "data/listops",
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        at_least_one(num_train=num_train, num_val=num_val, num_test=num_test)
        self.path = path
        self.grammar = Grammar(max_depth, max_args, operator_probability, min_length, max_length)
        self.numbers = {Part.TRAIN: num_train, Part.VALIDATE: num_val, Part.TEST: num_test}
        self.eval_seed = eval_seed
        self.cache_dir = Path(cache_dir)
        self.classes = [str(digit) for digit in range(10)]

    @property
    def vocab_size(self) -> int:
        """Number of tokens: padding, one for what is unknown, digits, operators and their end."""
        return len(NAMES)

    def text_of(self, tokens: Integer[np.ndarray, "length"]) -> str:
        return " ".join(NAMES[token] for token in tokens)

    def floors(self) -> dict[str, float]:
        """The accuracy on the test expressions of whoever knows only a part of each; see
        `expressions.floors`. Guesses are learnt from 10,000 training expressions at most."""
        return floors(self.rows(Part.TRAIN).first(10_000), self.rows(Part.TEST))

    def _make_parts(self) -> dict[Part, LabelledSequences]:
        if self.path is not None:
            folder = Path(self.path)
            return {part: load_official(folder / name) for part, name in _FILES.items()}
        file = self._cache_file()
        if not file.is_file():
            parts = self._drawn()
            with whole_file(file) as unfinished, unfinished.open("wb") as opened:
                arrays: dict[str, Any] = {}
                for part, rows in parts.items():
                    for field, array in asdict(rows).items():
                        arrays[f"{part.name}_{field}"] = array
                np.savez(opened, **arrays)
        with np.load(file) as arrays:
            return {
                part: LabelledSequences(
                    *(arrays[f"{part.name}_{field}"] for field in ("tokens", "starts", "labels"))
                )
                for part in _FILES
            }

    def _cache_file(self) -> Path:
        setting = asdict(self.grammar) | {part.name: n for part, n in self.numbers.items()}
        setting |= {"seed": self.seed, "eval_seed": self.eval_seed}
        digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
        return self.cache_dir / f"v{_VERSION}-{digest}.npz"

    def _drawn(self) -> dict[Part, LabelledSequences]:
        """The expressions of all parts; those for testing come first, and training gets others."""
        seen: set[bytes] = set()
        parts = {}
        for part in (Part.TEST, Part.VALIDATE, Part.TRAIN):
            seed = self.seed if part == Part.TRAIN else self.eval_seed
            new = self._new(self.grammar.expressions((seed, int(part))), seen)
            expressions = [next(new) for _ in range(self.numbers[part])]
            tokens = np.concatenate(expressions)
            starts = starts_of(np.array([len(each) for each in expressions], np.int64))
            parts[part] = LabelledSequences(tokens, starts, values_of(tokens, starts))
        return parts

    def _new(
        self, expressions: Iterator[UInt8[np.ndarray, "length"]], seen: set[bytes]
    ) -> Iterator[UInt8[np.ndarray, "length"]]:
        """Those of the expressions that were not drawn before."""
        repeats = 0
        for expression in expressions:
            key = hashlib.blake2b(expression.tobytes(), digest_size=12).digest()
            if key not in seen:
                seen.add(key)
                repeats = 0
                yield expression
            elif (repeats := repeats + 1) > _MOST_REPEATS:
                raise InputError(
                    f"this grammar has hardly more than {len(seen):,} different expressions of "
                    f"{self.grammar.min_length} to {self.grammar.max_length} tokens; ask for fewer "
                    f"of them, or for longer ones"
                )
