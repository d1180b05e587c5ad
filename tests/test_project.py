"""The project's files agree with each other."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_environment_yml_has_the_requirements_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == [*project["dependencies"], "-e ."]
    assert f"python{project['requires-python']}" in environment["dependencies"]


def test_every_command_in_the_readme_names_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"(?:configs|docs|benchmarks|notebooks)/[\w./-]+\.\w+", readme)
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"-m (benchmarks\.\w+)", readme):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


# The rooms of npbench; each imports from those before it, and from itself.
LAYERS = [
    "lazy", "structure", "errors", "choices", "files", "point_files", "scaling", "task", "events",
    "sequences", "offers", "tables", "attention", "distributed", "blocks", "likelihoods", "models",
    "conditioning", "predictions", "metrics", "optim", "schedules", "colors", "profiling",
    "training", "pretrained", "callbacks", "interop", "messages", "commands", "cli",
]  # fmt: skip
# What data modules import from npbench: batches, tables and errors, and nothing that knows a model.
FOR_DATA = {
    "npbench.Task", "npbench.EventSequences", "npbench.TokenSequences", "npbench.Exact",
    "npbench.task", "npbench.events", "npbench.sequences",
    "npbench.tables", "npbench.point_files", "npbench.scaling", "npbench.errors",
    "npbench.files", "npbench.lazy",
}  # fmt: skip
# `npbench/__init__.py` shows what is public, and `__main__.py` calls the command.
FILES = [
    path.relative_to(ROOT)
    for package in ("npbench", "datamodules")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.relative_to(ROOT).parts[:-1] != ("npbench",) or not path.stem.startswith("__")
]


def imported(source: str, file: Path) -> set[str]:
    """The absolute dotted names that a file imports, in functions and under TYPE_CHECKING too.

    `from a import b` is a.b, which may be a module as well as something in it.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package of the file, and each more the package around it.
            package = file.parts[: len(file.parts) - node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def is_in(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def wrong_imports(source: str, file: Path) -> list[str]:
    """The names that a file of npbench or datamodules must not import."""
    names = sorted(imported(source, file))
    if file.parts[0] == "datamodules":
        return [
            name for name in names
            if is_in(name, "npbench") and not any(is_in(name, allowed) for allowed in FOR_DATA)
        ]  # fmt: skip
    inside = file.with_suffix("").parts[1]
    assert inside in LAYERS, f"{file} has no place in LAYERS yet"
    level = LAYERS.index(inside)
    below = {"npbench." + layer for layer in LAYERS[: level + 1]}
    wrong = []
    for name in names:
        if is_in(name, "npbench"):
            fine = any(is_in(name, layer) for layer in below)
            if file.parts[:3] == ("npbench", "models", "contracts") and is_in(
                name, "npbench.models"
            ):
                fine = is_in(name, "npbench.models.contracts")
        elif is_in(name, "lightning"):
            fine = level > LAYERS.index("models")
        else:
            fine = not is_in(name, "datamodules")
        if not fine:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_from_below_only(file: Path) -> None:
    """Attention < blocks < likelihoods < models < training < callbacks < commands; no Lightning at
    or below models; contracts know no family; data modules know no model, and npbench no data
    module."""
    assert not wrong_imports((ROOT / file).read_text(), file)


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        ("npbench/blocks/a.py", "from npbench import models", "npbench.models"),
        ("npbench/blocks/a.py", "import npbench.models.cmanp as c", "npbench.models.cmanp"),
        ("npbench/blocks/a.py", "import os, npbench", "npbench"),
        ("npbench/blocks/a.py", "def f():\n    import npbench.models.thp", "npbench.models.thp"),
        ("npbench/blocks/a.py", "if TYPE_CHECKING:\n    import npbench.cli", "npbench.cli"),
        ("npbench/blocks/a.py", "from ..models import CNP", "npbench.models.CNP"),
        ("npbench/blocks/__init__.py", "from .. import models", "npbench.models"),
        ("npbench/task.py", "from . import models", "npbench.models"),
        ("npbench/models/a.py", "from npbench import Task", "npbench.Task"),
        ("npbench/models/a.py", "from npbench.modelsmith import x", "npbench.modelsmith.x"),
        ("npbench/models/a.py", "from lightning import Trainer", "lightning.Trainer"),
        ("npbench/models/a.py", "import lightning.pytorch", "lightning.pytorch"),
        ("npbench/models/a.py", "from datamodules import GPDataModule", "datamodules.GPDataModule"),
        ("npbench/models/contracts/a.py", "from npbench.models import CNP", "npbench.models.CNP"),
        ("npbench/models/contracts/a.py", "from npbench.models.cmanp import CMANP",
         "npbench.models.cmanp.CMANP"),
        ("npbench/models/contracts/a.py", "from ..cmanp import CMANP",
         "npbench.models.cmanp.CMANP"),
        ("datamodules/a.py", "from npbench.models import CNP", "npbench.models.CNP"),
        ("datamodules/a.py", "from npbench import models", "npbench.models"),
        ("datamodules/images/a.py", "def f():\n    import npbench.training", "npbench.training"),
    ],
)  # fmt: skip
def test_an_import_from_above_is_found(file: str, source: str, name: str) -> None:
    assert wrong_imports(source, Path(file)) == [name]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("npbench/models/a.py", "from npbench.blocks.layers import CrossAttention"),
        ("npbench/models/a.py", "from npbench import blocks"),
        ("npbench/models/a.py", "from .contracts import NeuralProcess"),
        ("npbench/models/a.py", "import torch  # no lightning"),
        ("npbench/models/a.py", "'from npbench.cli import main'"),
        ("npbench/models/contracts/a.py", "from npbench.models.contracts.points import Points"),
        ("npbench/training/a.py", "import lightning as L"),
        ("datamodules/a.py", "from npbench import Exact, Task\nfrom npbench.tables import Table"),
        ("datamodules/a.py", "from datamodules.images import pixels\nimport lightning as L"),
    ],
)
def test_an_import_from_below_is_fine(file: str, source: str) -> None:
    assert not wrong_imports(source, Path(file))
