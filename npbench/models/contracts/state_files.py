"""States in files.

Version 2, which is written, fingerprints the model by its class, its weights and those arguments
that differ from their defaults. Version 1, of release 0.1.0, is read.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from npbench.errors import InputError
from npbench.files import whole_file
from npbench.models.contracts.process import NeuralProcess
from npbench.scaling import Scaling

_FORMAT, _VERSION = "npbench-state", "2"
_CHECKSUM = "checksum"
# Arguments that change how a model computes, but not what.
_WITHOUT_EFFECT = {"context_chunk_size", "dropout"}
# Release 0.1.0 wrote version 1, whose fingerprint hashes all of these arguments in this order,
# whether or not they are at their defaults.
_CMANP_0_1_0 = (
    "dim_x", "dim_y", "dim_model", "num_heads", "num_layers", "dim_feedforward", "num_latents",
    "num_block_latents", "embed_depth", "bound_std", "qk_norm", "norm_residual",
)  # fmt: skip
_ARGUMENTS_0_1_0 = {
    "CMANP": _CMANP_0_1_0,
    "CMANPAND": (
        *_CMANP_0_1_0, "block_size", "covariance", "dim_projection", "num_std_layers",
        "projection_depth",
    ),
}  # fmt: skip


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    model: NeuralProcess | None,
    notes: Mapping[str, str],
) -> None:
    """Write a safetensors file, complete or not at all; see `SavedState.save`."""
    data = pack(tensors, model, notes)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(data)


def pack(
    tensors: Mapping[str, Tensor], model: NeuralProcess | None, notes: Mapping[str, str]
) -> bytes:
    """What a state file holds; see `SavedState.to_bytes`."""
    facts = {**notes, "format": _FORMAT, "version": _VERSION}
    if model is not None:
        facts["fingerprint"] = fingerprint(model)
        if model.scaling is not None:
            facts |= model.scaling.to_notes()
    saved = {name: z.detach().cpu().contiguous() for name, z in tensors.items()}
    return save(saved, facts | {_CHECKSUM: _checksum(facts, saved)})


def read(path: str | os.PathLike, model: NeuralProcess | None = None) -> dict[str, Tensor]:
    """The tensors of a state file.

    Raises:
        InputError: if it is no such file, is not what was saved, or was saved with another model
            than the one given, or with one of other units.
    """
    facts = read_notes(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _check(path, tensors, facts, model)
    return tensors


def read_notes(path: str | os.PathLike) -> dict[str, str]:
    """The notes that a state was saved with, its `fingerprint` among them.

    Raises:
        InputError: if it is no state file.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no state file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is no state file: {error}") from error
    _check_notes(path, facts)
    return facts


def unpack(
    name: str, data: bytes, model: NeuralProcess | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the notes of `pack`; `name` is what errors call the bytes.

    Raises:
        InputError: as `read`.
    """
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise InputError(f"{name} is no saved state: {error}") from error
    # The format begins with the length of its header, which is JSON.
    length = int.from_bytes(data[:8], "little")
    facts = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    _check_notes(name, facts)
    _check(name, tensors, facts, model)
    return tensors, facts


def _check_notes(name: str | os.PathLike, facts: Mapping[str, str]) -> None:
    """Refuse what is no saved state, or one of a version that is not known."""
    if facts.get("format") != _FORMAT:
        raise InputError(f"{name} holds tensors, but no state that npbench has saved")
    if (version := facts.get("version")) not in _FINGERPRINTS:
        versions = " and ".join(_FINGERPRINTS)
        raise InputError(
            f"{name} is a state file of version {version}; this npbench reads {versions}"
        )


def _check(
    name: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, str],
    model: NeuralProcess | None,
) -> None:
    """Refuse what is not as it was saved, or was saved with another model than the one given."""
    # Releases up to 0.1.0 wrote no checksum.
    if facts.get(_CHECKSUM) not in (None, _checksum(facts, tensors)):
        raise InputError(f"{name} is damaged: it does not have the checksum that was saved with it")
    if model is not None:
        check_fingerprint(name, facts, model)


def check_fingerprint(
    path: str | os.PathLike, notes: Mapping[str, str], model: NeuralProcess
) -> None:
    """Refuse a state of another model, or of other weights: its answers would be wrong."""
    if "fingerprint" not in notes:
        raise InputError(
            f"{path} was saved without its model, so that this one cannot be checked to be it: "
            f"save it by state.save(path, model), or load it without a model"
        )
    if not is_of(notes, model):
        raise InputError(
            f"{path} is a state of another model, or of other weights: load the checkpoint that "
            f"made it, or condition this model on the data again"
        )
    check_units(path, notes, model)


def check_units(path: str | os.PathLike, notes: Mapping[str, str], model: NeuralProcess) -> None:
    """Refuse a state that was made in other units than the model has.

    Raises:
        InputError: if it was.
    """
    there, here = Scaling.of_notes(notes), model.scaling
    if there == here:
        return
    names = "none" if there is None else ", ".join([*there.x_names, *there.y_names])
    raise InputError(
        f"{path} is a state in other units than the model's (its columns: {names}): take "
        f"model.scaled(npbench.scaling.Scaling.of_notes(notes)), with the notes of the file"
    )


def is_of(notes: Mapping[str, str], model: NeuralProcess) -> bool:
    """Whether the notes of a state file, of any version, hold the fingerprint of this model."""
    return notes.get("fingerprint") == _FINGERPRINTS[notes["version"]](model)


def fingerprint(model: NeuralProcess) -> str:
    """A number that no other model has, and none with other weights or arguments.

    Arguments at their defaults do not count, so that the states of a class stay valid when it gets
    a new argument. A default that was ever released must therefore stay as it is.
    """
    arguments = json.dumps(_changed_arguments(model), sort_keys=True)
    return digest_of(f"{type(model).__name__} {arguments}", model.state_dict())


def _fingerprint_of_version_1(model: NeuralProcess) -> str | None:
    """What release 0.1.0 would have written; None for a model that it could not make."""
    owner = next(cls for cls in type(model).__mro__ if "__init__" in vars(cls))
    # All arguments were hashed of a class outside npbench, and still are.
    others = [name for name in model.hparams if name not in _WITHOUT_EFFECT]
    names = _ARGUMENTS_0_1_0.get(owner.__name__, others)
    if _changed_arguments(model).keys() - set(names):
        return None
    arguments = json.dumps({name: model.hparams[name] for name in names})
    return digest_of(f"{type(model).__name__} {arguments}", model.state_dict())


_FINGERPRINTS = {"1": _fingerprint_of_version_1, _VERSION: fingerprint}


def _changed_arguments(model: NeuralProcess) -> dict[str, Any]:
    """The arguments that have an effect and differ from their defaults."""
    parameters = signature(type(model).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {
        name: value
        for name, value in model.hparams.items()
        if name not in _WITHOUT_EFFECT and not _equal(value, defaults.get(name, Parameter.empty))
    }


def _equal(value: Any, default: Any) -> bool:
    """Whether two arguments are the same to JSON, which knows no tuples, and 0 as 0.0."""
    if default is Parameter.empty:
        return False
    # `records_arguments` keeps dataclasses as dictionaries.
    default = asdict(default) if is_dataclass(default) else default
    return json.loads(json.dumps(value)) == json.loads(json.dumps(default))


def _checksum(facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """A number that changes with every value and note of a file, but for itself."""
    noted = {name: value for name, value in facts.items() if name != _CHECKSUM}
    return digest_of(json.dumps(noted, sort_keys=True), dict(sorted(tensors.items())))


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 hash of a text and of named tensors, in hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
