"""Rows are taken out of a state by a command, with certainty where there is a ledger."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_close, small

from npbench.cli import main
from npbench.conditioning import forget_rows, write_state
from npbench.models import CMANP, CMANPState
from npbench.models.contracts.state_files import read_notes
from npbench.tables import PointTable

pytestmark = pytest.mark.usefixtures("as_a_user")


def frame(rows: int = 300, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(rows, 3))
    return pd.DataFrame(values, columns=["lat", "t", "lon"])


def call(command: str, *flags: str, **options: object) -> None:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main([command, *flags, *words, "--device", "cpu"]) is None


def error_of(capsys: pytest.CaptureFixture, *words: object, **options: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        call(*words, **options)
    assert exit_.value.code == 1
    message, _ = capsys.readouterr().err.splitlines()
    return message


@pytest.fixture(params=[True, False], ids=["ledger", "no ledger"])
def with_ledger(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def state(with_ledger: bool, checkpoint: Path, tmp_path: Path) -> Path:
    """Of two tables, one after the other."""
    out = tmp_path / "state"
    for seed, flags in ((0, ["--ledger"] if with_ledger else []), (1, [])):
        data = tmp_path / f"{seed}.parquet"
        frame(seed=seed).to_parquet(data)
        more = {"state": out} if seed else {"ckpt": checkpoint, "x": "lat,lon", "y": "t"}
        call("condition", *flags, data=data, out=out, **more)
    return out


def test_what_is_left_is_the_state_of_the_other_rows(
    state: Path, with_ledger: bool, model: CMANP, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frame().iloc[20:120].to_csv(tmp_path / "unwanted.csv", index=False)
    before = read_notes(state)
    call("forget", state=state, data=tmp_path / "unwanted.csv", out=state)
    printed = capsys.readouterr().out
    assert f"100 points forgotten; what is left is in {state}\n" in printed
    assert ("has no ledger" in printed) == (not with_ledger)
    kept = pd.concat([frame().drop(index=range(20, 120)), frame(seed=1)])
    with torch.no_grad():
        x, y = (kept[names].to_numpy() for names in (["lat", "lon"], ["t"]))
        expected = model.condition(x, y)
        left = CMANPState.load(state, model)
        assert_close(model.query(left, x).mean, model.query(expected, x).mean, 1e-4)
    assert (left.ledger is not None) == with_ledger
    assert {name: before[name] for name in ("checkpoint", "x", "y")}.items() <= read_notes(
        state
    ).items()
    # It can be added to again.
    call("condition", state=state, data=tmp_path / "unwanted.csv", out=state)
    assert not with_ledger or len(CMANPState.load(state, model).ledger) == 600


@pytest.mark.parametrize("with_ledger", [True], indirect=True)
def test_rows_that_were_never_absorbed_are_named_and_nothing_is_written(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mixed, before = tmp_path / "mixed.csv", state.read_bytes()
    rows = pd.concat([frame().iloc[:5], frame(1, seed=9), frame().iloc[5:10]])
    rows.to_csv(mixed, index=False)
    forget = {"state": state, "data": mixed, "out": state}
    message = error_of(capsys, "forget", **forget)
    assert message == (
        f"npbench: error: row 6 of {mixed} was never absorbed by the state, or is forgotten "
        f"already, as its ledger says; drop such rows"
    )
    assert state.read_bytes() == before
    frame().iloc[:10].to_csv(mixed, index=False)
    call("forget", **forget)
    assert "row 1 of" in error_of(capsys, "forget", **forget)


def test_mistakes_end_in_one_sentence(
    state: Path,
    with_ledger: bool,
    model: CMANP,
    checkpoint: Path,
    save_checkpoint: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    data, empty = tmp_path / "0.parquet", tmp_path / "empty.csv"
    empty.write_text("lat,lon,t\n")
    given = {"state": state, "data": data, "out": tmp_path / "out"}
    cnp = save_checkpoint(small("CNP", 2, 1).float(), tmp_path / "cnp.ckpt")
    call("condition", data=data, out=tmp_path / "cnp", ckpt=cnp, x="lat,lon", y="t")
    for options, message in [
        ({"data": empty}, "empty.csv has no rows"),
        ({"x": "lat"}, "trained with dim_x=2, and 1 column(s) of inputs are named: lat"),
        ({"y": "u"}, "has no column u"),
        ({"out": data}, "is what the result is made from"),
        ({"state": data}, "is no state file"),
        ({"state": tmp_path / "cnp"}, "holds a CNP, whose states do not forget; condition it"),
    ]:
        assert message in error_of(capsys, "forget", **(given | options))
    plain = tmp_path / "plain"
    call("condition", data=data, out=plain, ckpt=checkpoint, x="lat,lon", y="t")
    add = {"state": plain, "data": data, "out": tmp_path / "out"}
    message = error_of(capsys, "condition", "--ledger", **add)
    assert "the state to add points to has no ledger" in message
    assert not (tmp_path / "out").exists()


def test_an_interrupted_condition_keeps_its_ledger(model: CMANP, tmp_path: Path) -> None:
    data, path = tmp_path / "points.parquet", tmp_path / "state"
    frame().to_parquet(data)
    table = PointTable(data, ["lat", "lon"], ["t"], chunk_size=70)
    seen: list[int] = []

    def interrupt(rows: int) -> None:
        seen.append(rows)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_state(model, table, path, on_rows=interrupt, ledger=True)
    with pytest.raises(ValueError, match="was left by a run on other data, columns, weights or "):
        write_state(model, table, path)
    write_state(model, table, path, ledger=True)
    left, rows = forget_rows(model, table, CMANPState.load(path, model).merge(
        model.condition(*(frame(9)[names].to_numpy() for names in (["lat", "lon"], ["t"])),
                        ledger=True)
    ))  # fmt: skip
    assert rows == 300
    assert len(left.ledger) == 9
