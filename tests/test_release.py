"""What a release says of itself agrees in all files."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


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
