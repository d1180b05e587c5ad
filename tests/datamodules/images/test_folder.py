"""A folder of any pictures is a data set."""

import os
from pathlib import Path

import pytest
from helpers.image_files import photo, write_pictures

from datamodules import ImageFolderDataModule
from datamodules.images.cache import Decoder
from datamodules.loading import Part


def pictures(root: Path, **options: object) -> ImageFolderDataModule:
    return ImageFolderDataModule(root, **({"resolution": 8, "max_num_points": 40} | options))


def contents(data: ImageFolderDataModule, kind: int) -> set[bytes]:
    images = data.image_sets[kind]
    return {image.numpy().tobytes() for image in images[range(len(images))]}


def test_every_picture_is_in_one_split(tmp_path: Path) -> None:
    names = write_pictures(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    splits = [contents(pictures(tmp_path), kind) for kind in (Part.TRAIN, Part.VALIDATE, Part.TEST)]
    assert set.union(*splits) == {Decoder(8, 3)(tmp_path / n).tobytes() for n in names}
    assert sum(map(len, splits)) == len(names)


def test_shares_are_kept(tmp_path: Path) -> None:
    """Of 300 pictures, within 4 standard errors."""
    write_pictures(tmp_path, number=300)
    data = pictures(tmp_path, val_share=0.2, test_share=0.3)
    for kind, share in ((Part.TRAIN, 0.5), (Part.VALIDATE, 0.2), (Part.TEST, 0.3)):
        error = (share * (1 - share) * 300) ** 0.5
        assert abs(len(data.image_sets[kind]) - share * 300) < 4 * error


def test_more_pictures_move_none(tmp_path: Path) -> None:
    write_pictures(tmp_path / "old")
    kinds = Part.TRAIN, Part.VALIDATE, Part.TEST
    before = [contents(pictures(tmp_path), kind) for kind in kinds]
    for place in range(30):
        photo(100 + place).save(tmp_path / f"{place}.png")
    after = [contents(pictures(tmp_path), kind) for kind in kinds]
    assert sum(len(new - old) for new, old in zip(after, before)) == 30
    assert all(old <= new for new, old in zip(after, before))


def test_a_changed_picture_is_read_again(tmp_path: Path) -> None:
    names = write_pictures(tmp_path)
    data = pictures(tmp_path)
    data.setup()
    stat = (tmp_path / names[0]).stat()
    photo(100, width=20, height=20).save(tmp_path / names[0])
    os.utime(tmp_path / names[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = Decoder(8, 3)(tmp_path / names[0]).tobytes()
    assert any(
        changed in contents(pictures(tmp_path), kind)
        for kind in (Part.TRAIN, Part.VALIDATE, Part.TEST)
    )


@pytest.mark.parametrize("num_channels", [1, 3])
def test_tasks_have_the_channels(tmp_path: Path, num_channels: int) -> None:
    write_pictures(tmp_path)
    data = pictures(tmp_path, num_channels=num_channels, batch_size=5)
    for task in (data.training_batch(0), data.evaluation_batch(range(3)), data.completion_task()):
        assert task.yc.shape[-1] == task.yt.shape[-1] == num_channels
    assert len(data.test_dataloader()) == 1


def test_a_fifth_of_the_pixels_is_the_default(tmp_path: Path) -> None:
    assert ImageFolderDataModule(tmp_path, resolution=64).max_num_points == 819


# Bad input


def test_an_absent_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*nowhere; put pictures there"
    ):
        pictures(tmp_path / "nowhere").setup()


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"holds no pictures \(\.bmp .*\.webp\)"):
        pictures(tmp_path).setup()


def test_too_few_pictures_are_an_error(tmp_path: Path) -> None:
    write_pictures(tmp_path, number=2)
    with pytest.raises(ValueError, match=r"the 2 pictures in .* come apart into \[.*\] for train"):
        pictures(tmp_path).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_share": 0.0}, "val_share=0.0 and test_share=0.1 must be above 0"),
        ({"val_share": 0.5, "test_share": 0.5}, "must be above 0 and leave some pictures"),
        ({"resolution": 1}, "resolution=1 must be 2 or more"),
        ({"num_channels": 4}, "num_channels=4 must be 1"),
        ({"resolution": 6, "max_num_points": 37}, "max_num_points=37 exceeds the 36 pixels"),
        ({"resolution": 5, "max_num_points": None}, "max_num_points=5 leaves no room"),
    ],
    ids=["no-validation", "no-training", "resolution", "channels", "points", "tiny"],
)
def test_arguments_that_make_no_tasks_are_refused(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pictures(tmp_path, **arguments)


def test_a_corrupt_picture_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.warns(UserWarning, match=r"1 of 61 pictures cannot be read: broken\.png"):
        sets = pictures(tmp_path).image_sets
    assert sum(len(images) for images in sets.values()) == 60
