"""MNIST and CIFAR-10 as their official files hold them."""

import os
import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import digits, idx, write_cifar10, write_mnist
from torchvision import datasets

from datamodules import CIFAR10DataModule, MNISTDataModule
from datamodules.images.official_split import OfficialSplitDataModule
from datamodules.loading import Part

MODULES = {"mnist": MNISTDataModule, "cifar10": CIFAR10DataModule}
FORMS = {
    "mnist": (MNISTDataModule, write_mnist, {}),
    "mnist-gzipped": (MNISTDataModule, write_mnist, {"zipped": True}),
    "cifar10": (CIFAR10DataModule, write_cifar10, {}),
    "cifar10-binary": (CIFAR10DataModule, write_cifar10, {"binary": True}),
}
MNIST_TRAIN = "MNIST/raw/train-images-idx3-ubyte"
CIFAR_TRAIN = "cifar-10-batches-py/data_batch_3"


def module(kind: type, root: Path, **options: object) -> OfficialSplitDataModule:
    return kind(root, **({"num_val_tasks": 5, "batch_size": 4} | options))


@pytest.mark.parametrize("form", FORMS)
def test_images_are_those_of_the_files_in_their_order(form: str, tmp_path: Path) -> None:
    """Training images are for training or, evenly spaced, for validation."""
    kind, write, options = FORMS[form]
    written = write(tmp_path, **options)
    sets = module(kind, tmp_path).image_sets
    expected = {split: a.reshape(len(a), -1, *a.shape[-2:]) for split, a in written.items()}
    number = len(expected["train"])
    assert sets[Part.VALIDATE].rows.tolist() == list(range(0, number, number // 5))
    rows = np.concatenate([sets[Part.TRAIN].rows, sets[Part.VALIDATE].rows])
    assert sorted(rows) == list(range(number))
    assert np.array_equal(sets[Part.TRAIN].array, expected["train"])
    test = sets[Part.TEST]
    assert np.array_equal(test[range(len(test))], expected["test"])


@pytest.mark.parametrize("form", FORMS)
def test_tasks_hold_the_values_of_the_images(form: str, tmp_path: Path) -> None:
    kind, write, options = FORMS[form]
    image = torch.from_numpy(write(tmp_path, **options)["test"][0])
    data = module(kind, tmp_path)
    task = data.completion_task(num_context=30)
    image = image.reshape(-1, data.size, data.size)
    for x, y in ((task.xc[0], task.yc[0]), (task.xt[0], task.yt[0])):
        row, column = ((x + 1) / 2 * (data.size - 1)).round().long().unbind(-1)
        assert torch.equal(y, image[:, row, column].T / 255 - 0.5)
    assert task.xt.shape == (1, data.size**2 - 30, 2)


def test_the_pictures_are_those_that_torchvision_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's checksums are those of the official files, and are not asked here."""
    write_mnist(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(20)))
    monkeypatch.setattr(datasets.MNIST, "_check_exists", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    ours = module(MNISTDataModule, tmp_path).image_sets[Part.TEST].array[:, 0]
    assert np.array_equal(ours, datasets.MNIST(tmp_path, train=False).data)
    ours = module(CIFAR10DataModule, tmp_path).image_sets[Part.TEST].array
    theirs = datasets.CIFAR10(tmp_path, train=False).data
    assert np.array_equal(ours.transpose(0, 2, 3, 1), theirs)


# Bad input


def test_absent_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        module(MNISTDataModule, tmp_path).prepare_data()
    for part in ("MNIST/raw lacks train-images-idx3-ubyte, t10k-images-idx3-ubyte: ", "https://",
                 "set download to true", "mnist"):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError) as error:
        module(CIFAR10DataModule, tmp_path).prepare_data()
    for part in ("cifar-10-batches-py lacks data_batch_1, ", "test_batch: set download to true",
                 "https://www.cs.toronto.edu"):  # fmt: skip
        assert part in str(error.value)
    write_cifar10(tmp_path, binary=True)
    os.remove(tmp_path / "cifar-10-batches-bin/test_batch.bin")
    with pytest.raises(FileNotFoundError, match=r"batches-bin lacks test_batch\.bin: "):
        module(CIFAR10DataModule, tmp_path).setup()


def dumped(content: object) -> Callable[[bytes], bytes]:
    return lambda _: pickle.dumps(content, protocol=2)


class Attack:
    """Unpickled by Python's own function, this would run a command."""

    def __reduce__(self) -> tuple:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("kind", "file", "change", "message"),
    [
        ("mnist", MNIST_TRAIN, lambda content: content[:999], "it is cut off or damaged"),
        ("mnist", MNIST_TRAIN, lambda content: idx(digits(9, size=8)[0]), r"\(9, 8, 8\), expected"),
        ("mnist", MNIST_TRAIN, lambda content: idx(np.zeros((0, 28, 28))), r"shape \(0, 28, 28\)"),
        ("cifar10", CIFAR_TRAIN, lambda content: content[:999], "is no pickle, or damaged"),
        ("cifar10", CIFAR_TRAIN, dumped(Attack()), "asks for .*system"),
        ("cifar10", CIFAR_TRAIN, dumped([1, 2]), "no dictionary with an array of bytes called"),
        ("cifar10", CIFAR_TRAIN, dumped({"data": np.zeros((2, 3072))}), "no dictionary with an"),
        ("cifar10", CIFAR_TRAIN, dumped({"data": np.zeros((2, 9), np.uint8)}), r"\(2, 9\), expec"),
    ],
    ids=["half", "small", "none", "cut", "attack", "list", "floats", "shape"],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, kind: str, file: str, change: Callable[[bytes], bytes], message: str
) -> None:
    (write_mnist if kind == "mnist" else write_cifar10)(tmp_path)
    path = tmp_path / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
        module(MODULES[kind], tmp_path).setup()


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: b""])
def test_a_binary_file_of_broken_records_is_named(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    write_cifar10(tmp_path, binary=True)
    path = tmp_path / "cifar-10-batches-bin/data_batch_2.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"data_batch_2\.bin holds .* no records of 3073 bytes"):
        module(CIFAR10DataModule, tmp_path).setup()


def test_a_validation_set_of_everything_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match=r"num_val_tasks=60 leaves none .* of the 60 training"):
        module(MNISTDataModule, tmp_path, num_val_tasks=60).setup()
    with pytest.raises(ValueError, match="exceeds the 784 pixels of an image"):
        MNISTDataModule(tmp_path, max_num_points=785)


# Download


@pytest.mark.parametrize("name", list(MODULES))
def test_only_what_is_missing_is_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    write = write_mnist if name == "mnist" else write_cifar10

    def get(self: object, root: Path, download: bool) -> None:
        assert download
        asked.append(write(root))

    monkeypatch.setattr(getattr(datasets, name.upper()), "__init__", get)
    for _ in range(2):
        module(MODULES[name], tmp_path, download=True).prepare_data()
    assert len(asked) == 1


@pytest.mark.parametrize(("name", "source"), [("mnist", "https://"), ("cifar10", "https://www.cs")])
def test_a_download_that_fails_says_where_the_files_are(
    name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(getattr(datasets, name.upper()), "download", unreachable)
    with pytest.raises(OSError, match=f"cannot be downloaded .*no route.* from {source}"):
        module(MODULES[name], tmp_path, download=True).prepare_data()
