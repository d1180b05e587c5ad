"""Use npbench as it is installed: train, condition, query, regress. Run it outside the checkout.

    python check_install.py

It leaves files in the working folder, and ends with the folder that npbench was imported from.
"""

import subprocess
import sys

import numpy as np
import pandas as pd

import npbench


def run(*words: str) -> None:
    """Run the `npbench` command in a process of its own."""
    subprocess.run([sys.executable, "-m", "npbench", *words], check=True)


def main() -> None:
    hours = np.arange(100.0)
    table = pd.DataFrame({"hour": hours, "load": np.sin(hours / 10)})
    table.to_csv("load.csv", index=False)
    run("fit", "--config", "npbench:gp/cmanp-small", "--trainer.max_steps", "2",
        "--trainer.default_root_dir", "runs", "--data.num_val_tasks", "2",
        "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu")  # fmt: skip
    run("condition", "--ckpt", "runs/version_0", "--data", "load.csv",
        "--x", "hour", "--y", "load", "--out", "state")  # fmt: skip
    run("query", "--state", "state", "--targets", "load.csv", "--out", "answer.csv")
    if len(pd.read_csv("answer.csv")) != len(table):
        raise SystemExit("the answer has not the rows of its targets")
    regressor = npbench.NeuralProcessRegressor().fit(table[["hour"]], table["load"])
    if regressor.score(table[["hour"]], table["load"]) < 0.5:
        raise SystemExit("the regressor has learned nothing of its own rows")
    npbench.load("gp-1d")
    print(npbench.__file__)


if __name__ == "__main__":
    main()
