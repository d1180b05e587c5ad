"""How a trainer writes and reads checkpoints."""

import io
import os
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from npbench.files import output_file
from npbench.training.checkpoint_files import load_checkpoint


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint beside its target, and renames it when it is on the disk.

    A kill, a full disk or a loss of power leaves the previous checkpoint as it was, on any file
    system: Lightning's own goes through the folder of temporary files, from where a checkpoint is
    copied if it is on another file system. `BestCheckpoint` and `LastCheckpoint` put it into their
    trainer, where that has no plugin of its own for checkpoints. Paths with a scheme, such as
    `s3://`, go to Lightning's.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(plugins=[WholeCheckpointIO()], logger=False)
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike,
        storage_options: Any | None = None,
    ) -> None:
        """Write a checkpoint, or leave what was there.

        Raises:
            InputError: if it cannot be written; says why.
        """
        if storage_options is not None or _is_remote(path):
            return super().save_checkpoint(checkpoint, str(path), storage_options)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with output_file(path) as unfinished:
            unfinished.write_bytes(content.getbuffer())

    def load_checkpoint(
        self,
        path: str | os.PathLike,
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """The content of a checkpoint; see `npbench.training.checkpoint_files`."""
        if _is_remote(path):
            return super().load_checkpoint(str(path), map_location, weights_only is not False)
        return load_checkpoint(path, map_location, weights_only)


def _is_remote(path: str | os.PathLike) -> bool:
    return "://" in str(path)
