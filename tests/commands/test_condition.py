"""A table becomes a state: the model's own, through interrupts, and never a half of it."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_close, assert_same_record, small, small_cmanp

from npbench.cli import main
from npbench.commands import checkpoints
from npbench.commands import condition as command
from npbench.models import CMANP, CMANPState
from npbench.models.contracts.state_files import read_notes
from npbench.profiling import LiveTensors

pytestmark = pytest.mark.usefixtures("as_a_user")

ROWS = 1000
_load_once = cache(checkpoints.load)


@pytest.fixture
def hundreds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few rows a chunk that small files have several; and no time for loading models."""
    monkeypatch.setattr(command, "_ROWS", 100)
    monkeypatch.setattr(checkpoints, "load", _load_once)


def frame(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(rows, 3))
    return pd.DataFrame(values, columns=["lat", "t", "lon"])


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.fixture(params=["parquet", "csv"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(frame(), tmp_path / f"points.{request.param}")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    return write(frame(), tmp_path / "points.parquet")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


@pytest.fixture
def partial(out: Path) -> Path:
    return out.with_name("state.safetensors.partial")


def run(data: Path, out: Path, ckpt: Path | None = None, **options: object) -> None:
    """`npbench condition` on lat, lon and t; an option that is None is left out."""
    given = {"ckpt": ckpt, "x": "lat,lon", "y": "t", "data": data, "out": out, "device": "cpu"}
    arguments = [(f"--{k}", str(v)) for k, v in (given | options).items() if v is not None]
    assert main(["condition", *(word for pair in arguments for word in pair)]) is None


def error_of(
    capsys: pytest.CaptureFixture, *arguments: object, code: int = 1, **options: object
) -> str:
    """The sentence that a mistake ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(*arguments, **options)
    assert exit_.value.code == code
    message, *more = capsys.readouterr().err.splitlines()
    assert len(more) == (code != 130)
    return message


def points_of(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return frame[["lat", "lon"]].to_numpy(), frame[["t"]].to_numpy()


def state_of(model: CMANP, frame: pd.DataFrame) -> CMANPState:
    with torch.no_grad():
        return model.condition(*points_of(frame))


def in_hundreds(model: CMANP, *frames: pd.DataFrame) -> CMANPState:
    """The state of tables that are absorbed 100 rows at a time, each from its first row on."""
    points = (points_of(frame[i : i + 100]) for frame in frames for i in range(0, len(frame), 100))
    with torch.no_grad():
        return model.condition(points)


def assert_same_state(actual: CMANPState, expected: CMANPState) -> None:
    """But for the rounding of sums in another order."""
    for mine, theirs in zip(actual.tensors(), expected.tensors(), strict=True):
        assert_close(mine, theirs)


def test_the_file_is_the_state_of_all_rows(
    data: Path, out: Path, checkpoint: Path, model: CMANP, capsys: pytest.CaptureFixture
) -> None:
    before = data.read_bytes()
    run(data, out, checkpoint)
    assert_same_record(CMANPState.load(out, model), state_of(model, frame()))
    assert set(out.parent.iterdir()) == {data, out}
    assert data.read_bytes() == before
    first, query = capsys.readouterr().out.splitlines()
    assert first == f"1,000 points absorbed into {out}; it answers by"
    words = ["npbench", "query", "--state", str(out), "--targets", "FILE"]
    assert shlex.split(query) == [*words, "--out", "predictions.parquet"]


@pytest.mark.parametrize("name", ["SecondMomentNP", "CNP"])
def test_all_states_that_merge_are_such_a_state_and_answer(
    name: str, tmp_path: Path, out: Path, save_checkpoint: Callable
) -> None:
    model = small(name, 2, 1).float()
    names = ["lat", "lon", "t"]
    points = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=names)
    data = write(points, tmp_path / "points.csv")
    run(data, out, save_checkpoint(model, tmp_path / "sums.ckpt"), y="t")
    more = ["--state", str(out), "--data", str(data), "--out", str(out)]
    assert main(["condition", *more]) is None
    predictions = tmp_path / "predictions.csv"
    query = ["--state", str(out), "--targets", str(data), "--out", str(predictions)]
    assert main(["query", *query]) is None
    with torch.no_grad():
        twice = (np.concatenate([points[z], points[z]]) for z in (names[:2], names[2:]))
        state = model.condition(*twice)
        mean, std = model.marginals(state, points[names[:2]].to_numpy()[None])
    table = pd.read_csv(predictions)
    np.testing.assert_allclose(table["t_mean"], mean[0, :, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table["t_std"], std[0, :, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("hundreds")
@pytest.mark.parametrize("rows", [99, 100, 101, 350])
def test_a_chunk_at_a_time_is_at_once(
    rows: int, tmp_path: Path, checkpoint: Path, model: CMANP
) -> None:
    assert_same_state(in_hundreds(model, frame(rows)), state_of(model, frame(rows)))
    for kind in ("parquet", "csv"):
        run(write(frame(rows), tmp_path / f"points.{kind}"), tmp_path / kind, checkpoint)
        state = CMANPState.load(tmp_path / kind, model)
        assert_same_record(state, in_hundreds(model, frame(rows)))


@pytest.mark.usefixtures("hundreds")
def test_memory_does_not_depend_on_the_number_of_rows(tmp_path: Path, checkpoint: Path) -> None:
    def peak(rows: int) -> int:
        data = write(frame(rows), tmp_path / "points.parquet")
        with LiveTensors() as live:
            run(data, tmp_path / "state", checkpoint)
        return live.peak_bytes

    peak(300)
    assert peak(1500) <= 1.01 * peak(300)


def test_columns_are_taken_in_the_order_of_their_names(
    parquet: Path, out: Path, checkpoint: Path, model: CMANP
) -> None:
    run(parquet, out, checkpoint, x="lon,lat")
    expected = state_of(model, frame().rename(columns={"lat": "lon", "lon": "lat"}))
    assert_same_record(CMANPState.load(out, model), expected)


@pytest.mark.parametrize(
    "convert",
    [
        lambda values: values.round().astype("int32"),
        lambda values: values.astype("float32"),
        lambda values: [Decimal(round(value, 2)).quantize(Decimal("0.01")) for value in values],
    ],
    ids=["integers", "float32", "decimals"],
)
def test_numbers_of_every_kind_are_numbers(
    convert: Callable, tmp_path: Path, out: Path, checkpoint: Path, model: CMANP
) -> None:
    points = frame(50)
    points["t"] = convert(points["t"])
    run(write(points, tmp_path / "points.parquet"), out, checkpoint)
    points["t"] = points["t"].astype(float)
    assert_same_record(CMANPState.load(out, model), state_of(model, points))


def test_the_folder_of_a_run_is_its_best_checkpoint(
    parquet: Path, out: Path, model: CMANP, save_checkpoint: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save_checkpoint(small_cmanp(dim_x=2), folder / "last.ckpt")
    save_checkpoint(model, folder / "best.ckpt")
    run(parquet, out, tmp_path / "run")
    assert CMANPState.load(out, model).batch_size == 1
    assert read_notes(out)["checkpoint"] == str(folder / "best.ckpt")


def test_a_joint_model_has_such_a_state_too(
    tmp_path: Path, out: Path, save_checkpoint: Callable
) -> None:
    model = small("CMANPAND", 2, 2).float()
    names = ["lat", "lon", "t", "u"]
    points = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 4)), columns=names)
    data = write(points, tmp_path / "points.csv")
    run(data, out, save_checkpoint(model, tmp_path / "joint.ckpt"), y="t,u")
    with torch.no_grad():
        expected = model.condition(points[names[:2]].to_numpy(), points[names[2:]].to_numpy())
    assert_same_record(CMANPState.load(out, model), expected)


@pytest.mark.usefixtures("hundreds")
@pytest.mark.parametrize("in_place", [True, False])
def test_points_are_added_to_a_state(
    in_place: bool, tmp_path: Path, out: Path, checkpoint: Path, model: CMANP
) -> None:
    """Which knows its checkpoint and columns; the state of all is that of both tables."""
    run(write(frame(350), tmp_path / "first.parquet"), out, checkpoint)
    before = CMANPState.load(out, model)
    second = out if in_place else tmp_path / "second"
    more = write(frame(250, seed=1), tmp_path / "more.csv")
    run(more, second, state=out, x=None, y=None)
    expected = in_hundreds(model, frame(350), frame(250, seed=1))
    assert_same_record(CMANPState.load(second, model), expected)
    if not in_place:
        assert_same_record(CMANPState.load(out, model), before)


def test_a_state_from_python_is_added_to_where_its_model_is_named(
    parquet: Path, out: Path, checkpoint: Path, model: CMANP, capsys: pytest.CaptureFixture
) -> None:
    made = out.with_name("made")
    state_of(model, frame(9, seed=1)).save(made, model)
    message = error_of(capsys, parquet, out, state=made)
    assert message == "npbench: error: --ckpt is missing"
    assert "--x is missing" in error_of(capsys, parquet, out, checkpoint, state=made, x=None)
    run(parquet, out, checkpoint, state=made)
    expected = state_of(model, pd.concat([frame(9, seed=1), frame()]))
    assert_same_state(CMANPState.load(out, model), expected)


def test_a_checkpoint_that_was_moved_is_named(
    parquet: Path,
    out: Path,
    checkpoint: Path,
    model: CMANP,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here.ckpt", tmp_path / "there.ckpt"
    shutil.copy(checkpoint, here)
    run(parquet, out, here)
    here.rename(there)
    before = out.read_bytes()
    message = error_of(capsys, parquet, out, state=out)
    assert f"made by {here}, which is not there any more; name it by --ckpt" in message
    assert out.read_bytes() == before
    run(parquet, out, there, state=out)
    assert_same_state(CMANPState.load(out, model), state_of(model, pd.concat([frame()] * 2)))


def interrupt_when(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, after: bool
) -> None:
    """A KeyboardInterrupt before, or after, what the call of this number does."""
    original, calls = getattr(owner, name), []

    def interrupted(*args: Any, **kwargs: object) -> object:
        if name == "condition" and not args[1].shape[-2]:  # loading asks for the state of no points
            return original(*args, **kwargs)
        calls.append(name)
        if len(calls) == number and not after:
            raise KeyboardInterrupt
        result = original(*args, **kwargs)
        if len(calls) == number:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)


# Where it may come, and how many of the rows are kept then.
MOMENTS = [
    (CMANP, "condition", 4, False, 300),
    (CMANP, "condition", 4, True, 300),
    (CMANPState, "save", 4, True, 400),
    (Path, "write_bytes", 4, True, 300),
    (os, "replace", 4, False, 300),
    (os, "replace", 4, True, 400),
    (CMANP, "merge", 1, False, 1000),
    (Path, "write_bytes", 11, True, 1000),
    (os, "replace", 12, False, 1000),
]


@pytest.mark.usefixtures("hundreds")
@pytest.mark.parametrize(
    ("owner", "name", "number", "after", "kept", "adding"),
    [(*moment, False) for moment in MOMENTS] + [(*moment, True) for moment in MOMENTS[-5::2]],
)
def test_after_an_interrupt_the_same_command_goes_on(
    owner: object,
    name: str,
    number: int,
    after: bool,
    kept: int,
    adding: bool,
    parquet: Path,
    out: Path,
    partial: Path,
    checkpoint: Path,
    model: CMANP,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To bitwise the state of a run that nothing has interrupted."""
    start = {"state": out} if adding else {}
    if adding:
        run(write(frame(150, seed=1), out.with_name("first.csv")), out, checkpoint)
    before = out.read_bytes() if adding else None
    tables = [frame(150, seed=1), frame()] if adding else [frame()]
    with monkeypatch.context() as patched:
        interrupt_when(patched, owner, name, number, after)
        message = error_of(capsys, parquet, out, checkpoint, code=130, **start)
    assert message == (
        f"npbench: interrupted; the state of the first {kept:,} rows is kept in {partial}: "
        f"the same command goes on from there"
    )
    assert (out.read_bytes() if out.exists() else None) == before
    assert not list(out.parent.glob(".*"))
    halfway = model.merge(CMANPState.load(partial, model))
    assert_same_record(halfway, in_hundreds(model, *tables[:-1], frame()[:kept]))

    absorbed = []
    with monkeypatch.context() as patched:
        condition = CMANP.condition
        patched.setattr(
            CMANP, "condition", lambda m, x, y: absorbed.append(x.shape[-2]) or condition(m, x, y)
        )
        run(parquet, out, checkpoint, **start)
    assert sum(absorbed) == ROWS - kept
    assert_same_record(CMANPState.load(out, model), in_hundreds(model, *tables))
    assert not partial.exists()


@pytest.mark.usefixtures("hundreds")
def test_a_command_may_be_interrupted_many_times(
    data: Path,
    out: Path,
    partial: Path,
    checkpoint: Path,
    model: CMANP,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rows in ("200", "400", "600", "800"):
        with monkeypatch.context() as patched:
            interrupt_when(patched, CMANP, "condition", 3, after=False)
            error_of(capsys, data, out, checkpoint, code=130)
        assert read_notes(partial)["rows"] == rows
    run(data, out, checkpoint)
    assert_same_record(CMANPState.load(out, model), in_hundreds(model, frame()))


def test_an_interrupt_before_the_first_chunk_leaves_nothing(
    parquet: Path,
    out: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt_when(monkeypatch, CMANP, "condition", 1, after=True)
    message = error_of(capsys, parquet, out, checkpoint, code=130)
    assert message == "npbench: interrupted"
    assert list(out.parent.iterdir()) == [parquet]


_SLOW_COMMAND = """
import signal
import time
from npbench.cli import main
from npbench.commands import condition
from npbench.models import CMANPState

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job has not
condition._ROWS, save = 100, CMANPState.save

def slowly(self, path, model, **notes):
    save(self, path, model, **notes)
    if notes["rows"] == "300":
        time.sleep(60)

CMANPState.save = slowly
main()
"""


@pytest.mark.usefixtures("hundreds")
def test_ctrl_c_leaves_a_state_to_go_on_from(
    parquet: Path, out: Path, partial: Path, checkpoint: Path, model: CMANP
) -> None:
    command = [sys.executable, "-c", _SLOW_COMMAND, "condition", "--ckpt", str(checkpoint),
               "--data", str(parquet), "--x", "lat,lon", "--y", "t",
               "--out", str(out), "--device", "cpu"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (partial.exists() and read_notes(partial)["rows"] == "300"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error == (
        f"npbench: interrupted; the state of the first 300 rows is kept in {partial}: "
        f"the same command goes on from there\n"
    )
    assert set(out.parent.iterdir()) == {parquet, partial}
    run(parquet, out, checkpoint)
    assert_same_record(CMANPState.load(out, model), in_hundreds(model, frame()))


def cut_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object
) -> None:
    """A run that is interrupted after 300 rows."""
    with monkeypatch.context() as patched:
        interrupt_when(patched, CMANP, "condition", 4, after=False)
        error_of(capsys, *arguments, code=130)


@pytest.mark.usefixtures("hundreds")
@pytest.mark.parametrize("change", ["data", "length", "columns", "outputs", "weights", "state"])
def test_what_others_have_begun_is_not_gone_on_with(
    change: str,
    parquet: Path,
    out: Path,
    partial: Path,
    checkpoint: Path,
    model: CMANP,
    save_checkpoint: Callable,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_off(monkeypatch, capsys, parquet, out, checkpoint)
    before, points, options = partial.read_bytes(), frame(), {}
    if change == "data":
        points.loc[299, "t"] += 1e-12
    elif change == "length":
        points = points[:299]
    elif change == "columns":
        options["x"] = "lon,lat"
    elif change == "outputs":
        options["y"] = "lat"
    elif change == "weights":
        checkpoint = save_checkpoint(small_cmanp(dim_x=2), out.with_name("other.ckpt"))
    else:
        options["state"] = out.with_name("start")
        state_of(model, frame(5, seed=1)).save(options["state"], model)
    write(points, parquet)
    message = error_of(capsys, parquet, out, checkpoint, **options)
    assert message == (
        f"npbench: error: {partial} was left by a run on other data, columns, weights or --state; "
        f"delete it, or choose another --out"
    )
    assert partial.read_bytes() == before
    assert not out.exists()


@pytest.mark.usefixtures("hundreds")
def test_a_finished_state_is_none_to_go_on_from(
    parquet: Path, out: Path, partial: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    """Points are absorbed twice where they come twice, and only there."""
    run(parquet, out, checkpoint)
    run(parquet, out, state=out)
    assert not partial.exists()
    partial.write_text("not a state")
    assert f"{partial} is no state file" in error_of(capsys, parquet, out, checkpoint)
    assert partial.read_text() == "not a state"


@pytest.mark.usefixtures("hundreds")
@pytest.mark.parametrize("mended", ["corrected", "dropped", "corrected, and more rows at its end"])
def test_a_row_that_cannot_be_read_is_mended_and_the_same_command_goes_on(
    mended: str,
    data: Path,
    out: Path,
    partial: Path,
    checkpoint: Path,
    model: CMANP,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is another one then; what was absorbed of it is not."""
    points = frame()
    points.loc[437, "lon"] = np.inf
    write(points, data)
    message = error_of(capsys, data, out, checkpoint)
    assert message == (
        f"npbench: error: column lon of {data} is inf in row 438; drop such rows; the state of "
        f"the first 400 rows is kept in {partial}: the same command goes on from there"
    )
    assert not out.exists()
    halfway = model.merge(CMANPState.load(partial, model))
    assert_same_record(halfway, in_hundreds(model, points[:400]))
    # Not mended yet: nothing is lost.
    assert error_of(capsys, data, out, checkpoint) == message

    points = points.drop(index=437) if mended == "dropped" else points.replace(np.inf, 0.5)
    if "more" in mended:
        points = pd.concat([points, frame(50, seed=1)])
    write(points, data)
    run(data, out, checkpoint)
    assert_same_record(CMANPState.load(out, model), in_hundreds(model, points))
    assert not partial.exists()


@pytest.mark.usefixtures("hundreds")
def test_rows_that_were_added_since_the_interrupt_are_absorbed_too(
    data: Path,
    out: Path,
    checkpoint: Path,
    model: CMANP,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(frame()[:950], data)
    with monkeypatch.context() as patched:
        interrupt_when(patched, CMANP, "merge", 1, after=False)
        error_of(capsys, data, out, checkpoint, code=130)
    write(frame(), data)
    run(data, out, checkpoint)
    assert_same_record(
        CMANPState.load(out, model), in_hundreds(model, frame()[:950], frame()[950:])
    )


@pytest.mark.usefixtures("hundreds")
def test_a_line_that_is_no_row_is_named(
    tmp_path: Path, out: Path, partial: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    data = write(frame(20_000), tmp_path / "points.csv")
    lines = data.read_text().splitlines()
    lines[1 + 19_000] = "1.0,unknown,2.0"
    data.write_text("\n".join(lines))
    message = error_of(capsys, data, out, checkpoint)
    assert "row 19,001: invalid value 'unknown', which is no number" in message
    assert f"rows is kept in {partial}" in message
    assert int(read_notes(partial)["rows"]) > 10_000


@pytest.mark.usefixtures("hundreds")
def test_a_full_disk_keeps_what_was_saved_before(
    parquet: Path,
    out: Path,
    partial: Path,
    checkpoint: Path,
    model: CMANP,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_bytes, calls = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        calls.append(path)
        if len(calls) == 4:
            write_bytes(path, content[:100])
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        message = error_of(capsys, parquet, out, checkpoint)
    reason, kept = message.split("; ")
    assert reason.endswith("partial cannot be written (No space left on device)")
    assert kept.startswith("the state of the first 300 rows is kept")
    assert set(out.parent.iterdir()) == {parquet, partial}
    run(parquet, out, checkpoint)
    assert_same_record(CMANPState.load(out, model), in_hundreds(model, frame()))


def spoilt(values: object) -> pd.DataFrame:
    points = frame(30)
    points["t"] = values
    return points


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (frame(30).drop(columns="t"), "has no column t; its columns are lat, lon"),
        (spoilt(["warm"] * 30), "column t of .* holds .*string values, not numbers"),
        (spoilt([True] * 30), "column t of .* holds bool values, not numbers"),
        (spoilt(pd.date_range("2020", periods=30)), "column t of .* holds dates: .*--dates"),
        (spoilt([None] * 30), "column t of .* holds null values, not numbers"),
        (spoilt([1.0] * 9 + [None] * 21), "column t of .* has no value in row 10; drop such rows"),
        (spoilt([1.0] * 9 + [-np.inf] * 21), "column t of .* is -inf in row 10; drop such rows"),
        (spoilt([1.0] * 9 + [-1.5e308] * 21), r"column t of .* is -1\.5e\+308 in row 10"),
        (frame(0), "points.parquet has no rows"),
    ],
    ids=["missing", "text", "booleans", "dates", "empty", "null", "infinite", "nodata", "no rows"],
)
def test_tables_that_cannot_be_absorbed_are_refused(
    points: pd.DataFrame,
    message: str,
    tmp_path: Path,
    out: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    data = write(points, tmp_path / "points.parquet")
    assert re.search(message, error_of(capsys, data, out, checkpoint))
    assert list(tmp_path.iterdir()) == [data]


def test_mistakes_end_in_one_sentence(
    parquet: Path,
    out: Path,
    checkpoint: Path,
    tnpd_checkpoint: Path,
    tmp_path: Path,
    model: CMANP,
    save_checkpoint: Callable,
    capsys: pytest.CaptureFixture,
) -> None:
    header = tmp_path / "header.csv"
    header.write_text("lat,lon,t\n")
    void = tmp_path / "void.csv"
    void.touch()
    text = tmp_path / "text.ckpt"
    text.write_text("a model")
    half = tmp_path / "half.ckpt"
    half.write_bytes(checkpoint.read_bytes()[:4000])
    weights = tmp_path / "weights.ckpt"
    torch.save(model.state_dict(), weights)
    code = tmp_path / "code.ckpt"
    torch.save({"state_dict": print}, code)
    unknown = tmp_path / "unknown.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["model"]["class_path"] = "npbench.models.CMANQ"
    torch.save(content, unknown)
    other = save_checkpoint(small_cmanp(dim_x=2), tmp_path / "other.ckpt")
    state, two = tmp_path / "state", tmp_path / "two"
    state_of(model, frame(5)).save(state, model)
    with torch.no_grad():
        model.condition(np.ones((2, 5, 2)), np.ones((2, 5, 1))).save(two, model)
    folder = tmp_path / "folder"
    folder.mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for options, message in [
        ({"data": tmp_path / "none.csv"}, "there is no file"),
        ({"data": folder}, "there is no file of points in the folder"),
        ({"data": tmp_path / "none-*.csv"}, "no file is named as in"),
        ({"data": text}, "is neither a Parquet nor a CSV file by its name"),
        ({"data": header}, "header.csv has no rows"),
        ({"data": void}, "void.csv cannot be read: Empty CSV file"),
        ({"x": "lat"}, "trained with dim_x=2, and 1 column(s) of inputs are named: lat"),
        ({"x": "lat,lon,t"}, "dim_x=2, and 3 column(s) of inputs are named: lat,lon,t"),
        ({"y": "lat,t"}, "trained with dim_y=1, and 2 column(s) of outputs are named: lat,t"),
        ({"x": "lat,long"}, "has no column long; its columns are lat, t, lon"),
        ({"x": None}, "--x is missing"),
        ({"y": None}, "--y is missing"),
        ({"ckpt": None}, "--ckpt is missing"),
        ({"ckpt": tmp_path / "none"}, "neither a checkpoint nor the folder of a run with one"),
        ({"ckpt": folder}, "neither a checkpoint nor the folder of a run with one"),
        ({"ckpt": text}, "text.ckpt is damaged, or no checkpoint of npbench fit"),
        ({"ckpt": half}, "half.ckpt is damaged, or no checkpoint of npbench fit"),
        ({"ckpt": weights}, "weights.ckpt is no checkpoint of npbench fit: it holds no training"),
        ({"ckpt": code}, "code.ckpt is no checkpoint of npbench fit: it holds more than tensors"),
        ({"ckpt": unknown}, "names npbench.models.CMANQ, which this npbench does not have"),
        ({"ckpt": tnpd_checkpoint}, "holds a TNPD, whose states are not kept in files"),
        ({"state": tmp_path / "none"}, "there is no state file"),
        ({"state": parquet}, "points.parquet is no state file"),
        ({"state": state, "ckpt": other}, "a state of another model, or of other weights"),
        ({"state": two}, "do not merge: they must be of the same tasks"),
        ({"out": parquet}, "points.parquet is what the result is made from; name another file"),
        ({"out": tmp_path / "folder" / ".." / "points.parquet"}, "is what the result is made from"),
        ({"out": folder}, "folder is a folder; name a file in it by --out"),
        ({"out": text / "state"}, "state cannot be written (File exists)"),
    ]:  # fmt: skip
        given = {"data": parquet, "out": out, "ckpt": checkpoint} | options
        assert message in error_of(capsys, **given)
    copied = tmp_path / "copy.ckpt"
    shutil.copy(checkpoint, copied)
    assert "is what the result is made from" in error_of(capsys, parquet, copied, copied)
    assert copied.read_bytes() == checkpoint.read_bytes()
    for options, message in [
        ({"x": "lat,lat"}, "lat,lat is no list of different columns, such as lat,lon"),
        ({"x": "lat,"}, "lat, is no list of different columns"),
        ({"device": "gpuu"}, "there is no device gpuu"),
        ({"outt": "a"}, "did you mean out?"),
    ]:
        assert message in error_of(capsys, parquet, out, checkpoint, code=2, **options)
    copied.unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not list(folder.iterdir())
