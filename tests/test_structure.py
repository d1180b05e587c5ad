"""Records, and how they and models print."""

import copy
from dataclasses import dataclass

import pytest
import torch
from helpers import SIZES, random_points, random_task, small
from torch import Tensor

from npbench import EventSequences
from npbench.models import CMHP
from npbench.structure import TensorRecord
from npbench.training import MetaRegression


@dataclass(frozen=True, eq=False)
class _Pair(TensorRecord):
    first: Tensor
    second: Tensor | None = None


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_model_its_state_and_a_task_print_as_one_short_line(name: str) -> None:
    model = small(name, dim_x=1, dim_y=1)
    task = random_task(2, 3, 4)
    state = model.condition(task.xc, task.yc)
    number = sum(parameter.numel() for parameter in model.parameters())
    assert repr(model).startswith(f"{name}(dim_x=1, dim_y=1")
    assert repr(model).endswith(f"; {number:,} parameters on cpu)")
    assert repr(state) == f"{type(state).__name__}(2 tasks, {state.nbytes / 1024:,.1f} KiB, on cpu)"
    assert repr(task) == "Task(2 tasks of 3 context points and 4 targets, on cpu)"
    for thing in (model, state, task):
        assert len(repr(thing)) < 300
        assert "\n" not in repr(thing)


def test_a_model_shows_the_arguments_that_differ_from_their_defaults() -> None:
    model = CMHP(num_marks=3, num_latents=9)
    number = sum(parameter.numel() for parameter in model.parameters())
    assert repr(model) == f"CMHP(num_marks=3, num_latents=9; {number:,} parameters on cpu)"
    assert f"(model): {small('CNP')!r}\n" in repr(MetaRegression(small("CNP")))


def test_sequences_print_as_one_short_line() -> None:
    sequences = EventSequences(torch.rand(4, 9).cumsum(-1), torch.randint(3, (4, 9)))
    assert repr(sequences) == "EventSequences(4 sequences of 9 events or fewer, on cpu)"


def test_a_record_of_another_package_prints_as_one_short_line() -> None:
    assert repr(_Pair(torch.zeros(3), torch.zeros(5))) == "_Pair(2 tensors, 0.0 KiB, on cpu)"
    assert repr(copy.copy(_Pair(torch.zeros(1)))) == "_Pair(1 tensor, 0.0 KiB, on cpu)"


def test_a_large_state_is_weighed_in_mebibytes() -> None:
    model = small("CNP", dim_x=1, dim_y=1)
    state = model.condition(*random_points(1, 2, dtype=torch.float64))
    assert "KiB" in repr(state)
    assert "MiB" in repr(state.repeat(100_000))
