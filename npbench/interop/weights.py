"""Weights of other code, by our names, in a model of ours."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from npbench.errors import InputError

Rule = tuple[str, str | Callable[[re.Match], str]]
Names = list[Rule]
"""Regular expressions that turn other names into ours, applied one after the other."""


def as_tensors(weights: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
    """The weights as tensors; "w/" before all names, as golden files have it, is left out."""
    return {
        name.removeprefix("w/"): weight
        if isinstance(weight, Tensor)
        else torch.from_numpy(np.array(weight))
        for name, weight in weights.items()
    }


def renamed(name: str, names: Sequence[Rule]) -> str:
    """A name by these rules."""
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def put(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Give a model these weights, which have our names.

    Args:
        model: whose weights they are to be.
        weights: all of them.
        what: what they are of, for the message.

    Raises:
        InputError: if they are not exactly the model's; says which are missing, left over, or of
            another shape.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> put(layer, {"weight": torch.eye(2), "bias": torch.zeros(2)}, "Linear")
        >>> layer(torch.ones(1, 2)).tolist()
        [[1.0, 1.0]]
    """
    if difference := _difference(model.state_dict(), weights):
        raise InputError(f"these weights are no {what} of these hyper-parameters: {difference}")
    model.load_state_dict(weights)


def _difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """What does not fit, by our names; empty if all does."""
    misfits = {
        "missing": [name for name in ours if name not in theirs],
        "left over": [name for name in theirs if name not in ours],
        "of another shape": [
            f"{name} {list(theirs[name].shape)}, not {list(ours[name].shape)}"
            for name in ours
            if name in theirs and ours[name].shape != theirs[name].shape
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in misfits.items()
        if names
    )
