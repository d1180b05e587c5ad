"""Models from checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npbench.commands.arguments import given
from npbench.errors import InputError
from npbench.models import EventModel, NeuralProcess
from npbench.models.contracts.ranges import Ranges
from npbench.training.class_paths import class_at


def find(path: Path) -> Path:
    """The checkpoint that is meant: the file itself, or of a run's folder best.ckpt, or last.ckpt.

    Raises:
        InputError: if there is none.
    """
    candidates = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    found = next((file for file in [path, *candidates] if file.is_file()), None)
    if found is None:
        raise InputError(f"{path} is neither a checkpoint nor the folder of a run with one")
    return found


def load(checkpoint: Path) -> NeuralProcess:
    """The model of a checkpoint, on the CPU; the file is read without running code.

    Raises:
        InputError: if it is none, or of no model of regression that npbench knows.
    """
    stored = _content(checkpoint)
    path = stored["hyper_parameters"]["model"]["class_path"]
    kind = class_at(path)
    if kind is not None and issubclass(kind, EventModel):
        raise InputError(
            f"{checkpoint} holds a {kind.__name__}, which predicts events; this command takes "
            f"models of regression"
        )
    try:
        if kind is None or not issubclass(kind, NeuralProcess):
            return _by_lightning(checkpoint)
        model = kind(**stored["hyper_parameters"]["model"]["init_args"])
        model.load_state_dict(_of_model(stored["state_dict"]))
        model.watch.ranges = Ranges.of_checkpoint(stored)
    except Exception as error:
        raise InputError(f"{checkpoint} cannot be loaded: {error}") from error
    return model


def load_with_saved_states(checkpoint: Path) -> NeuralProcess:
    """The same, of a model whose states are kept in files.

    Raises:
        InputError: as `load`, and if the model's state grows with its context.
    """
    model = load(checkpoint)
    if model.state_class is None:
        raise InputError(
            f"{checkpoint} holds a {type(model).__name__}, whose states are not kept in files; "
            f"condition and query take CMANP, LocatedCMANP, SecondMomentNP, ConvCNP and their kin"
        )
    return model


def _content(checkpoint: Path) -> dict[str, Any]:
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        _ = stored["hyper_parameters"]["model"]["class_path"], stored["state_dict"]
    except Exception as error:  # torch fails in many ways on a file of another kind
        raise InputError(f"{checkpoint} is damaged, or no checkpoint of npbench fit") from error
    return stored


def _of_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model that a training module holds."""
    return {
        name.removeprefix("model."): value
        for name, value in weights.items()
        if name.startswith("model.")
    }


def _by_lightning(checkpoint: Path) -> NeuralProcess:
    """The model of a class that is not npbench's; Lightning, which takes seconds, imports it."""
    from npbench.training import MetaRegression

    return MetaRegression.load_from_checkpoint(
        checkpoint, map_location="cpu", weights_only=True
    ).model


def of_state(notes: Mapping[str, str], named: Path | None) -> Path:
    """The checkpoint that is named for a state, or else the one that its notes say.

    Raises:
        InputError: if there is none.
    """
    if named is not None:
        return find(named)
    checkpoint = Path(given("--ckpt", notes.get("checkpoint")))
    if not checkpoint.is_file():
        raise InputError(
            f"the state was made by {checkpoint}, which is not there any more; name it by --ckpt"
        )
    return checkpoint
