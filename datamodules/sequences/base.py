"""What the data modules of token sequences share: labelled sequences, and batches of them."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64, Integer

from datamodules.loading import Part
from datamodules.passes import PassDataModule
from npbench.sequences import TokenSequences

# The id that stands at padding.
PADDING = 0


@dataclass(frozen=True, eq=False)
class LabelledSequences:
    """Sequences of tokens, one after another in memory, and the class of each.

    Args:
        tokens: ids of all tokens.
        starts: index of the first token of each sequence, and behind the last token.
        labels: class of each sequence.
    """

    tokens: Integer[np.ndarray, "tokens"]
    starts: Int64[np.ndarray, "sequences_1"]
    labels: Int64[np.ndarray, "sequences"]

    @classmethod
    def of(
        cls, sequences: Iterable[Integer[np.ndarray, "_"]], labels: Iterable[int]
    ) -> "LabelledSequences":
        """These sequences."""
        parts = list(sequences)
        lengths = np.array([len(part) for part in parts], np.int64)
        tokens = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
        return cls(tokens, starts_of(lengths), np.array(list(labels), np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Integer[np.ndarray, "length"]:
        """The tokens of a sequence."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> Int64[np.ndarray, "sequences"]:
        return np.diff(self.starts)

    @cached_property
    def by_length(self) -> Int64[np.ndarray, "sequences"]:
        """The indices of the sequences, short ones first."""
        return np.argsort(self.lengths, kind="stable")

    def first(self, number: int) -> "LabelledSequences":
        """The first ones of them."""
        number = min(number, len(self))
        starts = self.starts[: number + 1]
        return LabelledSequences(self.tokens[: starts[-1]], starts, self.labels[:number])

    def batch(self, rows: Int64[np.ndarray, "batch"]) -> TokenSequences:
        """The batch of these sequences, padded to the longest one."""
        first, stop = self.starts[rows, None], self.starts[rows + 1, None]
        index = first + np.arange(int((stop - first).max(initial=1)))
        mask = index < stop
        tokens = self.tokens[np.minimum(index, len(self.tokens) - 1)].astype(np.int64)
        tokens = np.where(mask, tokens, PADDING)
        labels, *rest = (torch.from_numpy(z) for z in (self.labels[rows], tokens, mask))
        return TokenSequences(rest[0], labels, rest[1])


class TokenDataModule(PassDataModule):
    """Makes batches of labelled sequences, in the order that `PassDataModule` describes.

    Args:
        batch_size: sequences a training step, on each rank.
        eval_batch_size: sequences an evaluation step; it changes no result.
        seed: seed of the order of the training sequences.
        num_workers: processes that make batches; 0 makes them in the training process.
    """

    classes: list[str]
    """The names of the classes, in the order of their indices."""

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        self._parts: dict[Part, LabelledSequences] = {}

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens, padding included."""

    @abstractmethod
    def _make_parts(self) -> dict[Part, LabelledSequences]:
        """The sequences for training, validation and testing."""

    @abstractmethod
    def text_of(self, tokens: Integer[np.ndarray, "length"]) -> str:
        """A sequence as text."""

    def rows(self, part: Part) -> LabelledSequences:
        """The sequences of a part; `Part.PREDICT` has those of the test."""
        if not self._parts:
            self._parts = self._make_parts()
        return self._parts[Part.TEST if part == Part.PREDICT else part]

    def named_predictions(self, table: pa.Table) -> pa.Table:
        """The predictions with the text in place of its tokens, and classes by their names."""
        tokens = (np.array(row.split(), np.int64) for row in table["tokens"].to_pylist())
        texts = [self.text_of(row) for row in tokens]
        columns = {"sequence": table["sequence"], "text": pa.array(texts, pa.string())}
        names = pa.array(self.classes)
        for name in ("label", "prediction"):
            if name in table.column_names:
                columns[name] = names.take(table[name].combine_chunks())
        for index, name in enumerate(self.classes):
            columns[f"probability_{name}"] = table[f"probability_{index}"]
        return pa.table(columns)


def starts_of(lengths: Int64[np.ndarray, "rows"]) -> Int64[np.ndarray, "rows_1"]:
    """Where rows of these lengths begin that lie one after another, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
