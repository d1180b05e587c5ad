"""The models of the results, with the sizes and the optimiser that each takes for a task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from benchmarks.results.tasks import Benchmark
from npbench import models
from npbench.attention.bias_spec import Bias
from npbench.blocks import Places, Scales
from npbench.blocks.set_convolution import Grid
from npbench.models import NeuralProcess
from npbench.optim import MuonAdam

# Layers of the models that are Transformers: of six a step takes twice as long.
_NUM_LAYERS = 3
# As in configs/gp/cmanp-small.yaml.
_SMALL = {"num_layers": 2, "num_latents": 32, "qk_norm": True, "norm_residual": False}
# Pixels lie in [−1, 1]², 2/15 apart.
_SCALES_OF_DIGITS = Scales(
    pack=(0.1, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0),
    mix=(0.3, 0.6, 1.5, inf),
    query=(0.15, 0.25, 0.5, 1.0),
    frequencies=(1.0, 16.0),
)


def _muon(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return MuonAdam(parameters, lr=0.01, adam_lr=1e-3)


def _adam(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=2e-3)


@dataclass(frozen=True)
class Rival:
    """A model of the table.

    Args:
        family: the name of its class.
        arguments: what it is given for a task beside the numbers of inputs and outputs; None where
            it cannot do the task.
        optimizer: of its parameters. The rate rises and falls with the time that is used up.
    """

    family: str
    arguments: Callable[[Benchmark], dict[str, Any] | None]
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] = _muon

    def build(self, benchmark: Benchmark) -> NeuralProcess | None:
        """The untrained model for a task; None if it cannot do it."""
        arguments = self.arguments(benchmark)
        if arguments is None:
            return None
        model = getattr(models, self.family)
        return model(benchmark.dim_x, benchmark.dim_y, **arguments)


def _likelihood(benchmark: Benchmark) -> dict[str, Any]:
    return {"likelihood": "categorical"} if benchmark.classes else {}


def _attentive(**arguments: Any) -> Callable[[Benchmark], dict[str, Any]]:
    """Arguments of the models whose standard deviations have a bound by a flag."""
    return lambda benchmark: {
        **arguments, **_likelihood(benchmark), "bound_std": benchmark.min_std > 0
    }  # fmt: skip


def _tnpkr(attention: str) -> Callable[[Benchmark], dict[str, Any]]:
    def arguments(benchmark: Benchmark) -> dict[str, Any]:
        bias = {"bias": Bias("centred_rbf")} if benchmark.classes and attention == "scan" else {}
        return {
            "attention": attention, "num_layers": _NUM_LAYERS, "min_std": benchmark.min_std,
            **bias, **_likelihood(benchmark),
        }  # fmt: skip

    return arguments


def _convcnp(benchmark: Benchmark) -> dict[str, Any]:
    low, high = benchmark.box
    arguments = {"min_std": benchmark.min_std, **_likelihood(benchmark)}
    if benchmark.dim_x == 1:
        return {"grid": Grid(low, high), **arguments}
    # Sites and pixels are a thirtieth and a fifteenth of the range apart.
    spacing = (high - low) / (30 if benchmark.classes else 20)
    return {"grid": Grid(low, high, spacing), "num_levels": 3, **arguments}


def _located(benchmark: Benchmark) -> dict[str, Any]:
    low, high = benchmark.box
    number = 64 if benchmark.dim_x == 1 or benchmark.min_std else 256
    scales = {"scales": _SCALES_OF_DIGITS} if benchmark.min_std else {}
    return _attentive(places=Places(low, high, number=number), **scales)(benchmark)


def _second_moment(benchmark: Benchmark) -> dict[str, Any] | None:
    """It has no classes, and its standard deviations no lower bound."""
    if benchmark.classes or benchmark.min_std:
        return None
    return {"num_features": 45 if benchmark.dim_x == 1 else 64, "num_heads": 12, "rate": 30.0}


def _fourier(benchmark: Benchmark) -> dict[str, Any] | None:
    """As in configs/gp/fourier.yaml; for one input."""
    if benchmark.dim_x > 1:
        return None
    return {
        "num_features": 64, "lengths": (0.05, 1.0), "noise_std": 0.05, "rate": 30.0,
        "periodic_rate": 20.0,
    }  # fmt: skip


RIVALS = {
    "CNP": Rival("CNP", _likelihood),
    "ConvCNP": Rival("ConvCNP", _convcnp, _adam),
    "CMANP": Rival("CMANP", _attentive()),
    "CMANP-small": Rival("CMANP", _attentive(**_SMALL, num_heads=2, num_block_latents=32)),
    "LBANP": Rival("LBANP", _attentive(**_SMALL)),
    "EQTNP": Rival(
        "EQTNP", _attentive(num_layers=_NUM_LAYERS, qk_norm=True, norm_residual=False)
    ),
    "TNP-D": Rival("TNPD", _attentive(num_layers=_NUM_LAYERS)),
    "TNP-KR-scan": Rival("TNPKR", _tnpkr("scan")),
    "TNP-KR-deep-kernel": Rival("TNPKR", _tnpkr("deep_kernel")),
    "TNP-KR-performer": Rival("TNPKR", _tnpkr("performer")),
    "LocatedCMANP": Rival("LocatedCMANP", _located),
    "SecondMomentNP": Rival("SecondMomentNP", _second_moment),
    "FourierMomentNP": Rival("FourierMomentNP", _fourier),
}  # fmt: skip
"""The models by their names, in the order of the table."""
