"""Weights of the paper's official implementation, loaded into our models.

Source: the official implementation of Feng et al., ICML 2024.
"""

import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from npbench.models import CMANP, CNP, NeuralProcess

# For each model: official constructor arguments → ours, then parameter names likewise.
_CMANP_ARGUMENTS = {
    "dim_x": "dim_x",
    "dim_y": "dim_y",
    "d_model": "dim_model",
    "nhead": "num_heads",
    "num_layers": "num_layers",
    "dim_feedforward": "dim_feedforward",
    "num_latents": "num_latents",
    "num_latents_per_layer": "num_block_latents",
    "emb_depth": "embed_depth",
    "dropout": "dropout",
    "bound_std": "bound_std",
}
_CNP_ARGUMENTS = {
    "dim_x": "dim_x",
    "dim_y": "dim_y",
    "dim_hid": "dim_hidden",
    "enc_pre_depth": "pre_depth",
    "enc_post_depth": "post_depth",
    "dec_depth": "decoder_depth",
}
# Arguments of how the official code computes, not of what.
_IGNORED = {"CMAB_block_size"}

# Regular expressions, applied one after the other.
_CMANP_NAMES = [
    (r"^embedder\.", "embed_points."),
    (r"^query_embedder\.", "embed_targets."),
    (r"^predictor\.", "head.mlp."),
    (r"^encoder\.layers\.", "blocks."),
    (r"^decoder\.layers\.(\d+)\.cross_attn\.", r"query_layers.\1.attend."),
    (r"^decoder\.layers\.(\d+)\.cross_ff\.", r"query_layers.\1.feedforward."),
    (r"\.layer_cross_attn\.", ".attend_points."),
    (r"\.layer_cross_ff\.", ".mix_block.0."),
    (r"\.layer_latent_self_attn\.", ".mix_block.1."),
    (r"\.layer_latent_ff\.", ".mix_block.2."),
    (r"\.cross_attn\.", ".attend_block."),
    (r"\.cross_ff\.", ".mix_latents.0."),
    (r"\.latent_self_attn\.", ".mix_latents.1."),
    (r"\.latent_ff\.", ".mix_latents.2."),
    (r"\.fn\.net\.0\.", ".expand."),
    (r"\.fn\.net\.2\.", ".contract."),
    (r"\.fn\.", ".attention."),
]

_CNP_NAMES = [
    (r"^enc1\.net_(pre|post)\.", r"\1.0."),
    (r"^enc2\.net_(pre|post)\.", r"\1.1."),
    (r"^dec\.fc\.", "head.mlp.0."),
    (r"^dec\.mlp\.1\.", "head.mlp.2."),
    (r"^dec\.mlp\.3\.", "head.mlp.4."),
]

_MODELS: dict[str, tuple[Callable[..., NeuralProcess], dict[str, str], list[tuple[str, str]]]] = {
    "cmanp": (CMANP, _CMANP_ARGUMENTS, _CMANP_NAMES),
    "cnp": (CNP, _CNP_ARGUMENTS, _CNP_NAMES),
}


def load(
    model: str,
    hparams: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | str | PathLike,
) -> NeuralProcess:
    """A model of ours with official weights, in eval mode.

    Args:
        model: official name, such as "cmanp".
        hparams: constructor arguments by their official names.
        state_dict: parameters by their official names, or the path of a checkpoint file; a file is
            read with `weights_only`, so that it cannot run code.

    Raises:
        ValueError: on an unknown model or argument, and on parameters that are missing, left over
            or of another shape.
    """
    if model not in _MODELS:
        raise ValueError(f"unknown official model {model!r}; known: {', '.join(_MODELS)}")
    constructor, arguments, names = _MODELS[model]
    unknown = hparams.keys() - arguments.keys() - _IGNORED
    if unknown:
        raise ValueError(
            f"unknown hyper-parameter(s) {sorted(unknown)} of {model}; known: {sorted(arguments)}"
        )
    missing = {"dim_x", "dim_y"} - hparams.keys()
    if missing:
        raise ValueError(f"the hyper-parameters of {model} lack {sorted(missing)}")
    ours = constructor(**{arguments[k]: v for k, v in hparams.items() if k not in _IGNORED})
    if not isinstance(state_dict, Mapping):
        state_dict = _read(Path(state_dict))
    try:
        ours.load_state_dict({_rename(name, names): w for name, w in state_dict.items()})
    except RuntimeError as error:
        raise ValueError(
            f"these weights are no {model} of these hyper-parameters: {error}"
        ) from error
    return ours.eval()


def _rename(name: str, names: list[tuple[str, str]]) -> str:
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def _read(path: Path) -> Mapping[str, Tensor]:
    """The parameters in an official checkpoint: {"model": state_dict, …}, or the dict itself."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, or is no checkpoint: refused") from error
    parameters = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(parameters, dict):
        raise ValueError(f"{path} holds no state dict")
    return parameters
