"""States in float16."""

from pathlib import Path

import pytest
import torch
from helpers import assert_close, small

from npbench.errors import InputError
from npbench.models import NeuralProcess
from npbench.models.contracts.constant_memory import ConstantMemoryState
from npbench.models.contracts.process import evaluating

# Rounding to 11 binary digits is a relative error of 2^-11; answers take several such steps.
TOLERANCE = 0.01


def parts(model: NeuralProcess) -> list[tuple[torch.Tensor, torch.Tensor]]:
    sizes = [(2, 60, dim) for dim in (model.dim_x, model.dim_y)]
    return [tuple(torch.randn(size) for size in sizes) for _ in range(2)]


@pytest.mark.parametrize("name", ["CMANP", "CMANPAND", "LocatedCMANP"])
def test_a_state_in_float16_takes_half_the_bytes_and_answers_the_same(
    name: str, tmp_path: Path
) -> None:
    model = small(name)
    model = model.float() if name == "CMANP" else model
    first, second = parts(model)
    xt = torch.randn(2, 7, model.dim_x)
    with evaluating(model):
        state = model.condition(*first)
        half = state.half()
        # These numbers are float64 but in the first model.
        assert half.nbytes * (2 if name == "CMANP" else 4) == state.nbytes
        assert all(tensor.dtype == torch.float16 for tensor in half.tensors())
        half.save(tmp_path / "half.safetensors", model)
        loaded = type(state).load(tmp_path / "half.safetensors", model)
        assert loaded.is_half
        assert loaded.nbytes == half.nbytes
        for whole, rounded in (
            (state, loaded),
            (model.update(state, *second), model.update(loaded, *second)),
            (model.merge(state, model.condition(*second)),
             model.merge(loaded, model.condition(*second).half())),
            (model.forget(model.update(state, *first), *first),
             model.forget(model.update(loaded, *first).half(), *first)),
        ):  # fmt: skip
            expected, found = (model.marginals(z, xt) for z in (whole, rounded))
            assert_close(found.mean, expected.mean, TOLERANCE)
            assert_close(found.std, expected.std, TOLERANCE)
            assert not torch.equal(found.mean, expected.mean)
        assert model.sample(loaded, xt, 3).shape == (3, 2, 7, model.dim_y)
        assert not model.update(loaded, *second).is_half


def test_the_state_of_no_points_has_a_half() -> None:
    model = small("LocatedCMANP")
    with evaluating(model):
        nothing = model.condition(torch.zeros(1, 0, 2), torch.zeros(1, 0, 3))
        xt = torch.randn(1, 4, 2)
        assert_close(
            model.marginals(nothing.half(), xt).mean, model.marginals(nothing, xt).mean, TOLERANCE
        )


def test_what_float16_does_not_hold_is_refused() -> None:
    model = small("CMANP")
    with evaluating(model):
        state = model.condition(*parts(model)[0])
    large: ConstantMemoryState = state.map(lambda z: 1e6 * z)
    with pytest.raises(InputError, match="numbers beyond 65,504"):
        large.half()


@pytest.mark.parametrize("name", ["SecondMomentNP", "CNP"])
def test_sums_are_not_kept_in_float16(name: str) -> None:
    model = small(name)
    with evaluating(model):
        state = model.condition(*parts(model)[0])
    with pytest.raises(InputError, match=r"State is not kept in float16, as its sums and means"):
        state.half()
