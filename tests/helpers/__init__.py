"""Small models, random points and comparisons that the tests share."""

import json
from collections.abc import Callable
from math import inf
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from hypothesis import settings
from torch import Tensor
from torch.distributions import Distribution

from npbench import Task, models
from npbench.blocks import Places, Scales
from npbench.blocks.set_convolution import Grid
from npbench.models import CMANP, NeuralProcess
from npbench.structure import TensorRecord

State = TypeVar("State")
Model = TypeVar("Model", bound=NeuralProcess)

# Two ways to the same number may differ by this, relative or absolute.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

few_examples = settings(max_examples=10, deadline=None, derandomize=True)

# Arguments of a small model of every kind.
_LAYERS = {
    "dim_model": 16, "num_heads": 2, "num_layers": 2, "dim_feedforward": 16, "embed_depth": 2,
}  # fmt: skip
_JOINT = {"dim_projection": 3, "num_std_layers": 1, "projection_depth": 2}
_BLOCKS = _LAYERS | {"num_latents": 5, "num_block_latents": 4}
_POOLED = {"dim_hidden": 16, "pre_depth": 3}
_SAMPLED = {"num_samples": 6, "num_train_samples": 3}
_MOMENTS = {"num_features": 6, "num_heads": 3}
_LOCATED = {
    "dim_model": 16, "num_heads": 2, "num_layers": 1, "dim_feedforward": 16,
    "places": Places(-4.0, 4.0, number=9),
    "scales": Scales(pack=(0.8, 0.8, 3.0), mix=(2.0, inf), query=(1.0, 4.0)),
}  # fmt: skip
_KERNEL = {
    "dim_model": 16, "num_heads": 2, "dim_head": 8, "num_layers": 2, "dim_feedforward": 16,
    "embed_widths": (16,), "num_features": 12, "dim_hidden": 10,
}  # fmt: skip
SIZES = {
    "CMANP": _BLOCKS,
    "CMANPAND": _BLOCKS | _JOINT | {"block_size": 2},
    "LocatedCMANP": _LOCATED,
    "LocatedCMANPAND": _LOCATED | {"block_size": 2, "dim_projection": 4},
    "LBANP": _LAYERS | {"num_latents": 5},
    "LBANPND": _LAYERS | _JOINT | {"num_latents": 5},
    "EQTNP": _LAYERS,
    "TNPD": _LAYERS,
    "TNPA": _LAYERS,
    "TNPND": _LAYERS | _JOINT,
    "ConvCNP": {"grid": Grid(-4.0, 4.0, spacing=0.5), "dim_hidden": 8, "num_levels": 2},
    "TNPKR": _KERNEL,
    "TNPKRND": _KERNEL | _JOINT,
    "CNP": _POOLED,
    "CANP": _POOLED,
    "NP": _POOLED | _SAMPLED | {"dim_latent": 4},
    "ANP": _POOLED | _SAMPLED | {"dim_latent": 4},
    "BNP": _POOLED | _SAMPLED,
    "BANP": _POOLED | _SAMPLED,
    "SecondMomentNP": _MOMENTS | {"dim_model": 16, "dim_feedforward": 16},
    "SecondMomentJointNP": _MOMENTS,
    "FourierMomentNP": _MOMENTS | {
        "x_range": (-9.0, 9.0), "lengths": (0.5, 2.0), "periods": (0.5, 2.0), "num_harmonics": 3,
        "num_periodic_heads": 2, "num_cells": 16, "num_experts": (4, 3),
    },
}  # fmt: skip
# Those whose points have one input; all others take two as well.
ONE_INPUT = {"FourierMomentNP"}


# Small models of the paper's official code, and what they compute: tests/golden/README.md.
GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


class Golden(NamedTuple):
    """An official model, and what it computes from inputs; tensors by their names in the file."""

    hparams: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def golden(name: str) -> Golden:
    """The golden values of an official model, such as "cmanp"."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    hparams = json.loads(str(arrays.pop("hparams")))
    weights, inputs, outputs = (
        {
            key.removeprefix(kind): torch.from_numpy(np.asarray(array))
            for key, array in arrays.items()
            if key.startswith(kind)
        }
        for kind in ("w/", "in/", "out/")
    )
    return Golden(hparams, weights, inputs, outputs)


def small_cmanp(
    dim_x: int = 1, dim_y: int = 1, dtype: torch.dtype = torch.float32, **arguments: object
) -> CMANP:
    sizes = {
        "dim_model": 16, "num_heads": 2, "num_layers": 2, "dim_feedforward": 32,
        "num_latents": 6, "num_block_latents": 4, "embed_depth": 2,
    }  # fmt: skip
    return CMANP(dim_x, dim_y, **(sizes | arguments)).to(dtype).eval()


def small(name: str, dim_x: int | None = None, dim_y: int = 3) -> NeuralProcess:
    """One of `SIZES`, in evaluation mode; "NAME-lowrank" has that covariance, and
    "TNPKR-performer" that attention.

    It takes two inputs unless it takes only one, or `dim_x` says otherwise.
    """
    name, _, variant = name.partition("-")
    if dim_x is None:
        dim_x = 1 if name in ONE_INPUT else 2
    option = "attention" if name == "TNPKR" else "covariance"
    arguments = SIZES[name] | ({option: variant} if variant else {})
    # In float64, in which the stack of layers leaves no doubt about what is equal.
    return getattr(models, name)(dim_x, dim_y, **arguments).double().eval()


def sharpened(model: Model, means: Tensor, factor: float) -> Model:
    """With larger weights, and means that are farther apart; `means` is the part of the head's last
    weight that makes them. As initialised, a model's predictions hardly move with its context."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("head."):
                parameter.mul_(3.0)
        means.mul_(factor)
    return model


def random_points(
    batch: int, points: int, dim_x: int = 1, dim_y: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(batch, points, dim_x, dtype=dtype),
        torch.randn(batch, points, dim_y, dtype=dtype),
    )


def random_task(batch: int = 2, context: int = 7, target: int = 5, **arguments: object) -> Task:
    return Task(
        *random_points(batch, context, **arguments), *random_points(batch, target, **arguments)
    )


def random_slices(size: int, random: Random) -> list[slice]:
    """`range(size)` cut at random places into pieces, empty ones among them."""
    cuts = sorted(random.randint(0, size) for _ in range(random.randint(1, 4)))
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, size])]


def merge_in_a_random_tree(
    states: list[State], merge: Callable[[State, State], State], random: Random
) -> State:
    states = list(states)
    while len(states) > 1:
        first = states.pop(random.randrange(len(states)))
        second = states.pop(random.randrange(len(states)))
        states.append(merge(first, second))
    return states[0]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    tolerance = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_standard_normal(values: Tensor) -> None:
    """That each row is an independent draw from N(0, I), within 5 standard errors."""
    count, width = values.shape
    assert (values.mean(0).abs() < 5 / count**0.5).all()
    moments = values.T @ values / count
    assert ((moments - torch.eye(width)).abs() < 5 * (2 / count) ** 0.5).all()


def assert_same_prediction(
    actual: Distribution, expected: Distribution, tolerance: float | None = None
) -> None:
    assert_close(actual.mean, expected.mean, tolerance)
    assert_close(actual.stddev, expected.stddev, tolerance)


def assert_same_record(actual: TensorRecord, expected: TensorRecord) -> None:
    """Bit for bit, masks and nested records included."""
    pairs = list(zip(actual.tensors(), expected.tensors(), strict=True))
    assert pairs
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def assert_mixed_precision_is_near(model: torch.nn.Module, batch: TensorRecord) -> None:
    """That loss and gradients of a step in bfloat16 are finite, and near those of float32."""
    found = []
    for mixed in (False, True):
        torch.manual_seed(1)  # some models sample
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = model.loss(batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found.append((loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None])))
    (loss, gradient), (mixed_loss, mixed_gradient) = found
    assert mixed_loss.dtype == torch.float32
    torch.testing.assert_close(mixed_loss, loss, rtol=0.02, atol=0.0)
    assert mixed_gradient.isfinite().all()
    assert torch.cosine_similarity(gradient, mixed_gradient, dim=0) > 0.98
