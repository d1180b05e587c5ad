"""Decodes and resizes pictures once, into a memory-mapped file."""

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from PIL import Image, ImageOps
from rich.progress import Progress

from npbench.errors import InputError

# This number is in the name of a cache. It must change when the pixels or the files of a cache do.
_VERSION = 1
_BLOCK = 512

# Pillow knows many formats more, and starts an interpreter for some, whatever a file is called.
_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
# A file of a few hundred kilobytes can announce pixels of gigabytes.
_MOST_PIXELS = 2**26

OnCorrupt = Literal["skip", "error"]


@dataclass(frozen=True)
class Decoder:
    """Decodes a picture: upright, grey or RGB, its central square resized (bicubic, antialiased).

    Args:
        resolution: rows and columns of the result.
        num_channels: 1 for grey, 3 for RGB.
        center_crop: cut out the central square first; otherwise the whole picture is squeezed.
    """

    resolution: int
    num_channels: int
    center_crop: bool = True

    def __post_init__(self) -> None:
        if self.resolution < 2:
            raise InputError(f"resolution={self.resolution} must be 2 or more")
        if self.num_channels not in (1, 3):
            raise InputError(f"num_channels={self.num_channels} must be 1 (grey) or 3 (RGB)")

    def __call__(self, path: Path) -> UInt8[np.ndarray, "channels height width"]:
        """Decode a picture; where it is corrupt, raise whatever its format raises.

        Raises:
            InputError: if it has more than 2²⁶ pixels, before they are decoded.
        """
        with Image.open(path, formats=_FORMATS) as picture:
            width, height = picture.size
            if width * height > _MOST_PIXELS:
                raise InputError(f"{width}×{height} pixels are more than {_MOST_PIXELS:,}")
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I;16"):
                # Pillow would clip 16-bit values at 255.
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            picture = picture.convert("L" if self.num_channels == 1 else "RGB")
        if self.center_crop:
            side = min(picture.size)
            left, top = ((length - side) // 2 for length in picture.size)
            # The filter of `resize(box=…)` would look beyond the box.
            picture = picture.crop((left, top, left + side, top + side))
        size = (self.resolution, self.resolution)
        pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        return pixels.reshape(*size, self.num_channels).transpose(2, 0, 1)


@dataclass(frozen=True)
class ImageCache:
    """Decoded pictures in a memory-mapped file, which all workers and ranks share.

    `names` are the names of the pictures in `images`. `skipped` has the names of the others, each
    with the reason why it could not be decoded.
    """

    images: UInt8[np.ndarray, "images channels height width"]
    names: list[str]
    skipped: dict[str, str]

    @classmethod
    def of(
        cls,
        folder: Path,
        names: Sequence[str],
        decoder: Decoder,
        cache_dir: Path,
        on_corrupt: OnCorrupt = "skip",
        fingerprint: str = "",
    ) -> "ImageCache":
        """The cache of these pictures, which is built first if it does not exist.

        It is a folder `v1-64x64x3-…`, whose name ends in a hash of the names, the decoder and the
        fingerprint. It gets this name when it is whole. Of several processes one builds the cache,
        and the others wait.

        Args:
            folder: the folder of the pictures.
            names: paths of the pictures in it.
            decoder: decodes a picture.
            cache_dir: the folder of the caches.
            on_corrupt: leave out pictures that cannot be decoded, with a warning, or raise an
                error.
            fingerprint: anything else that asks for a new cache when it changes.

        Raises:
            FileNotFoundError: if a picture is missing.
            InputError: if a picture is corrupt and `on_corrupt` is "error", or if all are corrupt.
        """
        key = hashlib.sha256("\n".join([repr(decoder), fingerprint, *names]).encode()).hexdigest()
        size = f"{decoder.resolution}x{decoder.resolution}x{decoder.num_channels}"
        path = cache_dir / f"v{_VERSION}-{size}-{key[:16]}"
        if not path.is_dir():
            _check_all_exist(folder, names)
            with _alone(cache_dir):
                if not path.is_dir():
                    _build(path, folder, names, decoder, on_corrupt)
        cache = cls._open(path)
        if cache.skipped:
            report = f"{len(cache.skipped)} of {len(names)} pictures cannot be read: " + "; ".join(
                f"{name} ({why})" for name, why in list(cache.skipped.items())[:3]
            )
            again = f"{path} leaves them out; delete it to decode all again"
            if on_corrupt == "error":
                raise InputError(f"{report}. {again}")
            warnings.warn(f"{report}. {again}", stacklevel=2)
        return cache

    @classmethod
    def _open(cls, path: Path) -> "ImageCache":
        index = json.loads((path / "index.json").read_text())
        if (path / "images").stat().st_size != math.prod(index["shape"]):
            raise InputError(f"the cache {path} is damaged; delete it")
        images = np.memmap(path / "images", np.uint8, mode="r", shape=tuple(index["shape"]))
        return cls(images, index["names"], index["skipped"])


def _build(
    path: Path, folder: Path, names: Sequence[str], decoder: Decoder, on_corrupt: OnCorrupt
) -> None:
    size = decoder.num_channels * decoder.resolution**2
    free = shutil.disk_usage(path.parent).free
    if free < len(names) * size:
        raise OSError(
            f"the cache of {len(names):,} pictures takes {len(names) * size / 2**30:.1f} GiB, and "
            f"{path.parent} has {free / 2**30:.1f} GiB left; set cache_dir to another folder"
        )
    # No other process builds now (see `_alone`), so what is left here is of one that was killed.
    partial = path.parent / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    kept, skipped = [], {}
    try:
        with (partial / "images").open("wb") as file:
            for name, result in _decode_all(folder, names, decoder):
                if not isinstance(result, Exception):
                    file.write(result.tobytes())
                    kept.append(name)
                elif on_corrupt == "error":
                    raise InputError(
                        f'{folder / name} cannot be read: {result}; on_corrupt="skip" would leave '
                        f"it out"
                    ) from result
                else:
                    skipped[name] = str(result)
        if not kept:
            name, why = next(iter(skipped.items()))
            raise InputError(f"none of the {len(names)} pictures can be read: {name} ({why}), …")
        shape = len(kept), decoder.num_channels, decoder.resolution, decoder.resolution
        index = {"shape": shape, "names": kept, "skipped": skipped}
        (partial / "index.json").write_text(json.dumps(index))
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode_all(
    folder: Path, names: Sequence[str], decoder: Decoder
) -> Iterator[tuple[str, UInt8[np.ndarray, "channels height width"] | Exception]]:
    """Yield each picture in order, or the error that its decoding raised; show a progress bar."""

    def decode(name: str) -> UInt8[np.ndarray, "channels height width"] | Exception:
        try:
            return decoder(folder / name)
        except Exception as error:  # the formats raise all kinds of errors
            return error

    description = f"decoding to {decoder.resolution}×{decoder.resolution}"
    with Progress(transient=True) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        task = progress.add_task(description, total=len(names))
        for start in range(0, len(names), _BLOCK):
            block = names[start : start + _BLOCK]
            yield from zip(block, pool.map(decode, block))
            progress.advance(task, len(block))


def _check_all_exist(folder: Path, names: Sequence[str]) -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of the {len(names)} listed pictures: {listed}"
        )


@contextmanager
def _alone(cache_dir: Path) -> Iterator[None]:
    """Let one process at a time into the block. The lock goes with its process, however it ends."""
    lock = FileLock(cache_dir / "lock")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process that builds a cache in {cache_dir}", flush=True)
        lock.acquire()
    except OSError as error:
        raise OSError(
            f"cannot write a cache into {cache_dir} ({error.strerror}); set cache_dir to another "
            f"folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
