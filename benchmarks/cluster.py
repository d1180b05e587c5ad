"""States from a cluster of this machine's cores, beside one process; and a terabyte on paper.

    python -m benchmarks.cluster             # 1 million rows in 4 Parquet files, about two minutes
    python -m benchmarks.cluster --short     # 40,000 rows, for a look

Ray Data reads the files and shares their blocks among workers (`npbench.interop.ray`), of which
there are one and two, and two that SIGKILL ends in the middle. Each result must be that of one
process to 1e-5, in units of the largest prediction. Then there is one state for each of `--keys`.
It prints its tables, writes them as `cluster.md` under `--out`, and ends non-zero where a result
differs. Needs the extra `ray`.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import ray
import torch

import npbench
from benchmarks.tables import markdown
from npbench.interop.ray import condition_dataset
from npbench.models.contracts.process import evaluating
from npbench.structure import in_bytes
from npbench.tables import PointTable

_TOLERANCE = 1e-5
_FILES = 4
# Of the projection: bytes of Parquet, and workers of one core each.
_TERABYTE, _WORKERS = 10**12, 64
# Rows that one process takes at a time, as `npbench condition` does.
_ROWS = 131_072


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gp-1d", help="as of npbench.load")
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--short", action="store_true", help="40,000 rows and 50 keys")
    parser.add_argument("--out", type=Path, default=Path("runs/cluster"))
    options = parser.parse_args()
    rows, keys = (40_000, 50) if options.short else (int(options.rows), options.keys)
    torch.set_num_threads(1)
    model = npbench.load(options.model)
    # Readers of files need a core beside the workers, whether or not the machine has it.
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        size = write_shards(Path(folder), rows, keys)
        table = pd.DataFrame(measured(model, Path(folder), rows, keys))
    ray.shutdown()
    options.out.mkdir(parents=True, exist_ok=True)
    text = report(table, options.model, rows, size)
    print(text)
    (options.out / "cluster.md").write_text(text + "\n")
    wrong = table[~(table["difference"] <= _TOLERANCE)]
    sys.exit(f"{len(wrong)} results are not that of one process" if len(wrong) else 0)


def write_shards(folder: Path, rows: int, keys: int) -> int:
    """Write random readings as Parquet files, and return their bytes."""
    random = np.random.default_rng(0)
    for index in range(_FILES):
        number = (index + 1) * rows // _FILES - index * rows // _FILES
        hour = random.uniform(-2, 2, number)
        load = np.sin(3 * hour) + random.normal(0, 0.1, number)
        sensor = random.integers(keys, size=number)
        shard = pa.table({"sensor": sensor, "hour": hour, "load": load})
        pa.parquet.write_table(shard, folder / f"{index}.parquet", row_group_size=number // 8 + 1)
    return sum(file.stat().st_size for file in folder.iterdir())


def measured(model: Any, folder: Path, rows: int, keys: int) -> Iterator[dict[str, Any]]:
    """What each way to the state takes, and how far its predictions are from one process's."""
    xt = torch.linspace(-2, 2, 200)[None, :, None]

    def answers(state: Any) -> torch.Tensor:
        with evaluating(model):
            return torch.stack(model.marginals(state, xt))

    def row(name: str, workers: int, seconds: float, moved: int, difference: float) -> dict:
        speed = rows / seconds
        return {"way": name, "workers": workers, "seconds": seconds, "rows a second": speed,
                "a second and core": speed / workers, "moved": in_bytes(moved),
                "difference": difference}  # fmt: skip

    files, x, y = sorted(folder.iterdir()), ["hour"], ["load"]
    start = time.perf_counter()
    with evaluating(model):
        whole = model.condition(PointTable(files, x, y, chunk_size=_ROWS))
    seconds, expected = time.perf_counter() - start, answers(whole)
    yield row("one process", 1, seconds, 0, 0.0)
    state_size = len(whole.to_bytes())

    def by_ray(workers: int, on_block: Callable[[int], object] = lambda _: None) -> tuple[Any, ...]:
        blocks: list[int] = []

        def on_rows(number: int) -> None:
            on_block(len(blocks))
            blocks.append(number)

        start = time.perf_counter()
        state = condition_dataset(model, folder, x, y, workers=workers, on_rows=on_rows)
        seconds = time.perf_counter() - start
        if sum(blocks) != rows:
            raise RuntimeError(f"{sum(blocks)} rows of {rows} were counted")
        difference = float((answers(state) - expected).abs().max() / expected.abs().max())
        return workers, seconds, len(blocks) * state_size, difference

    by_ray(1)  # the first call starts the engine's processes
    for workers in (1, 2):
        yield row("Ray", *by_ray(workers))
    yield row("Ray, workers killed", *by_ray(2, lambda block: None if block else kill_workers()))
    blocks: list[int] = []
    start = time.perf_counter()
    states = condition_dataset(model, folder, x, y, "sensor", workers=2, on_rows=blocks.append)
    seconds = time.perf_counter() - start
    table = pa.parquet.read_table(folder).to_pandas()
    worst, first = 0.0, sorted(states)[:5]
    for key in first:
        mine = table[table["sensor"] == key]
        with evaluating(model):
            alone = answers(model.condition(mine[x].to_numpy(), mine[y].to_numpy()))
        worst = max(worst, float((answers(states[key]) - alone).abs().max() / alone.abs().max()))
    # Each block sends the states of all of its keys at once.
    moved = len(blocks) * sum(state.nbytes for state in map(as_sent, states.values()))
    yield row(f"Ray, {len(states):,} keys", 2, seconds, moved, worst)


def as_sent(state: Any) -> Any:
    """The state as messages hold it."""
    return type(state).from_bytes(state.to_bytes())


def kill_workers() -> int:
    """End this cluster's processes in which blocks are absorbed, as a lost machine would.

    Returns how many; other clusters of the machine, and their workers, are left alone.
    """
    number = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and b"MapWorker" in name and _is_ours(int(process.name)):
            os.kill(int(process.name), signal.SIGKILL)
            number += 1
    return number


def _is_ours(process: int) -> bool:
    """Whether this process has started that one, or one of its parents."""
    while process > 1 and process != os.getpid():
        try:
            # The second field is a name in parentheses, which may hold spaces.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        process = int(fields[1])
    return process == os.getpid()


def report(table: pd.DataFrame, model: str, rows: int, size: int) -> str:
    """The table, and what follows from it for a terabyte."""
    speed = table[(table["way"] == "Ray") & (table["workers"] == 2)].iloc[0]
    total = rows * _TERABYTE / size
    hours = total / (speed["a second and core"] * _WORKERS) / 3600
    return (
        f"`python -m benchmarks.cluster`: {model}, {rows:,} rows in {_FILES} Parquet files of "
        f"{in_bytes(size)}, {os.cpu_count()} cores.\n\n{markdown(table)}\n\n"
        f"Projection, not a measurement: 1 TB of such files are {total:.2g} rows; {_WORKERS} "
        f"workers at {speed['a second and core']:,.0f} rows a second each, their start "
        f"included, absorb them in {hours:.1f} hours, if the store delivers "
        f"{_TERABYTE / hours / 3.6e9:.3g} MB a second."
    )


if __name__ == "__main__":
    main()
