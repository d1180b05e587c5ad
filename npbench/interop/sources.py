"""The models that a regressor of a table begins with."""

import os

import torch

from npbench.blocks import InferredNoise
from npbench.models import NeuralProcess, SecondMomentNP
from npbench.pretrained import load, names

# Says that a model is to be chosen by the rows.
AUTO = "auto"
# What the prior is made of for numbers of inputs that no model is trained for.
_PRIOR = {"num_features": 96, "num_heads": 6, "noise": InferredNoise(), "corrected": False}
# Lengths of the prior's functions, of inputs from −2 to 2: of one, and of d times √d.
_LENGTHS_OF_ONE, _LENGTHS = (0.05, 4.0), (0.3, 4.0)


def default_name(num_inputs: int) -> str | None:
    """The name of the model that comes with npbench for so many inputs, if there is one.

    Example:
        >>> default_name(2), default_name(7)
        ('gp-2d', None)
    """
    name = f"gp-{num_inputs}d"
    return name if name in names() else None


def candidates(num_inputs: int) -> list[str]:
    """The names of all such models that predict each target by itself; the default comes first.

    Example:
        >>> candidates(1)[0], candidates(7)
        ('gp-1d', [])
    """
    default = default_name(num_inputs)
    return [
        name
        for name in names()
        if name == default or (name.startswith(f"{default}-") and not load(name).scores_jointly)
    ]


def trained(source: NeuralProcess | str | os.PathLike | None, dim_x: int) -> NeuralProcess:
    """The model of a source, in its own numbers.

    Args:
        source: a model, or what `npbench.load` takes; None is the prior: Bayesian regression on
            random Fourier features, as it is initialised.
        dim_x: the numbers that the inputs are, for the prior.

    Raises:
        InputError: if there is no such model.
    """
    if source is not None:
        return (source if isinstance(source, NeuralProcess) else load(source)).scaled(None)
    lengths = _LENGTHS_OF_ONE if dim_x == 1 else _LENGTHS
    low, high = (length * dim_x**0.5 for length in lengths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SecondMomentNP(dim_x, 1, lengths=(low, high), **_PRIOR).eval()
