"""A pickle gives plain containers and numbers, and runs nothing."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from datamodules.events.formats.restricted_pickle import load_plain


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_and_numbers_come_out_of_a_pickle(tmp_path: Path, protocol: int) -> None:
    content = {
        "plain": [1, 2.5, "x", None, True, (1, 2)],
        "ordered": OrderedDict(a=1),
        "scalars": [np.float32(0.5), np.int64(-7), np.bool_(True), np.float64(1e9)],
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros(0),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    assert load_plain(tmp_path / "a.pkl") == {
        "plain": [1, 2.5, "x", None, True, (1, 2)],
        "ordered": {"a": 1},
        "scalars": [0.5, -7, True, 1e9],
        "array": [[0, 1, 2], [3, 4, 5]],
        "columns": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "empty": [],
    }


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """As Python 2.7 with NumPy 1.16 writes `{'x': [numpy.float64(1.5)], 'n': 3L}`."""
    old = (
        b"\x80\x02}q\x00(U\x01xq\x01]q\x02cnumpy.core.multiarray\nscalar\nq\x03cnumpy\ndtype\nq\x04"
        b"U\x02f8q\x05K\x00K\x01\x87q\x06Rq\x07(K\x03U\x01<q\x08NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x00tq\tbU\x08\x00\x00\x00\x00\x00\x00\xf8?q\n\x86q\x0bRq\x0caU\x01nq\r\x8a\x01\x03u."
    )
    (tmp_path / "a.pkl").write_bytes(old)
    assert load_plain(tmp_path / "a.pkl") == {"x": [1.5], "n": 3}


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    """Refused by name, before it is called, and wherever it hides."""
    witness = tmp_path / "ran"
    calls = {
        "builtins.open|__builtin__.open|io.open|_io.open": Calls(open, str(witness), "w"),
        "builtins.eval|__builtin__.eval": Calls(eval, f"open({str(witness)!r}, 'w')"),
        "posix.system|nt.system": Calls(__import__("os").system, f"touch {witness}"),
        "numpy.*load": Calls(np.load, str(witness), None, True),
        "collections.Counter": Calls(__import__("collections").Counter),
    }
    for name, call in calls.items():
        for content in (call, {"train": [[{"time_since_start": call}]]}):
            (tmp_path / "train.pkl").write_bytes(pickle.dumps(content, protocol))
            with pytest.raises(ValueError, match=rf"train\.pkl asks for ({name}), and only plain"):
                load_plain(tmp_path / "train.pkl")
    assert not witness.exists()


def test_other_packages_names_like_numpy_s_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02cother\nscalar\n.")
    with pytest.raises(ValueError, match=r"asks for other\.scalar, and only plain containers"):
        load_plain(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(np.array([object, "x"], dtype=object), id="objects"),
        pytest.param(np.zeros(2, dtype=[("a", "O")]), id="fields"),
        pytest.param(np.array(["x"]), id="text"),
        pytest.param(np.datetime64("2020-01-01"), id="date"),
    ],
)
def test_numpy_s_other_types_are_refused(tmp_path: Path, content: object) -> None:
    """An array of objects holds addresses in memory, which must not come from a file."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"asks for .*, and only plain containers"):
        load_plain(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "content",
    [
        # collections.OrderedDict, and then its attribute `x` set to 1
        b"\x80\x02ccollections\nOrderedDict\n}U\x01xK\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\nN}U\x01xK\x01s\x86b.",
        b"\x80\x02cnumpy\ndtype\nN}U\x09_functionK\x01s\x86b.",
    ],
    ids=["state", "slots", "function"],
)
def test_a_pickle_changes_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pkl"):
        load_plain(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(np.float32(0.5)))
    assert load_plain(tmp_path / "b.pkl") == 0.5


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_a_damaged_pickle_is_named(tmp_path: Path, cut: int) -> None:
    content = pickle.dumps({"train": [list(range(300)), np.arange(3)]})
    (tmp_path / "a.pkl").write_bytes(content[:cut])
    with pytest.raises(ValueError, match=r"a\.pkl is no pickle, or damaged: "):
        load_plain(tmp_path / "a.pkl")
