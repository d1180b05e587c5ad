"""Models from checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from npbench.commands.arguments import given
from npbench.errors import InputError
from npbench.models import EventModel, NeuralProcess, SequenceClassifier
from npbench.models.contracts.ranges import Ranges
from npbench.scaling import Scaling
from npbench.training.bounds import WithinWeights, check_numbers
from npbench.training.checkpoint_files import load_checkpoint
from npbench.training.class_paths import check_class_paths, class_at


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
        InputError: if it is none, or of no model of regression that npbench knows, or that
            `--allow` has imported.
    """
    described, weights, stored = _content(checkpoint)
    check_class_paths(described, (NeuralProcess, EventModel, SequenceClassifier), str(checkpoint))
    kind = class_at(described["class_path"])
    if kind is not None and issubclass(kind, EventModel):
        raise InputError(
            f"{checkpoint} holds a {kind.__name__}, which predicts events; this command takes "
            f"models of regression"
        )
    if kind is not None and issubclass(kind, SequenceClassifier):
        raise InputError(
            f"{checkpoint} holds a {kind.__name__}, which classifies sequences; this command takes "
            f"models of regression"
        )
    if kind is None or not issubclass(kind, NeuralProcess):
        raise InputError(f"{checkpoint} holds a {described['class_path']}, which is no model")
    check_numbers(described, weights, str(checkpoint))
    try:
        with WithinWeights(weights, str(checkpoint)):
            model = kind(**described["init_args"])
        model.load_state_dict(weights)
        model.watch.ranges = Ranges.of_checkpoint(stored)
        model.scaling = Scaling.of_checkpoint(stored)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{checkpoint} cannot be loaded: {error}") from error
    return model


def load_with_saved_states(
    checkpoint: Path, notes: Mapping[str, str] | None = None
) -> NeuralProcess:
    """The same, of a model whose states are kept in files.

    Args:
        checkpoint: the file.
        notes: those of a state file, in whose units the model is then.

    Raises:
        InputError: as `load`, and if the model's state grows with its context.
    """
    model = load(checkpoint)
    if model.state_class is None:
        raise InputError(
            f"{checkpoint} holds a {type(model).__name__}, whose states are not kept in files; "
            f"condition and query take CMANP, LocatedCMANP, SecondMomentNP, ConvCNP and their kin"
        )
    if notes:
        model.scaling = Scaling.of_notes(notes)
    return model


def _content(checkpoint: Path) -> tuple[Mapping[str, Any], dict[str, Tensor], Mapping[str, Any]]:
    """The class and arguments of the model that a training module holds, its weights, and all that
    the checkpoint holds."""
    stored = load_checkpoint(checkpoint)
    hyper_parameters = stored.get("hyper_parameters")
    described = hyper_parameters.get("model") if isinstance(hyper_parameters, Mapping) else None
    if not isinstance(described, Mapping) or not {"class_path", "init_args"} <= described.keys():
        raise InputError(f"{checkpoint} is no checkpoint of npbench fit: it describes no model")
    weights = stored["state_dict"].items()
    of_model = {name.removeprefix("model."): w for name, w in weights if name.startswith("model.")}
    return described, of_model, stored


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
