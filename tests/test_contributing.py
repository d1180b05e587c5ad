"""The recipes of CONTRIBUTING.md are followed as they stand there, and its tree is that of the
packages."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from random import Random
from types import ModuleType

import lightning as L
import pandas as pd
import pytest
import torch
from helpers import assert_close, assert_same_prediction, random_points, random_slices

from npbench.cli import main
from npbench.models import NeuralProcess
from npbench.training import MetaRegression

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
# Code blocks whose first line is a comment that names a file.
BLOCKS = dict(re.findall(r"^```\w+\n# (my_package/\S+)\n(.*?)^```$", CONTRIBUTING, re.M | re.S))


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the package that the recipes make, from which it can be imported."""
    for name, block in BLOCKS.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    invalidate_caches()
    yield tmp_path
    for name in ("my_package", "my_package.models", "my_package.data"):
        monkeypatch.delitem("sys.modules", name, raising=False)


@pytest.fixture
def models(my_package: Path) -> ModuleType:
    return import_module("my_package.models")


@pytest.fixture
def model(models: ModuleType) -> NeuralProcess:
    return models.SumNP(dim_x=2, dim_y=3, dim_hidden=8).double().eval()


def double_points(batch: int, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random_points(batch, points, 2, 3, torch.float64)


def test_the_blocks_are_there() -> None:
    assert set(BLOCKS) == {
        f"my_package/{n}" for n in ("models.py", "data.py", "sum.yaml", "run.sh")
    }


def test_conditioning_in_chunks_and_updates_equals_conditioning_at_once(
    model: NeuralProcess,
) -> None:
    x, y = double_points(2, 9)
    xt, _ = double_points(2, 4)
    at_once = model(x, y, xt)
    assert_same_prediction(model.query(model.condition(x, y, chunk_size=2), xt), at_once)
    state = model.condition(x[:, :0], y[:, :0])
    for window in random_slices(9, Random(0)):
        state = model.update(state, x[:, window], y[:, window])
    assert_same_prediction(model.query(state, xt), at_once)
    order = torch.randperm(9)
    assert_same_prediction(model(x[:, order], y[:, order], xt), at_once)
    parts = model.condition(x[:, :4], y[:, :4]), model.condition(x[:, 4:], y[:, 4:])
    assert_same_prediction(model.query(parts[1].merge(parts[0]), xt), at_once)


def test_a_padded_batch_equals_its_tasks_one_by_one(model: NeuralProcess) -> None:
    x, y = double_points(2, 6)
    xt, _ = double_points(2, 4)
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    padded = model(x, y, xt, mask)
    alone = model(x[1:, :3], y[1:, :3], xt[1:])
    assert_close(padded.mean[1:], alone.mean)
    assert_close(padded.stddev[1:], alone.stddev)


def test_its_size_does_not_depend_on_the_context(model: NeuralProcess) -> None:
    assert len({model.condition(*double_points(1, n)).nbytes for n in (0, 1, 100)}) == 1


def test_a_checkpoint_makes_the_model_anew(model: NeuralProcess, tmp_path: Path) -> None:
    assert model.hparams == {"dim_x": 2, "dim_y": 3, "dim_hidden": 8}
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(MetaRegression(model.float()))
    trainer.save_checkpoint(tmp_path / "sum.ckpt")
    loaded = MetaRegression.load_from_checkpoint(tmp_path / "sum.ckpt", weights_only=True)
    x, y = random_points(2, 5, 2, 3)
    assert type(loaded.model) is type(model)
    assert_same_prediction(loaded.model.eval()(x, y, x), model(x, y, x), 0.0)


def test_the_data_are_functions_of_their_index(my_package: Path) -> None:
    data = import_module("my_package.data").SineDataModule()
    together = data.evaluation_batch(range(3, 8))
    alone = data.evaluation_batch(range(5, 6))
    assert torch.equal(together.yc[2:3], alone.yc)
    assert torch.equal(data.training_batch(7).yt, data.training_batch(7).yt)
    assert not torch.equal(data.training_batch(7).yt, data.training_batch(8).yt)
    assert not torch.equal(data.training_batch(7).yt, data.training_batch(7, rank=1).yt)


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_user")
def test_a_model_and_data_outside_the_package_are_trained_and_compared(my_package: Path) -> None:
    commands = [
        shlex.split(line)[1:]
        for line in BLOCKS["my_package/run.sh"].splitlines()
        if line.startswith("npbench ")
    ]
    assert [command[0] for command in commands] == ["fit", "fit", "compare"]
    short = ["--trainer.max_steps", "20", "--trainer.accelerator", "cpu",
             "--trainer.enable_model_summary", "false"]  # fmt: skip
    for command in commands:
        cheap = ["--device", "cpu", "--sizes", "9", "9", "3"] if command[0] == "compare" else short
        main([*command, *cheap])
    table = pd.read_csv(my_package / "comparison/comparison.csv", index_col="model")
    assert set(table.index) == {"SUM", "CNP"}
    assert table["log_likelihood"].notna().all()
    assert table.loc["SUM", "state_bytes"] == 64 * 4
    tasks = pd.read_csv(my_package / "comparison/tasks.csv")
    assert len(tasks) == 128


def rooms() -> dict[str, str]:
    """The paths of the tree, with what it says of each."""
    (tree,) = re.findall(r"^```text\n(npbench/\n.*?)^```$", CONTRIBUTING, re.M | re.S)
    described, parents = {}, []
    for line in tree.splitlines():
        indent, name, text = re.fullmatch(r"( *)(\S+)\s*(.*)", line).groups()
        parents = [*parents[: len(indent) // 2], name.removesuffix("/")]
        path = "/".join(parents) + ("/" if name.endswith("/") else ".py")
        assert path not in described, f"{path} stands in the tree twice"
        described[path] = text
    return described


def test_the_tree_is_that_of_the_packages() -> None:
    """Every package has a line, and so has every module directly in npbench and datamodules; what
    else the tree names is there, and all of it is described."""
    described = rooms()
    there = set()
    for package in ("npbench", "datamodules"):
        there |= {
            f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / package).rglob("__init__.py")
        }
        there |= {
            f"{package}/{path.name}"
            for path in (ROOT / package).glob("*.py")
            if not path.stem.startswith("__")
        }
    missing = sorted(there - described.keys())
    assert not missing, "without a line in CONTRIBUTING.md"
    for path, text in described.items():
        assert (ROOT / path).exists(), f"{path} is in the tree of CONTRIBUTING.md alone"
        assert text or path in ("npbench/", "datamodules/"), f"{path} is not described"


def test_the_tests_that_the_recipes_name_are_there() -> None:
    named = set(re.findall(r"`(tests/[\w./]+)`", CONTRIBUTING)) - {"tests/commands/test_NAME.py"}
    assert len(named) > 5
    for path in named:
        assert (ROOT / path).exists(), path


def test_tests_mirror_the_packages() -> None:
    """A test file in tests/X/Y is about a package npbench/X/Y, or datamodules/Y for
    tests/datamodules/Y."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*")}
    for folder in folders - {Path(".")}:
        package = ROOT / folder if folder.parts[0] == "datamodules" else ROOT / "npbench" / folder
        assert (package / "__init__.py").is_file(), f"tests/{folder} mirrors no package"
