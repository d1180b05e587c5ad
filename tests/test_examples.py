"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import datamodules
import npbench
import npbench.models

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("npbench", "datamodules")
    for path in (ROOT / package).rglob("*.py")
    if ">>>" in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    module = importlib.import_module(name)
    of_data = {public: getattr(datamodules, public) for public in datamodules.__all__}
    names = vars(npbench) | vars(npbench.models) | of_data | {"torch": torch}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted
    assert not result.failed
