"""Weights of the paper's official implementation, loaded into our models.

Source: the official implementation of Feng et al., ICML 2024.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npbench import models
from npbench.errors import InputError
from npbench.interop.weights import Names, put, renamed
from npbench.models import NeuralProcess

# Official constructor arguments, and ours.
_DIMS = {"dim_x": "dim_x", "dim_y": "dim_y"}
_LAYERS = _DIMS | {
    "d_model": "dim_model",
    "nhead": "num_heads",
    "num_layers": "num_layers",
    "dim_feedforward": "dim_feedforward",
    "emb_depth": "embed_depth",
    "dropout": "dropout",
    "bound_std": "bound_std",
}
_LATENTS = _LAYERS | {"num_latents": "num_latents"}
_BLOCKS = _LATENTS | {"num_latents_per_layer": "num_block_latents"}
_JOINT = {
    "cov_approx": "covariance",
    "prj_dim": "dim_projection",
    "prj_depth": "projection_depth",
    "num_std_layers": "num_std_layers",
}
_AUTOREGRESSIVE = {"AND_block_size": "block_size"}
_POOLED = _DIMS | {
    "dim_hid": "dim_hidden",
    "enc_pre_depth": "pre_depth",
    "enc_post_depth": "post_depth",
    "dec_depth": "decoder_depth",
}
_ATTENTIVE = _POOLED | {"enc_v_depth": "value_depth", "enc_qk_depth": "query_depth"}
_LATENT = {"dim_lat": "dim_latent"}
# These say how the official code computes, not what; and one of them always equals another.
_IGNORED = {"CMAB_block_size", "diag_depth"}

_DECODER_NAMES: Names = [
    (r"^query_embedder\.", "decoder.embed."),
    (r"^norm\.", "decoder.norm."),
    (r"^decoder\.layers\.(\d+)\.cross_attn\.", r"decoder.layers.\1.attend."),
    (r"^decoder\.layers\.(\d+)\.cross_ff\.", r"decoder.layers.\1.feedforward."),
    (r"\.fn\.net\.0\.", ".expand."),
    (r"\.fn\.net\.2\.", ".contract."),
    (r"\.fn\.", ".attention."),
    (r"^predictor\.", "head.mlp."),
]
_CMANP_NAMES: Names = [
    (r"^embedder\.", "embed_points."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_cross_attn\.", ".attend_points."),
    (r"\.layer_cross_ff\.", ".mix_block.0."),
    (r"\.layer_latent_self_attn\.", ".mix_block.1."),
    (r"\.layer_latent_ff\.", ".mix_block.2."),
    (r"^(blocks\.\d+)\.cross_attn\.", r"\1.attend_block."),
    (r"^(blocks\.\d+)\.cross_ff\.", r"\1.mix_latents.0."),
    (r"\.latent_self_attn\.", ".mix_latents.1."),
    (r"\.latent_ff\.", ".mix_latents.2."),
    *_DECODER_NAMES,
]
_LBANP_NAMES: Names = [
    (r"^embedder\.", "embed_points."),
    (r"^encoder\.layers\.", "layers."),
    (r"^(layers\.\d+)\.cross_attn\.", r"\1.attend_points."),
    (r"^(layers\.\d+)\.cross_ff\.", r"\1.mix_latents.0."),
    (r"\.latent_self_attn\.", ".mix_latents.1."),
    (r"\.latent_ff\.", ".mix_latents.2."),
    *_DECODER_NAMES,
]
_EQTNP_NAMES: Names = [
    (r"^embedder\.", "embed_points."),
    (r"^encoder\.layers\.(\d+)\.dataset_self_attn\.", r"layers.\1.attend."),
    (r"^encoder\.layers\.(\d+)\.ff\.", r"layers.\1.feedforward."),
    *_DECODER_NAMES,
]
_TRANSFORMER_NAMES: Names = [
    (r"\.self_attn\.out_proj\.", ".attention.to_out."),
    (r"\.self_attn\.in_proj_", ".attention.in_proj."),
    (r"\.linear1\.", ".expand."),
    (r"\.linear2\.", ".contract."),
    (r"\.norm1\.", ".norm_attention."),
    (r"\.norm2\.", ".norm_feedforward."),
]
_TNP_NAMES: Names = [
    (r"^embedder\.", "embed."),
    (r"^encoder\.layers\.", "layers."),
    (r"^predictor\.", "head.mlp."),
    *_TRANSFORMER_NAMES,
]
_JOINT_NAMES: Names = [
    # The official model does not use the diagonal head of the model that it extends.
    (r"^predictor\.", "unused."),
    (r"^mean_net\.", "head.mean."),
    (r"^std_encoder\.layers\.", "head.std_layers."),
    (r"^projector\.", "head.project."),
    (r"^diag_net\.", "head.diagonal."),
    *_TRANSFORMER_NAMES,
]
_NP_DECODER_NAMES: Names = [
    (r"^dec\.fc\.", "head.mlp.0."),
    (r"^dec\.fc_ctx\.", "head.mlp.0.context."),
    (r"^dec\.mlp\.(\d+)\.", lambda match: f"head.mlp.{int(match[1]) + 1}."),
]
_POOLED_NAMES: Names = [
    (r"^(?:enc1|denc)\.net_(pre|post)\.", r"encoder.\1.0."),
    (r"^(?:enc2|lenc)\.net_(pre|post)\.", r"encoder.\1.1."),
    *_NP_DECODER_NAMES,
]
_ATTENTIVE_NAMES: Names = [
    (r"^(?:enc1|denc)\.net_v\.", "encoder.embed_values."),
    (r"^(?:enc1|denc)\.net_qk\.", "encoder.embed_x."),
    (r"^(?:enc1|denc)\.self_attn\.", "encoder.mix_values."),
    (r"^(?:enc1|denc)\.attn\.", "encoder.attend."),
    (r"^(?:enc2|lenc)\.net_pre\.0\.", "encoder.pre."),
    (r"^(?:enc2|lenc)\.net_pre\.2\.", "encoder.mix."),
    (r"^(?:enc2|lenc)\.net_post\.", "encoder.post."),
    (r"\.fc_(q|k|v|out)\.", r".to_\1."),
    (r"\.ln1\.", ".norm_attention."),
    (r"\.ln2\.", ".norm_out."),
    *_NP_DECODER_NAMES,
]


class _Official(NamedTuple):
    model: type[NeuralProcess]
    arguments: dict[str, str]
    names: Names


_MODELS = {
    "cmanp": _Official(models.CMANP, _BLOCKS, _CMANP_NAMES),
    "cmanpand": _Official(
        models.CMANPAND, _BLOCKS | _JOINT | _AUTOREGRESSIVE, _JOINT_NAMES + _CMANP_NAMES
    ),
    "lbanp": _Official(models.LBANP, _LATENTS, _LBANP_NAMES),
    "lbanpnd": _Official(models.LBANPND, _LATENTS | _JOINT, _JOINT_NAMES + _LBANP_NAMES),
    "eqtnp": _Official(models.EQTNP, _LAYERS, _EQTNP_NAMES),
    "tnpd": _Official(models.TNPD, _LAYERS, _TNP_NAMES),
    "tnpa": _Official(models.TNPA, _LAYERS, _TNP_NAMES),
    "tnpnd": _Official(models.TNPND, _LAYERS | _JOINT, _JOINT_NAMES + _TNP_NAMES),
    "cnp": _Official(models.CNP, _POOLED, _POOLED_NAMES),
    "canp": _Official(models.CANP, _ATTENTIVE, _ATTENTIVE_NAMES),
    "np": _Official(models.NP, _POOLED | _LATENT, _POOLED_NAMES),
    "anp": _Official(models.ANP, _ATTENTIVE | _LATENT, _ATTENTIVE_NAMES),
    "bnp": _Official(models.BNP, _POOLED, _POOLED_NAMES),
    "banp": _Official(models.BANP, _ATTENTIVE, _ATTENTIVE_NAMES),
}


def load(
    model: str,
    hparams: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | str | PathLike,
) -> NeuralProcess:
    """A model of ours with official weights, in eval mode.

    Args:
        model: official name: cmanp, cmanpand, lbanp, lbanpnd, eqtnp, tnpd, tnpa, tnpnd, cnp, canp,
            np, anp, bnp or banp.
        hparams: constructor arguments by their official names.
        state_dict: parameters by their official names, or the path of a checkpoint file; a file is
            read with `weights_only`, so that it cannot run code.

    Raises:
        InputError: on an unknown model or argument, and on parameters that are missing, left over
            or of another shape.
    """
    official = _lookup(model)
    unknown = hparams.keys() - official.arguments.keys() - _IGNORED
    if unknown:
        raise InputError(
            f"unknown hyper-parameter(s) {sorted(unknown)} of {model}; known: "
            f"{sorted(official.arguments)}"
        )
    missing = _DIMS.keys() - hparams.keys()
    if missing:
        raise InputError(f"the hyper-parameters of {model} lack {sorted(missing)}")
    arguments = {official.arguments[k]: v for k, v in hparams.items() if k not in _IGNORED}
    ours = official.model(**arguments)
    load_weights(ours, model, state_dict)
    return ours.eval()


def load_weights(
    ours: NeuralProcess, model: str, state_dict: Mapping[str, Tensor] | str | PathLike
) -> None:
    """Put official weights into a model of ours.

    Args:
        ours: the model, of the same class and sizes.
        model: its official name, as in `load`.
        state_dict: as in `load`.

    Raises:
        InputError: if `ours` is of another class, and as in `load`.
    """
    official = _lookup(model)
    if type(ours) is not official.model:
        raise InputError(f"{model} is a {official.model.__name__}, not a {type(ours).__name__}")
    if not isinstance(state_dict, Mapping):
        state_dict = _load_parameters(Path(state_dict))
    # DataParallel puts "module." before all names.
    named = {name.removeprefix("module."): weight for name, weight in state_dict.items()}
    weights = _reshape({renamed(name, official.names): w for name, w in named.items()})
    put(ours, weights, model)


def _lookup(model: str) -> _Official:
    if model not in _MODELS:
        raise InputError(f"unknown official model {model!r}; known: {', '.join(_MODELS)}")
    return _MODELS[model]


def _reshape(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what is not used, and split and join what is laid out in another way here."""
    ours = {}
    for name, weight in weights.items():
        if name.startswith("unused."):
            continue
        if ".in_proj." in name and weight.ndim:  # q, k and v lie on top of each other
            dim_model = len(weight) // 3
            ours[name.replace("in_proj", "to_q")] = weight[:dim_model]
            ours[name.replace("in_proj", "to_kv")] = weight[dim_model:]
        elif (joined := name.replace(".context.", ".")) != name and joined in weights:
            # this is the bootstrap's part of the head's first layer
            ours[joined] = torch.cat([weights[joined], weight], dim=1)
        else:
            ours.setdefault(name, weight)
    return ours


def _load_parameters(path: Path) -> Mapping[str, Tensor]:
    """The parameters in an official checkpoint: {"model": state_dict, …}, or the dict itself."""
    with path.open("rb") as file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise InputError(
                f"{path} holds more than tensors, or is no checkpoint: refused"
            ) from error
        except Exception as error:  # torch fails in many ways on a file of another kind
            raise InputError(f"{path} is damaged, or no checkpoint") from error
    parameters = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(parameters, dict) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in parameters.items()
    ):
        raise InputError(f"{path} holds no state dict")
    for name, weight in parameters.items():
        if not weight.isfinite().all():
            raise InputError(
                f"{path} holds a {name} that is not finite, so that all predictions would be NaN"
            )
    return parameters
