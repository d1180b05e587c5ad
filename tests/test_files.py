"""A file is whole, or not there, whatever happens while it is written."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from npbench.errors import InputError
from npbench.files import only_writer, remove_litter, replace_durably, whole_file


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
    assert len(list(path.parent.glob(".file.*"))) == 1
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
    assert content(path) == "new"
    assert list(path.parent.iterdir()) == [path]  # the next writer has removed the litter


def test_what_a_living_process_writes_is_no_litter(tmp_path: Path) -> None:
    names = [".file.0123abcd", ".file.0123abcg", ".other.0123abcd", "file.0123abcd"]
    for name in names:
        (tmp_path / name).touch()
    with whole_file(tmp_path / "file") as unfinished:
        unfinished.write_text("new")
        remove_litter(tmp_path, "file")
        assert unfinished.read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"file", *names[1:]}
    remove_litter(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", names[1], names[3]}
    remove_litter(tmp_path / "missing")


@pytest.mark.parametrize("name", ["file[1]", "fi*e"])
def test_litter_of_a_name_with_special_signs_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name}.0123abcd").touch()
    (tmp_path / ".fiXe.0123abcd").touch()
    with whole_file(tmp_path / name) as unfinished:
        unfinished.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {name, ".fiXe.0123abcd"}


_WRITER = """
import sys
from npbench.files import only_writer
with only_writer(sys.argv[1]):
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_one_process_at_a_time_writes_a_file_and_the_next_when_it_has_ended(
    path: Path, ends: str
) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout.readline() == b"writing\n"
    with pytest.raises(InputError, match=f"another process is writing {path}"), only_writer(path):
        pytest.fail("two write at once")
    if ends == "killed":
        first.kill()
    first.communicate()
    for _ in range(2):
        with only_writer(path):
            assert path.with_name(".file.lock").exists()
    assert not path.with_name(".file.lock").exists()


def test_a_folder_that_cannot_hold_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot be written"), only_writer(tmp_path / "file" / "x"):
        pytest.fail("there is nowhere to write to")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_written_all_the_same(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "cannot lock")

    monkeypatch.setattr(fcntl, "flock", fail)
    path.with_name(".file.0123abcd").touch()
    with only_writer(path), whole_file(path) as unfinished:
        unfinished.write_text("new")
    assert content(path) == "new"
    assert path.with_name(".file.0123abcd").exists()  # it may be a living process's


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
