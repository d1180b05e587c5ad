"""What a release says of itself agrees in all files."""

import doctest
import re
import runpy
import tomllib
from pathlib import Path

import yaml

import npbench

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_package_knows_its_version() -> None:
    assert npbench.__version__ == PROJECT["version"]


def test_the_citation_is_of_this_version_and_its_authors() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]


def test_the_changelog_knows_this_version_and_says_what_each_release_reads() -> None:
    releases = re.findall(r"^## (Unreleased|\d\S+)", CHANGELOG, re.MULTILINE)
    assert releases[0] == "Unreleased"
    assert PROJECT["version"] in releases
    table = re.findall(r"^\| (Unreleased|\d+\.\S+) \| version", CHANGELOG, re.MULTILINE)
    assert sorted(table) == sorted(releases)


def test_files_of_each_release_are_kept() -> None:
    """Later releases must read them."""
    kept = {path.name for path in (ROOT / "tests/released").iterdir()}
    assert kept == set(re.findall(r"^## (\d\S+)", CHANGELOG, re.MULTILINE))


def test_both_packages_say_that_they_are_typed() -> None:
    for package in ("npbench", "datamodules"):
        assert (ROOT / package / "py.typed").is_file()


def test_the_lowest_versions_are_those_that_the_project_names() -> None:
    script = runpy.run_path(str(ROOT / ".github/lowest.py"))
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(script["lowest"], "lowest", globs=script):
        runner.run(test)
    assert runner.tries
    assert not runner.failures
    constraints = list(script["lowest"](PROJECT))
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert "torch==2.11.*" in constraints
    assert len(constraints) == sum(
        not each.startswith("npbench[") for part in lists for each in part
    )


def test_the_hosted_workflow_calls_what_is_there() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"test", "lint", "docs"} == set(re.findall(r"make (\w+)", commands))
    assert {"test", "lint", "docs"} <= set(targets[1].split())
    for path in re.findall(r"\.github/\w+\.py", commands):
        assert (ROOT / path).is_file()
