"""Texts byte by byte, from folders and tables."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from datamodules import TextClassificationDataModule
from datamodules.loading import Part
from npbench.errors import InputError

PARTS = (Part.TRAIN, Part.VALIDATE, Part.TEST)


def texts(number: int) -> pd.DataFrame:
    """A text is good or bad by its first word, and there are quotes and lines in it."""
    labels = ["bad", "good"] * (number // 2)
    rows = [f'{label}, "text" {index}\nè' for index, label in enumerate(labels)]
    return pd.DataFrame({"text": rows, "label": labels})


def folder_of(frame: pd.DataFrame, folder: Path) -> Path:
    for index, row in enumerate(frame.itertuples()):
        (folder / row.label).mkdir(parents=True, exist_ok=True)
        (folder / row.label / f"{index}.txt").write_text(row.text, encoding="utf-8")
    return folder


def contents(data: TextClassificationDataModule, part: Part) -> dict[str, str]:
    rows = data.rows(part)
    return {
        data.text_of(rows[index]): data.classes[label] for index, label in enumerate(rows.labels)
    }


def test_a_text_is_its_bytes_and_padding_is_0(tmp_path: Path) -> None:
    frame = texts(40)
    frame.to_csv(tmp_path / "a.csv", index=False)
    data = TextClassificationDataModule(str(tmp_path / "a.csv"), batch_size=4)
    batch = data.training_batch(0)
    assert (batch.tokens.max(), data.vocab_size) == (ord("\xc3") + 1, 257)
    assert ((batch.tokens == 0) == ~batch.mask).all()
    for tokens, mask, label in zip(batch.tokens, batch.mask, batch.labels):
        text = data.text_of(tokens[mask].numpy())
        assert text.startswith(data.classes[label])
        assert text in set(frame["text"])


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "folder"])
def test_every_text_is_in_one_part_whatever_holds_it(tmp_path: Path, kind: str) -> None:
    frame, path = texts(60), tmp_path / f"all.{kind}"
    if kind == "folder":
        folder_of(frame, path)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    data = TextClassificationDataModule(str(path), val_share=0.3, test_share=0.3)
    parts = [contents(data, part) for part in PARTS]
    assert parts[0] | parts[1] | parts[2] == dict(zip(frame["text"], frame["label"]))
    assert sum(map(len, parts)) == 60
    # Which part a text is in does not depend on the others.
    fewer = TextClassificationDataModule(str(path), val_share=0.3, test_share=0.3)
    assert contents(fewer, Part.TEST) == parts[2]


def test_the_folders_of_reviews_have_their_own_parts(tmp_path: Path) -> None:
    frame = texts(40)
    folder_of(frame[:30], tmp_path / "train")
    folder_of(frame[30:], tmp_path / "test")
    folder_of(texts(2).assign(label="unsup"), tmp_path / "train")
    data = TextClassificationDataModule(str(tmp_path), classes=["bad", "good"], val_share=0.3)
    assert contents(data, Part.TEST) == dict(zip(frame["text"][30:], frame["label"][30:]))
    together = contents(data, Part.TRAIN) | contents(data, Part.VALIDATE)
    assert set(together.values()) == {"bad", "good"}
    assert len(together) == 30


def test_tables_of_the_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    frame = texts(30).rename(columns={"text": "review", "label": "mood"})
    for name, rows in {"train": frame[:20], "dev": frame[20:26], "test": frame[26:]}.items():
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    data = TextClassificationDataModule(str(tmp_path), columns=("review", "mood"))
    assert [len(data.rows(part)) for part in PARTS] == [20, 6, 4]


def test_long_texts_are_cut_off(tmp_path: Path) -> None:
    texts(40).to_csv(tmp_path / "a.csv", index=False)
    data = TextClassificationDataModule(str(tmp_path / "a.csv"), max_length=7)
    assert set(data.rows(Part.TRAIN).lengths) == {7}


def test_classes_that_are_set_are_counted_by(tmp_path: Path) -> None:
    texts(40).to_csv(tmp_path / "a.csv", index=False)
    data = TextClassificationDataModule(str(tmp_path / "a.csv"))
    before = data.rows(Part.TEST).labels
    assert data.classes == ["bad", "good"]
    data.classes = ["good", "bad"]
    assert (data.rows(Part.TEST).labels == 1 - before).all()
    assert torch.equal(
        data.evaluation_batch(range(1)).labels, torch.from_numpy(data.rows(Part.TEST).labels[:1])
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nfine,good\n  ,bad\n", "line 3: the text is empty"),
        ("text,label\nfine,\n", "line 2: there is no label"),
        ('text,label\n"two\nlines",good\nfine\n', "line 4: there are 1 columns, and the header"),
        (
            "text,label\nfine,good\nso so,odd\n",
            "line 3: the label 'odd' is none of the classes",
        ),
        ("words,label\nfine,good\n", "has no column 'text', only words, label; set columns"),
        ("", "has no column 'text', only none"),
        ("text,label\nfi\xffne,good\n", "line 1: 'utf-8' codec can't decode"),
        ("text,label\nfine,good\n", "has no texts for part"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode("latin-1"))
    data = TextClassificationDataModule(str(path), classes=["bad", "good"])
    with pytest.raises(InputError, match=message) as error:
        data.rows(Part.TRAIN)
    assert str(path) in str(error.value)


def test_a_label_that_training_does_not_know_is_refused(tmp_path: Path) -> None:
    texts(20).to_csv(tmp_path / "train.csv", index=False)
    texts(2).assign(label="odd").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(InputError, match="line 2: the label 'odd' is none of the classes of train"):
        TextClassificationDataModule(str(tmp_path)).rows(Part.TEST)


def test_texts_to_predict_are_files_of_a_folder_too(tmp_path: Path) -> None:
    texts(40).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "new").mkdir()
    data = TextClassificationDataModule(tmp_path / "a.csv", predict_path=tmp_path / "new")
    with pytest.raises(InputError, match="new has no texts"):
        data.rows(Part.PREDICT)
    (tmp_path / "new/b.txt").write_text("a text")
    (tmp_path / "new/c.txt").write_text(" ")
    with pytest.raises(InputError, match=r"c\.txt: the text is empty"):
        data.rows(Part.PREDICT)
    (tmp_path / "new/c.txt").write_text("another")
    batch = next(iter(data.predict_dataloader()))
    assert batch.labels is None
    assert batch.mask.sum(1).tolist() == [6, 7]


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no nowhere"):
        TextClassificationDataModule("nowhere").rows(Part.TRAIN)
    with pytest.raises(InputError, match="has no folder of a class of texts"):
        TextClassificationDataModule(str(tmp_path)).rows(Part.TRAIN)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="has no test beside its other parts"):
        TextClassificationDataModule(str(tmp_path)).rows(Part.TRAIN)
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(InputError, match="is no table that can be read"):
        TextClassificationDataModule(str(tmp_path / "a.txt")).rows(Part.TRAIN)
    with pytest.raises(InputError, match="must be between 0 and 1"):
        TextClassificationDataModule(str(tmp_path), val_share=0.0)
