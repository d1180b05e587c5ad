"""Models from checkpoints."""

from argparse import ArgumentError
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import nn

from npbench.commands.arguments import given
from npbench.errors import InputError
from npbench.models.contracts.process import NeuralProcess
from npbench.training import EventPrediction, MetaRegression
from npbench.training.base import TrainingModule


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
    try:
        return _model(checkpoint, MetaRegression)
    except (ValueError, ArgumentError) as error:
        if name := _event_model(checkpoint):
            raise InputError(
                f"{checkpoint} holds a {name}, which predicts events; this command takes models of "
                f"regression"
            ) from error
        raise InputError(f"{checkpoint} cannot be loaded: {error}") from error
    except Exception as error:  # torch fails in many ways on a file of another kind
        raise InputError(f"{checkpoint} is damaged, or no checkpoint of npbench fit") from error


def load_with_saved_states(checkpoint: Path) -> NeuralProcess:
    """The same, of a model whose states are kept in files.

    Raises:
        InputError: as `load`, and if the model's state grows with its context.
    """
    model = load(checkpoint)
    if model.state_class is None:
        raise InputError(
            f"{checkpoint} holds a {type(model).__name__}, whose states are not kept in files; "
            f"condition and query take CMANP, LocatedCMANP, SecondMomentNP and their kin"
        )
    return model


def _model(checkpoint: Path, kind: type[TrainingModule]) -> nn.Module:
    return kind.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).model


def _event_model(checkpoint: Path) -> str | None:
    """The name of the model, if it is one of events."""
    with suppress(ValueError, ArgumentError):
        return type(_model(checkpoint, EventPrediction)).__name__
    return None


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
