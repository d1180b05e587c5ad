"""Small data sets of images in the official formats, written for the tests."""

import gzip
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def digits(number: int, size: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, upright, as bytes, and what they are."""
    data = load_digits()
    images = [
        np.asarray(Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((size, size)))
        for pixels in data.images[:number]
    ]
    return np.stack(images), data.target[:number].astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_emnist(
    root: Path, num_train: int = 120, num_test: int = 60, zipped: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """EMNIST balanced with digits of classes 0–9, every third of which passes for class 10 more.

    Returns:
        "train" and "test": the images, upright, and their labels.
    """
    folder = root / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    images, labels = digits(num_train + num_test)
    labels[::3] += 10
    splits = {
        "train": (images[:num_train], labels[:num_train]),
        "test": (images[num_train:], labels[num_train:]),
    }
    for split, (pixels, label) in splits.items():
        contents = {"images-idx3": idx(pixels.transpose(0, 2, 1)), "labels-idx1": idx(label)}
        for kind, content in contents.items():
            file = folder / f"emnist-balanced-{split}-{kind}-ubyte"
            if zipped:
                Path(f"{file}.gz").write_bytes(gzip.compress(content))
            else:
                file.write_bytes(content)
    return splits


def write_mnist(
    root: Path, num_train: int = 60, num_test: int = 20, zipped: bool = False
) -> dict[str, np.ndarray]:
    """MNIST: the images of "train" and "test", which are returned, and none of the labels."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images, _ = digits(num_train + num_test)
    splits = {"train": images[:num_train], "test": images[num_train:]}
    for split, name in {"train": "train", "test": "t10k"}.items():
        file = folder / f"{name}-images-idx3-ubyte"
        if zipped:
            Path(f"{file}.gz").write_bytes(gzip.compress(idx(splits[split])))
        else:
            file.write_bytes(idx(splits[split]))
    return splits


def write_cifar10(root: Path, num_each: int = 8, binary: bool = False) -> dict[str, np.ndarray]:
    """CIFAR-10 with so many pictures a file: those of "train" and "test", which are returned."""
    folder = root / f"cifar-10-batches-{'bin' if binary else 'py'}"
    folder.mkdir(parents=True)
    batches = []
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pictures = [photo(seed + number * num_each, 32, 32) for seed in range(num_each)]
        pixels = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
        batches.append(pixels)
        values, labels = pixels.reshape(num_each, -1), np.arange(num_each, dtype=np.uint8) % 10
        if binary:
            records = np.concatenate([labels[:, None], values], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            content = {"batch_label": name, "labels": labels.tolist(), "data": values}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return {"train": np.concatenate(batches[:5]), "test": batches[5]}


def photo(seed: int, width: int = 178, height: int = 218) -> Image.Image:
    """Smooth patches of colour."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


def write_celeba(root: Path, num_images: int = 40) -> tuple[dict[str, int], dict[str, int]]:
    """CelebA, of persons with two pictures each: the partition and the persons of the pictures.

    Of five persons three are in partition 0, and one each in 1 and 2. Persons have numbers from
    high to low.
    """
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, num_images + 1)]
    partition = {name: max(0, place // 2 % 5 - 2) for place, name in enumerate(names)}
    person = {name: num_images - place // 2 for place, name in enumerate(names)}
    for place, name in enumerate(names):
        photo(place).save(folder / name, quality=95)
    write_list(root / "list_eval_partition.txt", partition)
    write_list(root / "identity_CelebA.txt", person)
    return partition, person


def write_list(path: Path, numbers: dict[str, int]) -> None:
    path.write_text("".join(f"{name} {number}\n" for name, number in numbers.items()))


def write_pictures(folder: Path, number: int = 60) -> list[str]:
    """PNGs and JPEGs of different sizes, some of them in subfolders; returns their names."""
    names = []
    for place in range(number):
        name = f"{'ab'[place % 2]}/{place}.{('png', 'jpg', 'JPG')[place % 3]}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo(place, width=20 + place % 7, height=20 + place % 5).save(folder / name)
        names.append(name)
    return names
