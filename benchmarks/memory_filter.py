"""Which filters between data and a memory help, and what becomes of the memory: a study in cells.

    python -m benchmarks.memory_filter --list                     # all cells, and which are done
    python -m benchmarks.memory_filter --cells 'cmanp/steps/*'    # train those that are missing
    python -m benchmarks.memory_filter --tables docs/memory-filter.md   # write what is done
    python -m benchmarks.memory_filter --look RUN/checkpoints/last.ckpt  # of any trained model

Each cell trains one model with one seed on one thread and leaves one JSON file in `--out`; a cell
whose file is there is not trained again, so that a study that was interrupted goes on. A study
(`Study`) names its cells, trains each, and makes the tables of all results. `--tables` replaces
what stands between `<!-- NAME -->` and `<!-- end of NAME -->` in a document.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch

from benchmarks import memory_cmanp, memory_listops
from npbench.files import output_file
from npbench.training import MetaRegression

Results = Mapping[str, Mapping[str, Any]]


class Study(Protocol):
    """One part of the study."""

    def cells(self, options: argparse.Namespace) -> Iterator[str]:
        """The names of the cells, such as "steps/gate/0"."""

    def train(self, cell: str, options: argparse.Namespace) -> dict[str, Any]:
        """What a cell comes to, as JSON can hold it."""

    def tables(self, results: Results) -> dict[str, str]:
        """Markdown by the name of its place in the document."""


STUDIES: dict[str, Study] = {"cmanp": memory_cmanp, "listops": memory_listops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="*", default=["*"], help="patterns of names")
    parser.add_argument("--steps", type=int, default=1500, help="of cells at equal steps")
    parser.add_argument("--seconds", type=float, default=80.0, help="of cells at equal time")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tasks", type=int, default=1600, help="on which models are tested")
    parser.add_argument("--out", type=Path, default=Path("memory_filter"))
    parser.add_argument("--list", action="store_true", help="print the cells")
    parser.add_argument("--tables", type=Path, help="the document whose tables are written")
    parser.add_argument("--look", type=Path, help="a checkpoint of regression, to be measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.look is not None:
        module = MetaRegression.load_from_checkpoint(options.look, map_location="cpu")
        print(pd.DataFrame(memory_cmanp.look(module.model)).round(3).to_string(index=False))
        return
    if options.tables is not None:
        write_tables(options.tables, options.out)
        return
    for name, study in STUDIES.items():
        for cell in study.cells(options):
            full, path = f"{name}/{cell}", options.out / name / f"{cell.replace('/', '-')}.json"
            if not any(fnmatch(full, pattern) for pattern in options.cells):
                continue
            if options.list or path.exists():
                print(f"{full:<40}{'done' if path.exists() else ''}", flush=True)
                continue
            start = time.process_time()
            result = {"cell": cell, **study.train(cell, options)}
            with output_file(path) as file:
                file.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{full:<40}{time.process_time() - start:8.0f} CPU seconds", flush=True)


def write_tables(document: Path, folder: Path) -> None:
    """Put the tables of all results into their places in a document."""
    text = document.read_text()
    for name, study in STUDIES.items():
        results = [json.loads(file.read_text()) for file in sorted((folder / name).glob("*.json"))]
        if not results:
            continue
        for place, table in study.tables({each["cell"]: each for each in results}).items():
            marked = rf"(<!-- {place} -->\n).*?(<!-- end of {place} -->)"
            text, found = re.subn(
                marked, lambda m, table=table: m[1] + table + m[2], text, flags=re.DOTALL
            )
            if not found:
                raise SystemExit(f"{document} has no place for the table {place}")
    document.write_text(text)


if __name__ == "__main__":
    main()
