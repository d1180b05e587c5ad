"""States in files."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from npbench.errors import InputError
from npbench.models.contracts.process import NeuralProcess

_FORMAT, _VERSION = "npbench-state", "1"
# Arguments that change how a model computes, but not what.
_WITHOUT_EFFECT = {"context_chunk_size", "dropout"}


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    model: NeuralProcess | None,
    notes: Mapping[str, str],
) -> None:
    """Write a safetensors file, complete or not at all; see `CMANPState.save`."""
    facts = {**notes, "format": _FORMAT, "version": _VERSION}
    if model is not None:
        facts["fingerprint"] = fingerprint(model)
    data = save({name: z.detach().cpu().contiguous() for name, z in tensors.items()}, facts)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike, model: NeuralProcess | None = None) -> dict[str, Tensor]:
    """The tensors of a state file.

    Raises:
        InputError: if it is no such file, or was saved with another model than the one given.
    """
    facts = read_notes(path)
    if model is not None:
        check_fingerprint(path, facts, model)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


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
    if facts.get("format") != _FORMAT:
        raise InputError(f"{path} holds tensors, but no state that npbench has saved")
    if (version := facts.get("version")) != _VERSION:
        raise InputError(
            f"{path} is a state file of version {version}; this npbench reads {_VERSION}"
        )
    return facts


def check_fingerprint(
    path: str | os.PathLike, notes: Mapping[str, str], model: NeuralProcess
) -> None:
    """Refuse a state of another model, or of other weights: its answers would be wrong."""
    if "fingerprint" not in notes:
        raise InputError(
            f"{path} was saved without its model, so that this one cannot be checked to be it: "
            f"save it by state.save(path, model), or load it without a model"
        )
    if notes["fingerprint"] != fingerprint(model):
        raise InputError(
            f"{path} is a state of another model, or of other weights: load the checkpoint that "
            f"made it, or condition this model on the data again"
        )


def fingerprint(model: NeuralProcess) -> str:
    """A number that no other model has, and none with other weights or arguments."""
    arguments = {k: v for k, v in model.hparams.items() if k not in _WITHOUT_EFFECT}
    digest = hashlib.sha256(f"{type(model).__name__} {json.dumps(arguments)}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
