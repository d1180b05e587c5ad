"""All that needs a GPU, in one command: correctness beside the CPU, memory, and speed of training.

    python -m benchmarks.cuda                      # under ten minutes on one GPU
    python -m benchmarks.cuda --device cpu --points 1e4 --steps 3     # where there is none

1. Every neural process, event model and classifier predicts, differentiates, trains in chunks,
   updates, forgets and samples on the device as on the CPU, with the same weights and the same
   random numbers, in float64; the largest difference, in units of the largest value, stands in the
   table.
2. Two processes on the one device condition on half of the points each, and merge.
3. Peak memory and time of the phases, as the context grows to `--points`.
4. The same of a small CMANP by the callback of a run of Lightning, whose loss is compiled on a GPU.
5. Training steps a second: eager, compiled, with CUDA graphs, each in float32 and bfloat16.

It writes `cuda.json` and `cuda.md` under `--out`, and ends non-zero where a model differs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.cuda.correctness import TOLERANCE, correctness
from benchmarks.cuda.memory import memory, run
from benchmarks.cuda.processes import processes
from benchmarks.cuda.training import training
from benchmarks.tables import markdown

_PARTS = ("correctness", "processes", "memory", "run", "training")


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.cuda", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--points", type=float, default=1e6, help="of the largest context")
    parser.add_argument("--steps", type=int, default=30, help="training steps that are timed")
    parser.add_argument("--seconds", type=float, default=240, help="for training, about")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/cuda"))
    options = parser.parse_args()
    device, points = options.device, int(options.points)
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "correctness": partial(correctness, device),
        "processes": partial(processes, device, points),
        "memory": partial(memory, device, points),
        "run": partial(run, device, points, options.steps),
        "training": partial(training, device, options.steps, options.seconds),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__}
    print(f"{name}, torch {torch.__version__}")
    for title in options.parts:
        part = parts[title]
        start, rows = time.perf_counter(), []
        report[title] = rows
        for row in part():
            rows.append(row)
            print(title, *(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}"
                           for k, v in row.items()), flush=True)  # fmt: skip
            (options.out / "cuda.json").write_text(json.dumps(report, indent=1))
        print(f"{title}: {time.perf_counter() - start:.0f} s", flush=True)
    tables = [
        f"## {title}\n\n{markdown(pd.DataFrame(report[title]))}"
        for title in options.parts
        if report[title]
    ]
    (options.out / "cuda.md").write_text("\n\n".join([f"# {name}", *tables]) + "\n")
    wrong = [
        row for row in report.get("correctness", []) if not row["largest_difference"] <= TOLERANCE
    ]
    sys.exit(f"{len(wrong)} results differ from the CPU's" if wrong else 0)


if __name__ == "__main__":
    main()
