"""CelebA as its official files hold it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import write_celeba, write_list
from PIL import Image
from torchvision import datasets

from datamodules import CelebADataModule
from datamodules.images.base import ImageSet
from datamodules.images.cache import Decoder
from datamodules.loading import Part


def celeba(root: Path, **options: object) -> CelebADataModule:
    return CelebADataModule(root, **({"num_val_tasks": 3, "batch_size": 4} | options))


def names_of(images: ImageSet) -> list[str]:
    """Where no picture is left out, row i of the cache is the i-th name."""
    return [f"{row + 1:06d}.jpg" for row in images.rows]


@pytest.mark.parametrize("inner", ["", "celeba"], ids=["root", "torchvision"])
def test_pictures_are_split_by_the_official_partition(tmp_path: Path, inner: str) -> None:
    """Three validation pictures, of two persons with four: the fourth is in no split."""
    partition, person = write_celeba(tmp_path / inner)
    sets = celeba(tmp_path).image_sets
    train, validation, test = (
        names_of(sets[kind]) for kind in (Part.TRAIN, Part.VALIDATE, Part.TEST)
    )
    assert set(test) == {name for name, number in partition.items() if number == 2}
    in_one = sorted(person[name] for name in partition if partition[name] == 1)
    assert sorted(person[name] for name in validation) == in_one[:3]
    held_out = {person[name] for name in validation}
    assert set(train) == {
        name for name, number in partition.items() if number < 2 and person[name] not in held_out
    }
    assert len(train) + len(validation) + len(test) == 40 - 1


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_tasks_hold_the_values_of_the_pictures(tmp_path: Path, resolution: int) -> None:
    write_celeba(tmp_path, num_images=20)
    data = celeba(tmp_path, resolution=resolution)
    (name, *_) = names_of(data.image_sets[Part.TEST])
    picture = torch.tensor(Decoder(resolution, 3)(tmp_path / "img_align_celeba" / name).copy())
    task = data.completion_task(num_context=resolution)
    last = resolution - 1
    for x, y in ((task.xc[0], task.yc[0]), (task.xt[0], task.yt[0])):
        row, column = ((x + 1) / 2 * last).round().long().unbind(-1)
        assert torch.equal(y, picture[:, row, column].T / 255 - 0.5)
    assert task.xt.shape == (1, resolution**2 - resolution, 2)


def test_the_protocol_follows_the_resolution(tmp_path: Path) -> None:
    for resolution, protocol in {32: (200, None), 64: (800, 400), 128: (1600, 400)}.items():
        data = CelebADataModule(tmp_path, resolution)
        assert (data.max_num_points, data.max_num_targets) == protocol
    data = CelebADataModule(tmp_path, 128, max_num_points=100, max_num_targets=50)
    assert (data.max_num_points, data.max_num_targets) == (100, 50)


def test_resolutions_have_caches_of_their_own_beside_the_pictures(tmp_path: Path) -> None:
    write_celeba(tmp_path, num_images=10)
    for resolution in (32, 64):
        celeba(tmp_path, resolution=resolution, num_val_tasks=2).setup()
    celeba(tmp_path, num_val_tasks=2, cache_dir=tmp_path / "other").setup()
    assert len(list(tmp_path.glob("npbench-cache/v1-*"))) == 2
    assert len(list(tmp_path.glob("other/v1-*"))) == 1


def test_pictures_are_resized_as_a_whole_as_the_official_code_does_it(tmp_path: Path) -> None:
    write_celeba(tmp_path, num_images=10)
    images = celeba(tmp_path, num_val_tasks=2, center_crop=False).image_sets[Part.TEST]
    for row, name in enumerate(names_of(images)):
        with Image.open(tmp_path / "img_align_celeba" / name) as picture:
            official = np.asarray(picture.resize((32, 32))).transpose(2, 0, 1)
        assert np.array_equal(images[[row]][0], official)


def test_a_cache_of_central_squares_is_not_taken_for_one_of_whole_pictures(tmp_path: Path) -> None:
    write_celeba(tmp_path, num_images=10)
    squares, whole = (
        celeba(tmp_path, num_val_tasks=2, center_crop=crop).image_sets[Part.TEST]
        for crop in (True, False)
    )
    assert len(list(tmp_path.glob("npbench-cache/v1-*"))) == 2
    assert not np.array_equal(squares.array, whole.array)
    (row, *_) = squares.rows
    first = Decoder(32, 3)(tmp_path / f"img_align_celeba/{row + 1:06d}.jpg")
    assert np.array_equal(squares[[0]][0], first)


def test_a_corrupt_picture_is_left_out_of_its_split(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba/000009.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.warns(UserWarning, match=r"1 of 40 pictures cannot be read: 000009\.jpg"):
        sets = celeba(tmp_path).image_sets
    first = Decoder(32, 3)(tmp_path / "img_align_celeba/000010.jpg")
    assert len(sets[Part.TEST]) == 7
    assert np.array_equal(sets[Part.TEST][[0]][0], first)
    (tmp_path / "img_align_celeba/000010.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000009\.jpg cannot be read"):
        celeba(tmp_path, on_corrupt="error", cache_dir=tmp_path / "new").setup()


# Bad input


@pytest.mark.parametrize("resolution", [33, 0, 256])
def test_other_resolutions_are_refused(tmp_path: Path, resolution: int) -> None:
    with pytest.raises(ValueError, match=f"resolution={resolution} must be 32, 64 or 128"):
        CelebADataModule(tmp_path, resolution=resolution)


def test_an_absent_folder_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        celeba(tmp_path / "nowhere").prepare_data()
    for part in ("nowhere", "list_eval_partition.txt", "identity_CelebA.txt", "img_align_celeba",
                 "http://mmlab.ie.cuhk.edu.hk", "set download to true"):  # fmt: skip
        assert part in str(error.value)
    write_celeba(tmp_path)
    (tmp_path / "identity_CelebA.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks identity_CelebA\.txt: "):
        celeba(tmp_path).setup()


def test_a_partition_that_names_a_missing_picture_is_an_error(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba/000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"img_align_celeba lacks 1 of the 40 .*: 000007"):
        celeba(tmp_path).setup()


def test_pictures_without_a_person_are_an_error(tmp_path: Path) -> None:
    _, person = write_celeba(tmp_path)
    del person["000003.jpg"]
    write_list(tmp_path / "identity_CelebA.txt", person)
    with pytest.raises(ValueError, match=r"identity_CelebA\.txt lacks 1 .* names: 000003\.jpg"):
        celeba(tmp_path).setup()


@pytest.mark.parametrize("line", ["000002.jpg", "000002.jpg one", "a 1 2"])
def test_a_line_that_is_no_picture_and_number_is_named(tmp_path: Path, line: str) -> None:
    write_celeba(tmp_path)
    (tmp_path / "list_eval_partition.txt").write_text(f"000001.jpg 0\n{line}\n")
    with pytest.raises(
        ValueError, match=f"list_eval_partition.txt, line 2: '{line}' is not a pict"
    ):
        celeba(tmp_path).setup()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda number: min(number, 1), "leaves no picture to test on"),
        (lambda number: max(number, 1), "num_val_tasks=33 exceeds the 32 pictures"),
        (lambda number: 0, "num_val_tasks=33 exceeds the 0 pictures of partition 1"),
    ],
    ids=["test", "validation", "none"],
)
def test_a_partition_without_a_split_is_an_error(
    tmp_path: Path, change: object, message: str
) -> None:
    partition, _ = write_celeba(tmp_path)
    write_list(tmp_path / "list_eval_partition.txt", {n: change(p) for n, p in partition.items()})
    number = 33 if "num_val" in message else 3
    with pytest.raises(ValueError, match=message):
        celeba(tmp_path, num_val_tasks=number).setup()


def test_validation_that_takes_every_person_is_an_error(tmp_path: Path) -> None:
    partition, _ = write_celeba(tmp_path)
    write_list(tmp_path / "list_eval_partition.txt", {n: p or 1 for n, p in partition.items()})
    with pytest.raises(ValueError, match="leaves no picture to train on"):
        celeba(tmp_path, num_val_tasks=32).setup()


# Download


def test_a_download_that_fails_says_where_the_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quota(self: object) -> None:
        raise RuntimeError("too many downloads")

    monkeypatch.setattr(datasets.CelebA, "download", quota)
    with pytest.raises(OSError, match=r"cannot be downloaded .*too many.* from http://mmlab"):
        celeba(tmp_path, download=True).prepare_data()
    write_celeba(tmp_path)
    celeba(tmp_path, download=True).prepare_data()
