"""Checkpoints in files, which are whole, hold no code, and have weights that are numbers."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from npbench.errors import InputError

# Every checkpoint of Lightning has these.
_ALWAYS = "state_dict", "pytorch-lightning_version"
# A run goes on from these, and a file of weights alone lacks them.
_TO_RESUME = "loops", "optimizer_states", "lr_schedulers"


def load_checkpoint(
    path: str | os.PathLike, map_location: Any = "cpu", weights_only: bool | None = None
) -> dict[str, Any]:
    """The content of a checkpoint that is whole, and whose weights are numbers.

    Args:
        path: the file.
        map_location: as of `torch.load`.
        weights_only: False to load what may run code, from a source that is trusted.

    Raises:
        InputError: if the file is missing, damaged or no checkpoint, asks for code to be run, or
            holds weights that are not finite.
    """
    check_whole(path)
    try:
        content = torch.load(path, map_location, weights_only=weights_only is not False)
    except UnpicklingError as error:
        raise InputError(
            f"{path} is no checkpoint of npbench fit: it holds more than tensors and plain values, "
            f"which could run code, and was not loaded"
        ) from error
    except Exception as error:  # torch fails in many ways on a file of another kind
        raise InputError(f"{path} is damaged, or no checkpoint of npbench fit") from error
    if not isinstance(content, dict) or not set(_ALWAYS) <= content.keys():
        raise InputError(f"{path} is no checkpoint of npbench fit: it holds no training module")
    _check_weights(path, content["state_dict"])
    return content


def check_whole(path: str | os.PathLike) -> None:
    """Refuse a checkpoint of which a part is missing, or not as it was written.

    Every part has a checksum in the file, which torch writes and does not check.

    Raises:
        InputError: if it is not whole, or there is none.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a folder, and no checkpoint")
        if not size:
            raise InputError(f"{path} is empty: whoever wrote it was cut off")
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise InputError(f"{path} is no checkpoint of npbench fit: it is compressed")
            damaged = archive.testzip()
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged, or no checkpoint of npbench fit") from error
    if damaged is not None:
        raise InputError(f"{path} is damaged: {damaged} in it is not what was written")


def checkpoint_to_resume(path: str | os.PathLike) -> tuple[Path, str | None]:
    """The checkpoint to go on from, and why it is another than the one that is named.

    Args:
        path: a checkpoint, beside which another is looked for if it is not whole; or a folder with
            runs, of whose checkpoints the newest `last.ckpt` that is whole is taken, or else the
            newest of all.

    Raises:
        InputError: if none is whole, or there is none.
    """
    path = Path(path)
    named = [] if path.is_dir() else [path]
    found = path.rglob("*.ckpt") if path.is_dir() else path.parent.glob("*.ckpt")
    others = sorted(
        (file for file in found if file.is_file() and file != path),
        key=lambda file: (path.is_dir() and file.name == "last.ckpt", file.stat().st_mtime_ns),
        reverse=True,
    )
    if path.is_dir() and not others:
        raise InputError(f"there is no checkpoint in {path}")
    first: InputError | None = None
    for file in [*named, *others]:
        try:
            check_whole(file)
        except InputError as error:
            if not path.exists():
                raise
            first = first or error
        else:
            return file, None if first is None else f"{first}; going on from {file}"
    raise InputError(f"{first}; no other checkpoint in {path.parent} is whole") from first


def check_resumable(content: Mapping[str, Any]) -> None:
    """Refuse to resume from a checkpoint that holds weights alone.

    Raises:
        InputError: if it lacks the state of the optimiser, the schedule or the loops.
    """
    if missing := [name for name in _TO_RESUME if name not in content]:
        raise InputError(
            f"the checkpoint cannot be resumed from: it has no {', '.join(missing)}; --init_from "
            f"begins a new run with its weights alone"
        )


def _check_weights(path: str | os.PathLike, weights: Any) -> None:
    if not isinstance(weights, Mapping) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise InputError(f"{path} is no checkpoint of npbench fit: its state_dict is not weights")
    for name, weight in weights.items():
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise InputError(f"{path} announces more numbers for {name} than it holds")
        if not weight.isfinite().all():
            raise InputError(
                f"{path} holds a {name} that is not finite, so that all predictions would be NaN: "
                f"take an earlier checkpoint"
            )
