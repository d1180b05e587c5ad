"""Pictures are decoded once, whoever asks first, and come out as they went in."""

import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.image_files import photo
from PIL import Image, ImageFile

from datamodules.images import cache
from datamodules.images.cache import Decoder, ImageCache

GREY = Decoder(resolution=8, num_channels=1)
COLOR = Decoder(resolution=8, num_channels=3)


def write(folder: Path, number: int = 4) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = [f"{place}.png" for place in range(number)]
    for place, name in enumerate(names):
        photo(place, width=8, height=8).save(folder / name)
    return names


def cache_of(
    folder: Path, names: list[str], decoder: Decoder = COLOR, **options: object
) -> ImageCache:
    return ImageCache.of(folder, names, decoder, folder / "cache", **options)


# Decoding


def test_a_picture_of_the_right_size_comes_out_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(COLOR(tmp_path / "a.png"), pixels.transpose(2, 0, 1))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(GREY(tmp_path / "grey.png"), pixels[None, ..., 0])
    assert np.array_equal(COLOR(tmp_path / "grey.png"), np.stack([pixels[..., 0]] * 3))


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)], ids=["wide", "high"])
def test_the_central_square_is_cut_out(tmp_path: Path, shape: tuple[int, int]) -> None:
    """White in the square, black outside it; squeezed, the black stays at both ends."""
    pixels = np.zeros(shape, np.uint8)
    top, left = (length // 2 - 8 for length in shape)
    pixels[top : top + 16, left : left + 16] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (GREY(tmp_path / "a.png") == 255).all()
    (squeezed,) = Decoder(6, num_channels=1, center_crop=False)(tmp_path / "a.png")
    squeezed = squeezed if shape[1] > shape[0] else squeezed.T
    assert (squeezed[:, [0, 5]] < 40).all()
    assert (squeezed[:, 2:4] > 215).all()


def test_a_celeba_picture_loses_twenty_rows_on_either_end(tmp_path: Path) -> None:
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[20:198] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for resolution in (32, 64, 128):
        assert (Decoder(resolution, num_channels=3)(tmp_path / "a.png") == 255).all()


def test_resizing_averages(tmp_path: Path) -> None:
    """A checkerboard becomes grey: not every eighth pixel of it."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    inside = GREY(tmp_path / "a.png")[:, 1:-1, 1:-1]
    assert np.allclose(inside, 127.5, atol=2)


def test_cameras_turn_pictures_and_scanners_store_16_bits(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 200
    turned = Image.Exif()
    turned[0x0112] = 6  # the first row is the right side
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    assert np.array_equal(GREY(tmp_path / "turned.png")[0], np.rot90(pixels, -1))
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(GREY(tmp_path / "deep.png")[0], pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 3), "resolution=1 must be 2 or more"), ((8, 2), "num_channels=2 must be 1 .* or 3")],
)
def test_decoders_that_make_no_images_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder(*arguments)


# The cache


def test_a_cache_holds_the_pictures_in_order(tmp_path: Path) -> None:
    names = write(tmp_path, number=20)[::-1]
    cache = cache_of(tmp_path, names)
    assert cache.names == names
    assert cache.skipped == {}
    assert isinstance(cache.images, np.memmap)
    assert not cache.images.flags.writeable
    expected = np.stack([COLOR(tmp_path / name) for name in names])
    assert np.array_equal(cache.images, expected)


def test_pictures_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write(tmp_path)
    first = cache_of(tmp_path, names)
    for name in names:
        os.remove(tmp_path / name)
    assert np.array_equal(cache_of(tmp_path, names).images, first.images)


def test_another_decoder_list_or_fingerprint_is_another_cache(tmp_path: Path) -> None:
    names = write(tmp_path)
    assert cache_of(tmp_path, names).images.shape == (4, 3, 8, 8)
    assert cache_of(tmp_path, names, GREY).images.shape == (4, 1, 8, 8)
    cache_of(tmp_path, names, Decoder(8, num_channels=3, center_crop=False))
    assert cache_of(tmp_path, names[:3]).images.shape == (3, 3, 8, 8)
    photo(9, width=8, height=8).save(tmp_path / names[0])
    assert np.array_equal(cache_of(tmp_path, names).images[0], COLOR(tmp_path / names[1])) is False
    again = cache_of(tmp_path, names, fingerprint="changed")
    assert np.array_equal(again.images[0], COLOR(tmp_path / names[0]))
    folders = [folder for folder in (tmp_path / "cache").iterdir() if folder.is_dir()]
    assert len(folders) == 5
    assert all(folder.name.startswith("v1-8x8x") for folder in folders)


def build(folder: Path, names: list[str], started: object, results: object) -> None:
    decode = Decoder.__call__

    def counting(self: Decoder, path: Path) -> np.ndarray:
        with results.get_lock():
            results[1] += 1
        return decode(self, path)

    Decoder.__call__ = counting
    started.wait()
    cache = cache_of(folder, names)
    with results.get_lock():
        results[0] += int(cache.images.sum())


def test_two_processes_build_a_cache_at_once(tmp_path: Path) -> None:
    """One decodes, both get the whole."""
    names = write(tmp_path, number=300)
    context = multiprocessing.get_context("fork")
    started, results = context.Barrier(2), context.Array("q", [0, 0])
    arguments = tmp_path, names, started, results
    processes = [context.Process(target=build, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert results[1] == 300
    assert results[0] == 2 * sum(int(COLOR(tmp_path / name).sum()) for name in names)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    names = write(tmp_path)
    left = tmp_path / "cache" / "partial"
    left.mkdir(parents=True)
    (left / "images").write_bytes(b"half")
    assert len(cache_of(tmp_path, names).images) == 4
    assert not left.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_build_that_ends_early_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    names = write(tmp_path)

    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(cache, "_decode_all", interrupted)
    with pytest.raises(error):
        cache_of(tmp_path, names)
    assert {file.name for file in (tmp_path / "cache").iterdir()} <= {"lock"}


def test_a_cache_comes_into_being_by_a_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write(tmp_path)

    def fail(source: Path, target: Path) -> None:
        assert (source / "images").stat().st_size == 4 * 3 * 8 * 8
        assert not target.exists()
        raise OSError("no rename")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no rename"):
        cache_of(tmp_path, names)
    assert {file.name for file in (tmp_path / "cache").iterdir()} <= {"lock"}


# Corrupt and missing pictures


def corrupt(folder: Path) -> list[str]:
    """One picture cut off, one that is none, and two that can be read."""
    names = write(folder)
    photo(0).save(folder / "cut.jpg")
    content = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("no picture")
    return [names[0], "cut.jpg", "text.jpg", names[1]]


def test_corrupt_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    names = corrupt(tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"2 of 4 .* cannot be read: cut\.jpg .*; text\.jpg"):
            cache = cache_of(tmp_path, names)
        assert cache.names == [names[0], names[3]]
        assert list(cache.skipped) == ["cut.jpg", "text.jpg"]
        assert np.array_equal(cache.images[1], COLOR(tmp_path / names[3]))
    with pytest.raises(ValueError, match=r"2 of 4 .*delete it to decode all again"):
        cache_of(tmp_path, names, on_corrupt="error")


def test_a_corrupt_picture_is_an_error_if_asked(tmp_path: Path) -> None:
    names = corrupt(tmp_path)
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read: .*truncated.*on_corrupt"):
        cache_of(tmp_path, names, on_corrupt="error")
    assert {file.name for file in (tmp_path / "cache").iterdir()} <= {"lock"}


def test_nothing_but_corrupt_pictures_is_an_error(tmp_path: Path) -> None:
    names = corrupt(tmp_path)[1:3]
    with pytest.raises(ValueError, match=r"none of the 2 pictures can be read: cut\.jpg"):
        cache_of(tmp_path, names)


@pytest.mark.parametrize("kind", ["eps", "gif", "tiff", "ppm"])
def test_what_is_no_picture_of_a_wanted_format_is_not_opened_whatever_its_name(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For some formats Pillow starts an interpreter."""

    def start(*_: object, **__: object) -> None:
        pytest.fail("a program was started")

    names = write(tmp_path)
    photo(0).save(tmp_path / "a.jpg", format=kind)
    monkeypatch.setattr("subprocess.Popen", start)
    with pytest.warns(UserWarning, match=r"a\.jpg \(cannot identify image file"):
        assert cache_of(tmp_path, [*names, "a.jpg"]).names == names


@pytest.mark.parametrize("kind", ["bmp", "jpeg", "png", "webp"])
def test_pictures_of_the_wanted_formats_are_decoded(tmp_path: Path, kind: str) -> None:
    photo(0, width=8, height=8).save(tmp_path / "a.jpg", format=kind)
    assert COLOR(tmp_path / "a.jpg").shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("side", "reason"), [(9000, "9000×9000 pixels are more than"), (20_000, "Image size")]
)
def test_a_small_file_that_announces_gigabytes_of_pixels_is_left_out_and_not_decoded(
    tmp_path: Path, side: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write(tmp_path)
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 100_000
    load = ImageFile.ImageFile.load

    def load_small(picture: ImageFile.ImageFile) -> object:
        assert picture.width < side
        return load(picture)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_small)
    with pytest.warns(UserWarning, match=rf"large\.png \({reason}"):
        assert cache_of(tmp_path, [*names, "large.png"]).names == names


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    names = write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of the 6 listed pictures: x\.png, y"):
        cache_of(tmp_path, [*names, "x.png", "y.png"])


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    names = write(tmp_path)
    cache_of(tmp_path, names)
    (images,) = tmp_path.glob("cache/v1-*/images")
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"the cache .*v1-8x8x3-.* is damaged; delete it"):
        cache_of(tmp_path, names)


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=700))
    with pytest.raises(
        OSError, match=r"the cache of 4 pictures takes .* GiB, and .* set cache_dir"
    ):
        cache_of(tmp_path, names)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    names = write(tmp_path)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write a cache into .*cache .* set cache_dir"):
        cache_of(tmp_path, names)
