"""A command imports no more than it needs: `python -m benchmarks.startup` measures the time."""

import importlib
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import datamodules
import npbench
import npbench.training
from npbench.models import CMANP
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained

ROOT = Path(__file__).parents[1]
# The compiler and Lightning take seconds.
SLOW = ["torch._dynamo", "sympy", "lightning", "torchmetrics", "scipy", "matplotlib", "gpytorch"]
_SHOW = "print('IMPORTED', *(name for name in {names} if name in sys.modules))"


def imported(statement: str, names: list[str]) -> list[str]:
    """Those of the modules that a Python process has imported after the statement."""
    code = (
        f"import sys\ntry:\n    {statement}\nexcept SystemExit as end:\n    assert not end.code\n"
        + _SHOW.format(names=names)
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    _, *found = result.stdout.splitlines()[-1].split()
    return found


def command(*arguments: str) -> str:
    return f"from npbench.cli import main; main({list(arguments)})"


@pytest.mark.parametrize(
    "statement", ["import npbench.training", "import npbench.cli", command("--help")]
)
def test_the_help_and_the_packages_import_no_torch(statement: str) -> None:
    assert not imported(statement, ["torch", "numpy", *SLOW])


@pytest.mark.parametrize("statement", ["import npbench.models", command("condition", "--help")])
def test_models_import_neither_lightning_nor_the_compiler(statement: str) -> None:
    assert not imported(statement, SLOW)


def test_condition_and_query_import_neither_lightning_nor_the_compiler(tmp_path: Path) -> None:
    # More points and targets than are taken at a time.
    pd.DataFrame({"x": range(600), "y": range(600)}).to_csv(tmp_path / "points.csv", index=False)
    save_untrained(MetaRegression(CMANP(dim_x=1, dim_y=1)), tmp_path / "cmanp.ckpt")
    files = [str(tmp_path / name) for name in ("cmanp.ckpt", "points.csv", "state", "out.csv")]
    ckpt, points, state, out = files
    condition = ["condition", "--ckpt", ckpt, "--data", points, "--x", "x", "--y", "y"]
    assert not imported(command(*condition, "--out", state), SLOW)
    assert not imported(command("query", "--state", state, "--targets", points, "--out", out), SLOW)


def test_tables_import_nothing_of_gaussian_processes() -> None:
    assert not imported("from datamodules import TableDataModule", ["gpytorch"])


@pytest.mark.parametrize(
    "package", [npbench, npbench.training, datamodules], ids=lambda package: package.__name__
)
def test_every_lazy_name_is_that_of_its_module(package: object) -> None:
    name = package.__name__
    for public in set(package.__all__) - {"__version__"}:
        value = getattr(package, public)
        assert public in dir(package)
        home = importlib.import_module(getattr(value, "__module__", value.__name__))
        assert value is home or value is getattr(home, public), f"{name}.{public}"


def test_a_lazy_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="module 'npbench' has no attribute 'Tsak'"):
        npbench.Tsak  # noqa: B018
