"""Texts of classes, byte by byte."""

from pathlib import Path

import numpy as np
from jaxtyping import Integer

from datamodules.loading import Part, at_least_one
from datamodules.seeding import uniform_hash
from datamodules.sequences.base import LabelledSequences, TokenDataModule
from datamodules.sequences.text_files import LabelledText, load_texts, load_unlabelled
from npbench.errors import InputError


class TextClassificationDataModule(TokenDataModule):
    """Texts with a class each, of which every byte (UTF-8) is a token.

    - a table, `.csv`, `.tsv` or `.parquet`, with a text and a label in each row;
    - a folder of such tables: train.csv, test.csv, and val.csv if there is one;
    - a folder of the parts' folders, train and test, in which each class has a folder of text files
      (the IMDb reviews come so, which are the task Text of Long Range Arena);
    - a folder of the classes' folders.

    Where the data have no part for validation, a hash of the texts says which of the training texts
    it gets, and where they have no parts at all, also which are for testing. Batches are made as
    `PassDataModule` says. Tokens are bytes plus 1; 0 is padding.

    Args:
        path: the table or folder.
        columns: what tables call the text and the label.
        classes: names of the classes, in their order; by default all of the training texts, sorted.
            Folders of other names are left out, and other labels in a table are refused.
        max_length: bytes after which texts are cut off.
        val_share: share of the training texts for validation, where the data have no part for it.
        test_share: share of all texts for testing, where the data have no parts.
        batch_size: texts a training step, on each rank.
        eval_batch_size: texts an evaluation step; it changes no result.
        seed: seed of the order of the training texts.
        predict_path: texts to predict, without labels: a table with a column of texts, or a folder
            in which each file is one. By default `predict` takes the test texts.
        num_workers: processes that make batches; 0 makes them in the training process.

    Source: Maas et al., *Learning Word Vectors for Sentiment Analysis*, ACL 2011, for the reviews;
    Tay et al., *Long Range Arena*, ICLR 2021, for reading them byte by byte.

    Example:
        >>> data = TextClassificationDataModule("data/aclImdb", classes=["neg", "pos"])
        >>> data.vocab_size
        257
    """

    def __init__(
        self,
        path: str | Path,
        columns: tuple[str, str] = ("text", "label"),
        classes: list[str] | None = None,
        max_length: int = 4000,
        val_share: float = 0.1,
        test_share: float = 0.1,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        seed: int = 0,
        predict_path: str | Path | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        at_least_one(max_length=max_length)
        for name, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0 < share < 1:
                raise InputError(f"{name}={share} must be between 0 and 1")
        self.path = path
        self.columns = columns
        self.given_classes = classes
        self.max_length = max_length
        self.val_share = val_share
        self.test_share = test_share
        self.predict_path = predict_path
        self._texts: dict[Part, list[LabelledText]] = {}

    @property
    def vocab_size(self) -> int:
        """256 bytes and padding."""
        return 257

    @property
    def classes(self) -> list[str]:  # type: ignore[override]
        """The names of the classes, in the order of their indices."""
        if self.given_classes is None:
            self.given_classes = sorted({text.label for text in self._loaded()[Part.TRAIN]})
        return self.given_classes

    @classes.setter
    def classes(self, classes: list[str]) -> None:
        self.given_classes = list(classes)
        self._parts, self._texts = {}, {}

    def text_of(self, tokens: Integer[np.ndarray, "length"]) -> str:
        return bytes((tokens - 1).tolist()).decode("utf-8", "replace")

    def _loaded(self) -> dict[Part, list[LabelledText]]:
        """The texts of each part."""
        if not self._texts:
            found = load_texts(Path(self.path), self.columns, self.given_classes)
            texts = {part: rows for part, rows in found.items() if part is not None}
            if None in found:
                texts = _split(found[None], Part.TEST, self.test_share)
            if Part.VALIDATE not in texts:
                texts |= _split(texts[Part.TRAIN], Part.VALIDATE, self.val_share)
            for part, rows in texts.items():
                if not rows:
                    raise InputError(
                        f"{self.path} has no texts for part {part.name.lower()}; add some, or "
                        f"change val_share or test_share"
                    )
            self._texts = texts
        return self._texts

    def _make_parts(self) -> dict[Part, LabelledSequences]:
        index = {name: number for number, name in enumerate(self.classes)}
        parts = {}
        for part, texts in self._loaded().items():
            for text in texts:
                if text.label not in index:
                    raise InputError(
                        f"{text.where}: the label {text.label!r} is none of the classes of "
                        f"training, {', '.join(self.classes)}"
                    )
            tokens = (self._tokens(text.text) for text in texts)
            parts[part] = LabelledSequences.of(tokens, [index[text.label] for text in texts])
        if self.predict_path is not None:
            texts = load_unlabelled(Path(self.predict_path), self.columns[0])
            tokens = (self._tokens(text.text) for text in texts)
            parts[Part.PREDICT] = LabelledSequences.of(tokens, None)
        return parts

    def _tokens(self, text: bytes) -> Integer[np.ndarray, "length"]:
        return np.frombuffer(text[: self.max_length], np.uint8).astype(np.uint16) + np.uint16(1)


def _split(texts: list[LabelledText], part: Part, share: float) -> dict[Part, list[LabelledText]]:
    """A share of the texts for a part, by a hash of the text, and the others for training."""
    parts: dict[Part, list[LabelledText]] = {part: [], Part.TRAIN: []}
    for text in texts:
        chosen = uniform_hash(f"{part.name} {text.text.decode('utf-8', 'replace')}") < share
        parts[part if chosen else Part.TRAIN].append(text)
    return parts
