"""Trained models in files: checkpoints of runs, and folders that a package can hold."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from npbench.errors import InputError
from npbench.files import output_file
from npbench.models import EventModel, NeuralProcess, SequenceClassifier
from npbench.models.contracts.ranges import Ranges
from npbench.scaling import Scaling
from npbench.training.bounds import WithinWeights, check_numbers
from npbench.training.checkpoint_files import load_checkpoint
from npbench.training.class_paths import check_class_paths, class_at, public_path

_PACKAGED = Path(__file__).parent
# What a folder holds: what the model is, its weights, and its card.
_MODEL, _WEIGHTS, _CARD = "model.yaml", "model.safetensors", "README.md"
_FORMAT = "npbench-model"
_DESCRIPTION = "class_path", "init_args"


def names() -> list[str]:
    """The names of the models that come with npbench."""
    return sorted(path.parent.name for path in _PACKAGED.glob(f"*/{_MODEL}"))


def find(source: str | os.PathLike) -> Path:
    """The file of a trained model.

    Args:
        source: a checkpoint; the folder of a run, of which best.ckpt is meant, or last.ckpt; a
            folder that `export` has made; or the name of a model that comes with npbench.

    Raises:
        InputError: if there is none; says which names there are.
    """
    path = Path(source)
    candidates = [path, *(path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))]
    candidates += [path / _MODEL]
    if str(source) in names():
        candidates.append(_PACKAGED / str(source) / _MODEL)
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise InputError(
            f"{path} is neither a checkpoint nor the folder of a run with one, nor the name of a "
            f"model that comes with npbench ({', '.join(names())})"
        )
    return found


def load(source: str | os.PathLike, frozen: list[str] | None = None) -> NeuralProcess:
    """A trained model, on the CPU and in evaluation mode; no file runs code.

    Args:
        source: as of `find`: a checkpoint, the folder of a run or of an exported model, or the name
            of one that comes with npbench, such as "gp-1d".
        frozen: names of parts, such as "head", whose parameters training leaves as they are.

    Raises:
        InputError: if there is no such model, or the file is damaged, or holds no model of
            regression that npbench knows or that is imported; or if a part is not the model's.

    Example:
        >>> import numpy as np, npbench
        >>> model = npbench.load("gp-1d")
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> with torch.no_grad():
        ...     state = model.condition(x, np.sin(3 * x))
        ...     round(float(model.query(state, np.array([[0.5]])).mean), 2)
        1.0
    """
    path = find(source)
    model = built(content_of(path), str(path)).eval()
    for part in frozen or ():
        parameters = [
            p for name, p in model.named_parameters() if f"{name}.".startswith(f"{part}.")
        ]
        if not parameters:
            parts = ", ".join(name for name, _ in model.named_children())
            raise InputError(f"{path} has no part {part} to freeze; its parts are {parts}")
        for parameter in parameters:
            parameter.requires_grad_(False)
    return model


def content_of(path: Path) -> Mapping[str, Any]:
    """What the file of a model holds, as a checkpoint does: `state_dict`, `hyper_parameters` and
    what the model knows of its training.

    Raises:
        InputError: if it is damaged, or of another kind.
    """
    return _content_of_folder(path) if path.suffix == ".yaml" else load_checkpoint(path)


def built(content: Mapping[str, Any], source: str) -> NeuralProcess:
    """The model of a checkpoint's content.

    Args:
        content: as `content_of` gives it.
        source: the file, for messages.

    Raises:
        InputError: if it holds no model of regression that npbench knows or that is imported.
    """
    hyper_parameters = content.get("hyper_parameters")
    described = hyper_parameters.get("model") if isinstance(hyper_parameters, Mapping) else None
    if not isinstance(described, Mapping) or not {"class_path", "init_args"} <= described.keys():
        raise InputError(f"{source} is no checkpoint of npbench fit: it describes no model")
    of_model = {
        name.removeprefix("model."): weight
        for name, weight in content["state_dict"].items()
        if name.startswith("model.")
    }
    check_class_paths(described, (NeuralProcess, EventModel, SequenceClassifier), source)
    kind = class_at(described["class_path"])
    for other, does in ((EventModel, "predicts events"), (SequenceClassifier, "classifies")):
        if kind is not None and issubclass(kind, other):
            raise InputError(
                f"{source} holds a {kind.__name__}, which {does}; this command takes models of "
                f"regression"
            )
    if kind is None or not issubclass(kind, NeuralProcess):
        raise InputError(f"{source} holds a {described['class_path']}, which is no model")
    check_numbers(described, of_model, source)
    try:
        with WithinWeights(of_model, source):
            model = kind(**described["init_args"])
        model.load_state_dict(of_model)
        model.watch.ranges = Ranges.of_checkpoint(content)
        model.scaling = Scaling.of_checkpoint(content)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{source} cannot be loaded: {error}") from error
    return model


def export(model: NeuralProcess, folder: str | os.PathLike, card: str) -> None:
    """Write a model as a folder that `load` takes: model.yaml, model.safetensors and README.md.

    The files are whole, or not there. They hold what the model is, its weights, its units and the
    ranges of its training, and nothing of the run.

    Args:
        model: the model.
        folder: where to.
        card: what there is to know of it, in Markdown: how it was trained, and how good it is.

    Raises:
        InputError: if the folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from npbench.models import CNP
        >>> with TemporaryDirectory() as folder:
        ...     export(CNP(dim_x=1, dim_y=1), folder, card="A CNP that nobody has trained.")
        ...     load(folder)
        CNP(dim_x=1, dim_y=1; 215,682 parameters on cpu)
    """
    folder = Path(folder)
    about: dict[str, Any] = {
        "format": _FORMAT,
        "class_path": public_path(type(model)),
        "init_args": _plain(model.hparams),
    }
    if (ranges := model.watch.ranges) is not None:
        about["training_ranges"] = {name: z.tolist() for name, z in vars(ranges).items()}
    if model.scaling is not None:
        about |= model.scaling.to_checkpoint()
    weights = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    with output_file(folder / _WEIGHTS) as file:
        file.write_bytes(save(weights))
    with output_file(folder / _MODEL) as file:
        file.write_text(yaml.safe_dump(about, sort_keys=False))
    with output_file(folder / _CARD) as file:
        file.write_text(card.rstrip("\n") + "\n")


def _content_of_folder(path: Path) -> dict[str, Any]:
    try:
        about = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or describes no model: {error}") from error
    if not isinstance(about, Mapping) or about.get("format") != _FORMAT:
        raise InputError(f"{path} describes no model that npbench has exported")
    file = path.with_name(_WEIGHTS)
    if not file.is_file():
        raise InputError(f"{path} has no {_WEIGHTS} beside it, which holds the weights")
    try:
        with safe_open(file, framework="pt") as tensors:
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}") from error
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(f"{file} holds a {name} that is not finite")
    described = {key: _with_tuples(about[key]) for key in _DESCRIPTION if key in about}
    content: dict[str, Any] = {
        "state_dict": {f"model.{name}": weight for name, weight in weights.items()},
        "hyper_parameters": {"model": described},
    }
    try:
        if (ranges := about.get("training_ranges")) is not None:
            content["training_ranges"] = {
                name: torch.tensor(z, dtype=torch.float64) for name, z in ranges.items()
            }
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} has ranges that npbench has not written: {error}") from error
    return content | {key: about[key] for key in ("scaling",) if key in about}


def _with_tuples(value: Any) -> Any:
    """The same with tuples for lists, but for those of mappings, as models take them."""
    if isinstance(value, Mapping):
        return {name: _with_tuples(each) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    parts = [_with_tuples(each) for each in value]
    return parts if any(isinstance(each, Mapping) for each in parts) else tuple(parts)


def _plain(value: Any) -> Any:
    """The same with lists for tuples, which YAML has none of."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
