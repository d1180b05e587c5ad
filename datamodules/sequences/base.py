"""What the data modules of token sequences share: labelled sequences, and batches of them."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
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
        labels: class of each sequence; None where it is not known.
    """

    tokens: Integer[np.ndarray, "tokens"]
    starts: Int64[np.ndarray, "sequences_1"]
    labels: Int64[np.ndarray, "sequences"] | None

    @classmethod
    def of(
        cls, sequences: Iterable[Integer[np.ndarray, "_"]], labels: Sequence[int] | None
    ) -> "LabelledSequences":
        """These sequences."""
        parts = list(sequences)
        lengths = np.array([len(part) for part in parts], np.int64)
        tokens = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
        known = None if labels is None else np.array(labels, np.int64)
        return cls(tokens, starts_of(lengths), known)

    def __len__(self) -> int:
        return len(self.starts) - 1

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
        labels = None if self.labels is None else self.labels[:number]
        return LabelledSequences(self.tokens[: starts[-1]], starts, labels)

    def batch(self, rows: Int64[np.ndarray, "batch"]) -> TokenSequences:
        """The batch of these sequences, padded to the longest one."""
        first, stop = self.starts[rows, None], self.starts[rows + 1, None]
        index = first + np.arange(int((stop - first).max(initial=1)))
        mask = index < stop
        tokens = self.tokens[np.minimum(index, len(self.tokens) - 1)].astype(np.int64)
        tokens = np.where(mask, tokens, PADDING)
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return TokenSequences(torch.from_numpy(tokens), labels, torch.from_numpy(mask))


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
        """The sequences of each part; those for prediction only if they are none of the test."""

    @abstractmethod
    def text_of(self, tokens: Integer[np.ndarray, "length"]) -> str:
        """A sequence as text."""

    def rows(self, part: Part) -> LabelledSequences:
        """The sequences of a part; `Part.PREDICT` has those of the test, unless it has its own."""
        if not self._parts:
            self._parts = self._make_parts()
        if part == Part.PREDICT:
            return self._parts.get(part, self._parts[Part.TEST])
        return self._parts[part]

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
