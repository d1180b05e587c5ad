"""Lightning's inner parts are used in one file, and its versions are those that are tested."""

import importlib
import re
import tomllib
from importlib.metadata import version
from inspect import getmembers, isclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ALLOWED = "npbench.training.lightning_parts"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
    for package in ("npbench", "datamodules")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.stem.startswith("__")
}
_INNER = re.compile(
    r"_instantiator|_subcommand|_choices_actions|_parse_ckpt_path|\._get\(|_train_description|"
    r"strategy\.connect|precision_plugin|ProgressBarTheme|\b_every_n_train_steps|batch_progress|"
    r"trainer\._|lightning[\w.]*\._|_loop\.|_connector"
)


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {ALLOWED}))
def test_inner_parts_are_named_in_one_file(name: str) -> None:
    elsewhere = {"_loop.", "batch_progress"} if name == "datamodules.loading" else set()
    assert set(_INNER.findall(SOURCES[name])) == elsewhere


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {ALLOWED}))
def test_no_other_class_overrides_a_private_member_of_lightning(name: str) -> None:
    """By accident, too: Lightning would call it for something else."""
    module = importlib.import_module(name)
    for _, cls in getmembers(module, isclass):
        bases = [base for base in cls.__mro__ if base.__module__.startswith("lightning.")]
        if cls.__module__ == name and bases:
            inner = {member for base in bases for member in vars(base)}
            private = {m for m in vars(cls) if m.startswith("_") and not m.startswith("__")}
            assert not (private & inner) - {"_abc_impl"}


def test_the_lightning_that_is_installed_is_one_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(text) for text in project["dependencies"]]
    (lightning,) = [r.specifier for r in requirements if r.name == "lightning"]
    assert {specifier.operator for specifier in lightning} == {">=", "<"}
    assert version("lightning") in lightning


def test_versions_that_run_code_from_a_file_are_not_taken() -> None:
    """Lightning of checkpoints, and `datasets` of what it downloads."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    allowed = {r.name: r.specifier for texts in lists for r in map(Requirement, texts)}
    for unsafe in ("2.5.0", "2.5.6", "2.6.0", "2.6.1"):
        assert unsafe not in allowed["lightning"]
    for unsafe in ("2.18.0", "2.21.0", "3.6.0"):
        assert unsafe not in allowed["datasets"]
