"""Loads pickles that strangers made: plain containers and numbers, and nothing that runs."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from npbench.errors import InputError


def load_plain(path: Path, keep_arrays: bool = False) -> Any:
    """Load what a pickle holds, if that is dictionaries, lists, tuples, strings and numbers.

    NumPy's numbers become Python's and its arrays become lists. They are rebuilt here, because
    NumPy's own functions for that trust the file.

    Args:
        path: the pickle.
        keep_arrays: arrays become `KeptArray` instead, which takes less memory than lists.

    Raises:
        InputError: if the pickle asks for anything else, which the message names, or is damaged.
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, _KEEPING if keep_arrays else _NUMPY).load()
        except _RefusedError as error:
            raise InputError(
                f"{path} asks for {error}, and only plain containers and numbers are loaded from a "
                f"pickle: write it anew as lists, dictionaries and numbers, or as JSON"
            ) from error
        except Exception as error:  # a damaged pickle may raise anything
            raise InputError(f"{path} is no pickle, or damaged: {error}") from error


class _RefusedError(Exception):
    """Names what a pickle must not ask for."""


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, numpy: dict[str, Callable[..., Any]]) -> None:
        # Latin 1 decodes the strings of Python 2, which the bytes of NumPy arrays are too.
        super().__init__(file, encoding="latin-1")
        self._numpy = numpy

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("collections", "OrderedDict"):
            return _Rebuild(OrderedDict)
        if (module, name) == ("_codecs", "encode"):
            return _Rebuild(_encode)
        if name == "bytes" and module in ("builtins", "__builtin__"):
            return _Rebuild(_no_bytes)
        if module.split(".")[0] == "numpy" and name in self._numpy:
            return _Rebuild(self._numpy[name])
        raise _RefusedError(f"{module}.{name}")


class _Rebuild:
    """Calls a function. A pickle that gets hold of this object cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _RefusedError(f"a change of {name}")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Dtype:
    """A NumPy type of numbers."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name) if isinstance(name, str) else np.dtype("O")
        if self.dtype.kind not in "biuf":
            raise _RefusedError(f"numpy.dtype({name!r})")

    def __setstate__(self, state: tuple) -> None:
        _, byte_order, *_ = state
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array(list):
    """A NumPy array as a list. Its numbers arrive with its state, after it was made."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        self[:] = _from_buffer(content, dtype, shape, "F" if is_fortran else "C")


class KeptArray:
    """A NumPy array of numbers. Its numbers arrive with its state, after it was made."""

    def __init__(self) -> None:
        self.array: np.ndarray = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = _array(content, dtype, shape, "F" if is_fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """The bytes of text, which Python 3 writes in this way for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """The empty bytes, which Python 3 writes in this way for Python 2."""
    return b""


def _array(content: Any, dtype: _Dtype, shape: tuple, order: str = "C") -> np.ndarray:
    content = content.encode("latin-1") if isinstance(content, str) else content
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


def _from_buffer(content: Any, dtype: _Dtype, shape: tuple, order: str = "C") -> list:
    return _array(content, dtype, shape, order).tolist()


def _kept(content: Any, dtype: _Dtype, shape: tuple, order: str = "C") -> KeptArray:
    kept = KeptArray()
    kept.array = _array(content, dtype, shape, order)
    return kept


def _scalar(dtype: _Dtype, content: Any) -> Any:
    (value,) = _from_buffer(content, dtype, (1,))
    return value


# What stands in for NumPy's classes and functions, under the names that pickles ask for.
_NUMPY = {
    "dtype": _Dtype,
    "ndarray": _Array,
    "scalar": _scalar,
    "_reconstruct": lambda *_: _Array(),
    "_frombuffer": _from_buffer,
}
_KEEPING = _NUMPY | {
    "ndarray": KeptArray,
    "_reconstruct": lambda *_: KeptArray(),
    "_frombuffer": _kept,
}
