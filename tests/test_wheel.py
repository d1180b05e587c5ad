"""What pip installs works without the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is in the wheel, and nothing else of this checkout."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("src", "wheels", "site"))
    # A copy, as building leaves files in its folder.
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    return site


@pytest.mark.slow
def test_it_trains_conditions_and_predicts(installed: Path, tmp_path: Path) -> None:
    hours = np.arange(100.0)
    table = pd.DataFrame({"hour": hours, "load": np.sin(hours / 10)})
    table.to_csv(tmp_path / "load.csv", index=False)
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", *words]
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)

    run("npbench", "fit", "--config", "npbench:gp/cmanp-small", "--trainer.max_steps", "2",
        "--trainer.default_root_dir", "runs", "--data.num_val_tasks", "2",
        "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu")  # fmt: skip
    run("npbench", "condition", "--ckpt", "runs/version_0", "--data", "load.csv",
        "--x", "hour", "--y", "load", "--out", "state")  # fmt: skip
    run("npbench", "query", "--state", "state", "--targets", "load.csv", "--out", "answer.csv")
    assert len(pd.read_csv(tmp_path / "answer.csv")) == len(table)
    (tmp_path / "regress.py").write_text(
        "import npbench, pandas\n"
        "table = pandas.read_csv('load.csv')\n"
        "regressor = npbench.NeuralProcessRegressor().fit(table[['hour']], table['load'])\n"
        "print(regressor.score(table[['hour']], table['load']), npbench.__file__)\n"
        "npbench.load('gp-1d')\n"
    )
    score, file = run("regress").split()
    assert float(score) > 0.5
    assert Path(file).is_relative_to(installed)
