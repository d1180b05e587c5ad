"""States from a cluster are those of one process. The cluster is three workers of this machine."""

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from helpers import small, small_cmanp

from npbench.cli import main
from npbench.errors import InputError
from npbench.models import TNPD, NeuralProcess, State
from npbench.models.contracts.state_files import read_notes
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained

ray = pytest.importorskip("ray", reason="needs the extra ray")

from benchmarks.cluster import kill_workers  # noqa: E402
from npbench.interop.ray import condition_dataset, connect, query_dataset  # noqa: E402

ROWS, FILES = 3000, 4


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # Readers of files need a core beside the two workers, whether or not the machine has it.
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place


@pytest.fixture(scope="module")
def points() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "sensor": [f"s{i}" for i in random.geometric(0.1, ROWS)],
            "hour": random.uniform(-2, 2, ROWS),
            "load": random.normal(size=ROWS),
        }
    )


@pytest.fixture
def folder(tmp_path: Path, points: pa.Table) -> Path:
    for i in range(FILES):
        share = points[i * ROWS // FILES : (i + 1) * ROWS // FILES]
        pa.parquet.write_table(share, tmp_path / f"{i}.parquet")
    return tmp_path


def numbers(points: pa.Table, name: str) -> np.ndarray:
    return points.column(name).to_numpy()[:, None]


def assert_answers_alike(model: NeuralProcess, mine: State, theirs: State) -> None:
    xt = np.linspace(-2, 2, 9)[:, None]
    for a, b in zip(model.marginals(mine, xt), model.marginals(theirs, xt), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CMANP", "SecondMomentNP"])
def test_the_state_of_files_is_that_of_their_rows(
    name: str, folder: Path, points: pa.Table
) -> None:
    model, rows = small(name, dim_x=1, dim_y=1), []
    state = condition_dataset(model, str(folder), ["hour"], ["load"], on_rows=rows.append)
    assert_answers_alike(
        model, state, model.condition(numbers(points, "hour"), numbers(points, "load"))
    )
    assert sum(rows) == ROWS


@pytest.mark.slow
def test_each_key_has_the_state_of_its_rows(folder: Path, points: pa.Table) -> None:
    model = small("CMANP", dim_x=1, dim_y=1)
    states = condition_dataset(model, folder, ["hour"], ["load"], by="sensor", workers=2)
    keys = points.column("sensor").to_numpy()
    assert set(states) == set(keys)
    for key, state in states.items():
        mine = points.filter(pa.array(keys == key))
        assert_answers_alike(
            model, state, model.condition(numbers(mine, "hour"), numbers(mine, "load"))
        )


@pytest.mark.slow
def test_no_row_is_lost_or_counts_twice_when_a_worker_dies(points: pa.Table) -> None:
    model, seen = small("CMANP", dim_x=1, dim_y=1), []
    data = ray.data.from_arrow(points).repartition(30)

    def on_rows(number: int) -> None:
        if not seen:
            assert kill_workers()
        seen.append(number)

    state = condition_dataset(model, data, ["hour"], ["load"], workers=2, on_rows=on_rows)
    assert_answers_alike(
        model, state, model.condition(numbers(points, "hour"), numbers(points, "load"))
    )
    assert sum(seen) == ROWS


@pytest.mark.slow
def test_a_wrong_value_is_named_by_file_row_and_column(folder: Path, points: pa.Table) -> None:
    values = points.column("load").to_numpy().copy()
    values[5] = np.inf
    wrong = points.set_column(2, "load", pa.array(values))
    pa.parquet.write_table(wrong, folder / "0.parquet")
    expected = rf"column load of {folder}/0.parquet is inf in row 6"
    with pytest.raises(InputError, match=expected):
        condition_dataset(small_cmanp(), folder, ["hour"], ["load"])
    with pytest.raises(InputError, match=r"column sensor of .* holds string values, not numbers"):
        condition_dataset(small_cmanp(), folder, ["hour"], ["sensor"])


@pytest.mark.slow
def test_predictions_are_written_with_the_rows(folder: Path, points: pa.Table) -> None:
    model, out = small("SecondMomentNP", dim_x=1, dim_y=1), folder.with_name(folder.name + ".out")
    x, y = numbers(points, "hour"), numbers(points, "load")
    state = model.condition(x, y)
    number = query_dataset(model, state, folder, ["hour"], out, ["load"], quantiles=[0.1])
    assert number == ROWS
    written = pa.parquet.read_table(out).sort_by("hour")
    assert written.column_names == ["sensor", "hour", "load", "load_mean", "load_std", "load_q0.1"]
    mean, std = (z.flatten().tolist() for z in model.marginals(state, np.sort(x, axis=0)))
    assert written["load_mean"].to_pylist() == pytest.approx(mean, abs=1e-9)
    assert written["load_std"].to_pylist() == pytest.approx(std, abs=1e-9)
    with pytest.raises(InputError, match="is there already"):
        query_dataset(model, state, folder, ["hour"], out)
    with pytest.raises(InputError, match=r"column sensor of .* holds string values, not numbers"):
        query_dataset(model, state, folder, ["sensor"], folder.with_name(folder.name + ".other"))
    assert not (folder.with_name(folder.name + ".other")).exists()


@pytest.mark.slow
def test_the_commands_share_their_work(folder: Path) -> None:
    checkpoint, state, out = (
        folder.with_name(folder.name + name) for name in (".ckpt", ".state", ".out")
    )
    save_untrained(MetaRegression(small_cmanp()), checkpoint)
    names = ["--x", "hour", "--y", "load"]
    engine = ["--engine", "ray"]
    main(["condition", "--ckpt", str(checkpoint), "--data", str(folder), *names, *engine,
          "--out", str(state)])  # fmt: skip
    main(["query", "--state", str(state), "--targets", str(folder), *engine, "--out", str(out)])
    assert len(pa.parquet.read_table(out)) == ROWS
    assert read_notes(state)["rows"] == str(ROWS)


def test_what_cannot_be_absorbed_is_said_at_the_door(folder: Path) -> None:
    model = small_cmanp()
    with pytest.raises(InputError, match="no column lood; its columns are sensor, hour, load"):
        condition_dataset(model, folder, ["hour"], ["lood"])
    with pytest.raises(InputError, match=r"x must be a list of 1 column"):
        condition_dataset(model, folder, "hour", ["load"])
    with pytest.raises(InputError, match="the states of TNPD do not merge"):
        condition_dataset(TNPD(1, 1), folder, ["hour"], ["load"])
    with pytest.raises(InputError, match="cannot be read"):
        condition_dataset(model, folder / "none.parquet", ["hour"], ["load"])


def test_a_program_that_is_connected_stays_so() -> None:
    connect("no-such-host:1")
    assert ray.is_initialized()


@pytest.mark.slow
def test_connecting_leaves_the_handling_of_signals_alone() -> None:
    code = (
        "import signal\n"
        "from npbench.interop.ray import connect\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "connect()\n"
        "assert signal.getsignal(signal.SIGTERM) is before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
