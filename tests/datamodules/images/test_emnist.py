"""EMNIST as its official files hold it."""

import gzip
import os
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import digits, idx, write_emnist
from torchvision import datasets

from datamodules import EMNISTDataModule
from datamodules.images.idx import load_idx
from datamodules.loading import Part

TRAIN_IMAGES = "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte"
TRAIN_LABELS = "EMNIST/raw/emnist-balanced-train-labels-idx1-ubyte"


def emnist(root: Path, **options: object) -> EMNISTDataModule:
    return EMNISTDataModule(root, **({"num_val_tasks": 10, "batch_size": 4} | options))


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("class_range", [(0, 10), (10, 15), (3, 8)])
def test_images_are_upright_and_split_by_class(
    tmp_path: Path, zipped: bool, class_range: tuple[int, int]
) -> None:
    written = write_emnist(tmp_path, zipped=zipped)
    sets = emnist(tmp_path, class_range=class_range).image_sets
    classes = range(*class_range)
    images, labels = written["train"]
    wanted = images[np.isin(labels, classes)]
    assert len(sets[Part.VALIDATE]) == 10
    rows = np.concatenate([sets[Part.TRAIN].rows, sets[Part.VALIDATE].rows]).argsort()
    read = torch.cat([sets[kind][range(len(sets[kind]))] for kind in (Part.TRAIN, Part.VALIDATE)])
    assert np.array_equal(read[rows, 0], wanted)
    images, labels = written["test"]
    for kind, chosen in (
        (Part.TEST, np.isin(labels, classes)),
        (Part.TEST_UNSEEN, ~np.isin(labels, classes)),
    ):
        read = sets[kind][range(len(sets[kind]))]
        assert np.array_equal(read[:, 0], images[chosen])


def test_a_stroke_along_the_top_is_at_row_coordinate_minus_one(tmp_path: Path) -> None:
    """In the file, which holds images transposed, its bytes are 28 apart."""
    write_emnist(tmp_path)
    stored = np.zeros((120, 28, 28), np.uint8)
    stored[:, :, 0] = 255
    (tmp_path / TRAIN_IMAGES).write_bytes(idx(stored))
    task = emnist(tmp_path, max_num_points=784).training_batch(0)
    for x, y in ((task.xc, task.yc), (task.xt, task.yt)):
        assert torch.equal(x[..., 0] == -1, y[..., 0] == 0.5)
        assert torch.equal(x[..., 0] > -1, y[..., 0] == -0.5)


def test_the_files_are_those_that_torchvision_reads(tmp_path: Path) -> None:
    write_emnist(tmp_path)
    theirs = datasets.EMNIST(tmp_path, split="balanced", train=False)
    sets = emnist(tmp_path).image_sets
    ours, rows = sets[Part.TEST][range(len(sets[Part.TEST]))], sets[Part.TEST].rows
    assert torch.equal(ours[:, 0], theirs.data[rows].mT)
    assert (theirs.targets[rows] < 10).all()


def test_validation_images_are_evenly_spaced(tmp_path: Path) -> None:
    write_emnist(tmp_path)
    rows = emnist(tmp_path, class_range=(0, 20), num_val_tasks=40).image_sets[Part.VALIDATE].rows
    assert rows.tolist() == list(range(0, 120, 3))


def test_without_other_classes_nothing_is_unseen(tmp_path: Path) -> None:
    write_emnist(tmp_path)
    assert list(emnist(tmp_path, class_range=(0, 47)).test_dataloader()) == ["seen"]


# Bad input


@pytest.mark.parametrize("class_range", [(0, 48), (-1, 10), (5, 5), (10, 3)])
def test_classes_that_do_not_exist_are_refused(
    tmp_path: Path, class_range: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=r"class_range=.* 0 ≤ first < end ≤ 47: the .* are 0–46"):
        emnist(tmp_path, class_range=class_range)


def test_absent_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    data = emnist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as error:
        data.prepare_data()
    for part in ("emnist-balanced-train-images-idx3-ubyte", "test-labels", "nowhere/EMNIST/raw",
                 "https://biometrics.nist.gov", "set download to true"):  # fmt: skip
        assert part in str(error.value)
    write_emnist(tmp_path)
    os.remove(tmp_path / TRAIN_LABELS)
    with pytest.raises(FileNotFoundError, match="lacks emnist-balanced-train-labels-idx1-ubyte: "):
        emnist(tmp_path).setup()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (TRAIN_IMAGES, half, r"holds 47,048 bytes where its header .* announces 94,096: it is cut"),
        (TRAIN_LABELS, half, "holds 64 bytes where its header .* announces 128: it is cut off"),
        (TRAIN_IMAGES, lambda content: content + b"?", "94,097 bytes .* cut off or damaged"),
        (TRAIN_IMAGES, lambda content: content[:9], "holds 9 bytes where its header"),
        (TRAIN_IMAGES, lambda content: b"", "holds 0 bytes where its header"),
        (TRAIN_IMAGES, lambda content: b"<html>", "begins with 0x3c68746d, .* number 0x00000803"),
        (TRAIN_LABELS, lambda content: idx(digits(4)[0]), "begins with 0x00000803, .* 0x00000801"),
        (
            TRAIN_LABELS,
            lambda content: idx(np.zeros(7)),
            r"expected \(7, 28, 28\) for the 7 labels",
        ),
        (TRAIN_IMAGES, lambda content: idx(digits(120, size=8)[0]), r"shape \(120, 8, 8\), expect"),
    ],
    ids=["half", "half-labels", "longer", "header", "empty", "html", "swapped", "fewer", "small"],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    write_emnist(tmp_path)
    file = tmp_path / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=f"emnist-balanced-train-.*{message}"):
        emnist(tmp_path).setup()


@pytest.mark.parametrize(
    "change", [half, lambda content: b"no gzip", lambda content: gzip.compress(b"")]
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    write_emnist(tmp_path, zipped=True)
    file = tmp_path / f"{TRAIN_IMAGES}.gz"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=r"emnist-balanced-train-images-idx3-ubyte\.gz"):
        emnist(tmp_path).setup()


def test_a_small_gzip_file_that_holds_a_hundred_times_as_much_and_more_is_not_unzipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.images.idx._MOST_BYTES", 1000)
    blank = np.zeros((3000, 28, 28), np.uint8)
    file = tmp_path / "images.gz"
    file.write_bytes(gzip.compress(idx(blank)))
    assert file.stat().st_size < blank.nbytes / 500
    with pytest.raises(ValueError, match=r"bytes where its header .* announces 2,352,016"):
        load_idx(file, 3)
    file.write_bytes(gzip.compress(idx(blank[:1])))  # a small file may hold that much
    assert load_idx(file, 3).shape == (1, 28, 28)
    huge = np.array([2**20, 2**20, 2**20], ">u4").tobytes()
    for path in (file, tmp_path / "plain"):
        content = bytes([0, 0, 8, 3]) + huge
        path.write_bytes(gzip.compress(content) if path == file else content)
        with pytest.raises(ValueError, match=r"holds 16 bytes .* announces 1,152,921,504,606"):
            load_idx(path, 3)


def test_a_validation_set_of_everything_is_refused(tmp_path: Path) -> None:
    write_emnist(tmp_path)
    with pytest.raises(
        ValueError, match=r"num_val_tasks=80 leaves none .* of the 80 .* classes 0–9"
    ):
        emnist(tmp_path, num_val_tasks=80).setup()


def test_a_test_without_the_classes_is_refused(tmp_path: Path) -> None:
    write_emnist(tmp_path)
    labels = tmp_path / TRAIN_LABELS.replace("train", "test")
    labels.write_bytes(idx(np.full(60, 20)))
    with pytest.raises(ValueError, match="no test image of classes 0–9"):
        emnist(tmp_path).setup()


# Download


def test_only_what_is_missing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        datasets.EMNIST, "download", lambda self: asked.append(write_emnist(tmp_path))
    )
    for _ in range(2):
        emnist(tmp_path, download=True).prepare_data()
    assert len(asked) == 1


def test_a_download_that_fails_says_where_the_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.EMNIST, "download", unreachable)
    with pytest.raises(OSError, match=r"cannot be downloaded .*no route.* from https://biometrics"):
        emnist(tmp_path, download=True).prepare_data()
