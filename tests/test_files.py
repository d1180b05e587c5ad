"""A file is whole, or not there, whatever happens while it is written."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from npbench.files import replace_durably, whole_file


@pytest.fixture(params=[None, "old"], ids=["no file before", "a file before"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "file"
    if request.param:
        path.write_text(request.param)
    return path


def content(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def test_the_file_is_there_when_the_block_ends_and_not_before(path: Path) -> None:
    before = content(path)
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
        assert content(path) == before
    assert content(path) == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("written", ["", "half"])
def test_an_error_or_an_interrupt_leaves_the_old_file_and_no_litter(
    path: Path, error: type[BaseException], written: str
) -> None:
    before = content(path)
    with pytest.raises(error), whole_file(path) as unfinished:  # noqa: PT012
        if written:
            unfinished.write_text(written)
        raise error
    assert content(path) == before
    assert list(path.parent.iterdir()) == ([path] if before else [])


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_cannot_be_put_in_its_place_leaves_the_old_one(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = content(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(OSError, match="Input/output"), whole_file(path) as unfinished:
            unfinished.write_text("new")
    assert content(path) == before
    assert list(path.parent.iterdir()) == ([path] if before else [])


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_block_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace, steps = os.fsync, os.replace, []

    def flushed(descriptor: int) -> None:
        steps.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
    assert steps == [f"flush {unfinished.name}", "rename", f"flush {path.parent.name}"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_flush_is_written_all_the_same(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, "cannot flush")

    monkeypatch.setattr(os, "fsync", fail)
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
    assert content(path) == "new"


def test_two_writers_of_one_file_do_not_disturb_each_other(path: Path) -> None:
    with whole_file(path) as first:
        with whole_file(path) as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert content(path) == "second"
    assert content(path) == "first"
    assert list(path.parent.iterdir()) == [path]


def test_folders_are_made_and_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    path, other = tmp_path / "new" / "folder" / "file", tmp_path / "other"
    with whole_file(str(path)) as unfinished:
        assert unfinished.parent == path.parent
        unfinished.write_text("new")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="File exists"), whole_file(tmp_path / "file" / "x"):
        pytest.fail("there is nowhere to write to")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "nothing"):
        pass  # writes nothing
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


_KILLED = """
import os, signal, sys
from npbench.files import whole_file
with whole_file(sys.argv[1]) as unfinished:
    unfinished.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_old_file(path: Path) -> None:
    before = content(path)
    code = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False).returncode
    assert code == -signal.SIGKILL
    assert content(path) == before
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
    assert content(path) == "new"


@pytest.mark.parametrize("failing", [None, "replace"])
def test_a_whole_file_is_renamed_or_both_stay(
    path: Path, failing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, before = path.with_name("whole"), content(path)
    whole.write_text("new")
    if failing is None:
        replace_durably(whole, path)
        assert content(path) == "new"
        assert not whole.exists()
        return

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="no"):
        replace_durably(whole, path)
    assert (content(path), content(whole)) == (before, "new")
