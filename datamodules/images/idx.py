"""Loads idx files, the format of MNIST and its kin."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from npbench.errors import InputError


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
        InputError: if it is no such file, or if it is cut off.
    """
    try:
        content = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is cut off or no gzip file ({error}); get it again") from error
    magic, header = bytes([0, 0, 8, num_dims]), 4 + 4 * num_dims
    if not magic.startswith(content[:4]):
        raise InputError(
            f"{path} begins with 0x{content[:4].hex()}, where an idx file of {num_dims} "
            f"dimension(s) has the magic number 0x{magic.hex()}"
        )
    shape = np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">u4").tolist()
    if len(content) != header + math.prod(shape):
        raise InputError(
            f"{path} holds {len(content):,} bytes where its header of shape {shape} announces "
            f"{header + math.prod(shape):,}: it is cut off or damaged; get it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
