"""Files that are whole, or not there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

# Some file systems cannot flush a folder, and a folder that may be written may be unreadable.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give the path of an unfinished file, which takes the place of `path` when the block ends.

    Whoever opens `path`, at any moment, finds the whole old file, the whole new one, or none where
    there was none: after an error in the block, an interrupt, a kill or a loss of power too. An
    error or an interrupt also leaves no unfinished file behind. A kill or a loss of power may leave
    one, whose name is `.NAME.` and eight hexadecimal digits.

    The unfinished file is in the folder of `path`, which is made if it is missing: a rename is
    atomic within one file system only. No two blocks share an unfinished file, so that of several
    processes that write one `path` the last to finish wins.

    Args:
        path: the file to write; a symbolic link is replaced, and not followed.

    Raises:
        OSError: if the folder cannot be written, or the disk is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with whole_file(f"{folder}/greeting") as unfinished:
        ...         unfinished.write_text("hello")
        ...     os.listdir(folder)
        5
        ['greeting']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        yield unfinished
        replace_durably(unfinished, path)
    finally:
        with suppress(OSError):  # the error that led here says more
            unfinished.unlink(missing_ok=True)


def replace_durably(whole: str | os.PathLike, path: str | os.PathLike) -> None:
    """Rename a whole file to `path`, in the same folder, so that a loss of power undoes neither.

    The content is on the disk before the name is, and the name is there on return.

    Raises:
        OSError: if it cannot be renamed; `path` is then as it was.
    """
    _flush(whole)
    os.replace(whole, path)
    _flush(Path(path).parent)


def _flush(path: str | os.PathLike) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
