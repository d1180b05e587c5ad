"""Files that are whole, or not there, and that one process at a time writes.

On a file system without locks, and on Windows, nothing is locked: litter stays there, and of two
processes that write one file the last to finish wins.
"""

import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from npbench.errors import InputError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

# Some file systems cannot flush a folder, and a folder that may be written may be unreadable.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_UNFINISHED = "[0-9a-f]" * 8


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give the path of an unfinished file, which takes the place of `path` when the block ends.

    Whoever opens `path`, at any moment, finds the whole old file, the whole new one, or none where
    there was none: after an error in the block, an interrupt, a kill or a loss of power too. An
    error or an interrupt also leaves no unfinished file behind. A kill or a loss of power may leave
    one, whose name is `.NAME.` and eight hexadecimal digits; the next call for `path` removes it.

    The unfinished file is in the folder of `path`, which is made if it is missing: a rename is
    atomic within one file system only. No two blocks share an unfinished file, so that of several
    processes that write one `path` the last to finish wins; `only_writer` refuses all but one.

    Args:
        path: the file to write; a symbolic link is replaced, and not followed.

    Raises:
        OSError: if the folder cannot be written, the disk is full, or the block writes nothing.

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
    remove_litter(path.parent, glob.escape(path.name))
    unfinished, descriptor = _begin(path)
    try:
        yield unfinished
        if not os.path.getsize(unfinished):
            raise FileNotFoundError(errno.ENOENT, "nothing was written", str(path))
        replace_durably(unfinished, path)
    finally:
        with suppress(OSError):  # the error that led here says more
            unfinished.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def output_file(path: str | os.PathLike) -> Iterator[Path]:
    """`whole_file` for what a user has asked for: what cannot be written is said in one sentence.

    Raises:
        InputError: if the folder cannot be written, the disk is full, or the block writes nothing.
    """
    try:
        with whole_file(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); what was there is as it was"
        ) from error


def replace_durably(whole: str | os.PathLike, path: str | os.PathLike) -> None:
    """Rename a whole file to `path`, in the same folder, so that a loss of power undoes neither.

    The content is on the disk before the name is, and the name is there on return.

    Raises:
        OSError: if it cannot be renamed; `path` is then as it was.
    """
    _flush(whole)
    os.replace(whole, path)
    _flush(Path(path).parent)


def remove_litter(folder: str | os.PathLike, name: str = "*") -> None:
    """Remove the unfinished files in a folder that killed processes have left of `name`.

    Those that a living process writes are locked, and stay.

    Args:
        folder: the folder of the files; it may be missing.
        name: of the file that they were to become, or a pattern such as "*.ckpt".
    """
    for litter in Path(folder).glob(f".{name}.{_UNFINISHED}"):
        with suppress(OSError):  # it may be another user's, or gone by now
            descriptor = os.open(litter, os.O_RDWR)
            try:
                if _lock(descriptor):
                    litter.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def only_writer(path: str | os.PathLike) -> Iterator[None]:
    """Let one process at a time write `path`, a file or a folder, for as long as the block lasts.

    Beside it is then a file `.NAME.lock`. The lock goes with its process, however that ends.

    Raises:
        InputError: if another process is in such a block, or the folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, only_writer(f"{folder}/table.csv"):
        ...     os.listdir(folder)
        ['.table.csv.lock']
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _only(lock)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from error
    if descriptor is None:
        raise InputError(
            f"another process is writing {path}; wait for it to end, or choose another name"
        )
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _begin(path: Path) -> tuple[Path, int]:
    """A new unfinished file, which is locked while it is open."""
    while True:
        unfinished = path.with_name(f".{path.name}.{token_hex(4)}")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Between the two lines another process may have taken it for litter.
        if _lock(descriptor) is not False and _is_there(unfinished, descriptor):
            return unfinished, descriptor
        os.close(descriptor)


def _only(lock: Path) -> int | None:
    """The descriptor of a lock file that nobody else holds, or None."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if _lock(descriptor) is False:
            os.close(descriptor)
            return None
        if _is_there(lock, descriptor):
            return descriptor
        os.close(descriptor)  # whoever held it has removed it


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process has, and None where files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        return None
    return True


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
