"""The project's files agree with each other."""

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
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


LAYERS = [
    "structure", "errors", "task", "events", "offers", "tables", "attention", "distributed", "blocks",
    "likelihoods", "models", "predictions", "metrics", "optim", "profiling", "training",
    "callbacks", "interop", "messages", "commands", "cli",
]  # fmt: skip
FILES = [path for path in (ROOT / "npbench").rglob("*.py") if path.parent.name != "npbench"
         or not path.stem.startswith("__")]  # fmt: skip


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda p: p.stem)
def test_layers_depend_downwards_only(path: Path) -> None:
    """attention < blocks < likelihoods < models < training < callbacks < cli."""
    inside = path.relative_to(ROOT / "npbench").with_suffix("").parts[0]
    assert inside in LAYERS, f"{path.name} has no place in LAYERS yet"
    imported = re.findall(r"^from npbench\.(\w+)", path.read_text(), flags=re.MULTILINE)
    for other in imported:
        assert LAYERS.index(other) <= LAYERS.index(inside), f"{path.name} imports {other}"
    if LAYERS.index(inside) <= LAYERS.index("models"):
        assert "lightning" not in path.read_text()
