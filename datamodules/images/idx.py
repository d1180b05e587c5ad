"""Loads idx files, the format of MNIST and its kin."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from npbench.errors import InputError

# So many bytes are unzipped of a file, or a hundred times its own: pixels compress to a fifth.
_MOST_BYTES, _MOST_TIMES = 2**24, 100


def find_idx(path: Path) -> Path | None:
    """The file if it is there, or else the same file gzipped, or else None."""
    zipped = path.with_name(f"{path.name}.gz")
    return next((file for file in (path, zipped) if file.is_file()), None)


def load_idx(path: Path, num_dims: int) -> UInt8[np.ndarray, "..."]:
    """Load the array of bytes in an idx file, which may be gzipped.

    An idx file is a magic number (two zero bytes, 8 for unsigned bytes, the number of dimensions),
    the length of each dimension as a big-endian 32-bit integer, and the values.

    Args:
        path: the file; a gzipped one ends in `.gz`.
        num_dims: the number of dimensions that it must have: 3 for images, 1 for labels.

    Raises:
        InputError: if it is no such file, if it is cut off, or if it is gzipped and holds far more
            than pixels or labels of its size.
    """
    is_zipped, on_disk = path.suffix == ".gz", path.stat().st_size
    try:
        with (gzip.open if is_zipped else open)(path, "rb") as file:
            header = file.read(4 + 4 * num_dims)
            shape = _shape(path, header, num_dims)
            announced = 4 + 4 * num_dims + math.prod(shape)
            most = max(_MOST_BYTES, _MOST_TIMES * on_disk) if is_zipped else on_disk
            # One more would be too many.
            values = file.read(min(math.prod(shape) + 1, most))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is cut off or no gzip file ({error}); get it again") from error
    if len(header) + len(values) != announced:
        raise InputError(
            f"{path} holds {len(header) + len(values):,} bytes where its header of shape {shape} "
            f"announces {announced:,}: it is cut off or damaged; get it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, num_dims: int) -> list[int]:
    """The shape that the header of a file announces."""
    magic = bytes([0, 0, 8, num_dims])
    if not magic.startswith(header[:4]):
        raise InputError(
            f"{path} begins with 0x{header[:4].hex()}, where an idx file of {num_dims} "
            f"dimension(s) has the magic number 0x{magic.hex()}"
        )
    return np.frombuffer(header[4:].ljust(4 * num_dims, b"\0"), ">u4").tolist()
