"""Train all models for an equal time of a processor each, and write the table and the figure.

    python -m benchmarks.results                                   # hours: 13 models on 6 tasks
    python -m benchmarks.results --tasks rbf sir --models CMANP CNP --seconds 60 --out runs/results
    python -m benchmarks.results --table                           # from the cells that there are

Each cell, a model on a task, is a file `docs/results/TASK/MODEL.json`; those that are there, of the
same seconds and seed, are not trained again. What is killed loses the cell that it is at. The table
`docs/results.md` and the figure `docs/results.png` follow from the cells.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from benchmarks.results.cell import cell
from benchmarks.results.report import write_report
from benchmarks.results.rivals import RIVALS
from benchmarks.results.tasks import BENCHMARKS

_OUT = Path("docs/results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--models", nargs="+", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--seconds", type=float, default=300.0, help="CPU seconds of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_OUT)
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task in [] if options.table else options.tasks:
        for name in options.models:
            run(options.out / task / f"{name}.json", options.seconds, options.seed)
    write_report(options.out, Path("README.md") if options.out == _OUT else None)


def run(file: Path, seconds: float, seed: int) -> None:
    """Make a cell's file, unless it is there."""
    task, name = file.parent.name, file.stem
    if file.is_file():
        found = json.loads(file.read_text())
        if (found["seconds"], found["seed"]) == (seconds, seed):
            return
    record = cell(task, name, seconds, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    os.replace(part, file)
    metrics = record["metrics"]
    result = "–" if metrics is None else f"{metrics['log_likelihood']:.3f}, {record['steps']} steps"
    print(f"{task:<10}{name:<20}{result}", flush=True)


if __name__ == "__main__":
    main()
