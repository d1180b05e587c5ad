"""Weights of Luna's and ConvLuna's official code, loaded into our models.

Sources: the authors' code of Luna as released in 2021, with its LRA models, and that of ConvLuna.
No official code of the Memory Transformer was found; its names here are those of a reference of our
own, with the layout of torch's multi-head attention.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from npbench.blocks.causal_luna import CausalLunaAttention
from npbench.blocks.convluna import SequenceFilter
from npbench.blocks.tokens import Readout
from npbench.errors import InputError
from npbench.interop.weights import Names, as_tensors, put, renamed
from npbench.models import ConvLuna, Luna, MemoryTransformer

_LUNA_ATTENTION: Names = [
    (r"\bpq_proj\.", "pack_query."),
    (r"\bp[kc]_proj\.", "pack_key."),
    (r"\bpv_proj\.", "pack_value."),
    (r"\bq_proj\.", "query."),
    (r"\b[kc]_proj\.", "key."),
    (r"\bv_proj\.", "value."),
    (r"\bout_proj\.", "out."),
]
_LUNA: Names = [
    (r"^encoder\.encoder\.", ""),
    (r"^projected_embeddings$", "memory"),
    (r"^embed_tokens\.", "embed.tokens."),
    (r"^embed_positions\.", "embed.positions."),
    (r"^emb_layer_norm\.", "embed.norm."),
    (r"^proj_emb_layer_norm\.", "norm_memory."),
    (r"^layer_norm\.", "norm_last."),
    (r"^proj_layer_norm\.", "norm_last_memory."),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".norm_attention."),
    (r"\.self_atten_proj_layer_norm\.", ".norm_memory."),
    (r"\.final_layer_norm\.", ".norm_feedforward."),
    (r"\.fc1\.", ".expand."),
    (r"\.fc2\.", ".contract."),
    (r"^sentence_projection_layer\.", "classifier.2."),
    *_LUNA_ATTENTION,
]
_CONVLUNA: Names = [
    (r"^mem$", "memory"),
    (r"^embed_layer\.pos_embeds$", "embed.positions.weight"),
    (r"^embed_layer\.cls$", "embed.cls"),
    (r"^embed_layer\.embedding\.", "embed.tokens."),
    (r"^encoder\.blocks\.", "layers."),
    (r"\.attention\.log_temp$", ".pack_temperature.log"),
    (r"\.attention\.kernel\.weight$", ".filter.taps"),
    (r"\.attention\.", ".pack_projections."),
    (r"\.attention_unpack\.", ".unpack_projections."),
    (r"projections\.q\.", "projections.query."),
    (r"projections\.k\.", "projections.key."),
    (r"projections\.v\.", "projections.value."),
    (r"projections\.lin\.", "projections.out."),
    (r"\.norm_input\.", ".norm_attention."),
    (r"\.norm_mem\.", ".norm_memory."),
    (r"\.norm_inter\.", ".norm_feedforward."),
    (r"\.ffn\.0\.", ".expand."),
    (r"\.ffn\.3\.", ".contract."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.expand\.", "hidden."),
    (r"^classifier\.output\.", "out."),
]
_MEMORY_TRANSFORMER: Names = [
    (r"^embed\.", "embed.tokens."),
    (r"^pos$", "embed.positions.weight"),
    (r"\.self_attn\.out_proj\.", ".attention.to_out."),
    (r"\.self_attn\.in_proj_", ".attention.in_proj."),
    (r"\.linear1\.", ".expand."),
    (r"\.linear2\.", ".contract."),
    (r"\.norm1\.", ".norm_attention."),
    (r"\.norm2\.", ".norm_feedforward."),
]


class _Official(NamedTuple):
    build: Callable[[Mapping[str, Any]], nn.Module]
    rename: Callable[[Mapping[str, Any], dict[str, Tensor]], dict[str, Tensor]]


def load(hparams: Mapping[str, Any], weights: Mapping[str, Tensor | np.ndarray]) -> nn.Module:
    """A model with these weights, in evaluation mode.

    `hparams["model"]` says which: a `Luna`, a `ConvLuna`, a `MemoryTransformer`, or the
    `CausalLunaAttention` alone. A Luna without a classifier gives the vectors read out. Where Luna
    has [CLS], the first token is it, as in the official data.

    Args:
        hparams: constructor arguments by their official names; "use_p" takes Luna's memory as its
            read-out, and "use_mem_repr" ConvLuna's.
        weights: parameters by their official names.

    Raises:
        InputError: on arguments that our models do not have, and on weights that are missing, left
            over or of another shape.
    """
    kind = str(hparams.get("model"))
    found = next((known for name, known in _MODELS.items() if name in kind), None)
    if found is None:
        raise InputError(f"model={kind!r} must be one of {', '.join(_MODELS)}")
    theirs = as_tensors(weights)
    try:
        model = found.build(hparams)
    except (KeyError, TypeError) as error:
        raise InputError(f"these hyper-parameters are none of {kind}: they lack {error}") from error
    put(model, found.rename(hparams, theirs), kind)
    return model.eval()


def _luna(hparams: Mapping[str, Any]) -> Luna:
    for name in ("learned_pos_embedding", "offset_positions_by_padding"):
        if not hparams.get(name, True):
            raise InputError(f"{name}=False: our Luna has the learned positions of the release")
    readout = "mean_with_padding" if hparams["sen_rep_type"] == "mp" else "first"
    return Luna(
        vocab_size=hparams["vocab_size"],
        num_classes=hparams.get("sentence_class_num"),
        max_length=hparams["max_seq_len"],
        dim_model=hparams["embedding_dim"],
        num_layers=hparams["num_encoder_layers"],
        num_memory=hparams["projection_length"],
        num_heads=hparams["num_attention_heads"],
        dim_feedforward=hparams["ffn_embedding_dim"],
        dim_classifier=hparams.get("classifier_out_dim", 1),
        num_pack_heads=hparams["num_projected_attention_heads"],
        tied=hparams["tie_kv"],
        pre_norm=hparams["normalize_before"],
        tie_layers=hparams["tie_layer_weights"],
        norm_embedding=hparams["layernorm_embedding"],
        dynamic_memory=hparams["dynamic_projection"],
        activation=hparams["activation_fn"],
        readout="memory" if hparams.get("use_p") else readout,
        padding_idx=hparams["padding_idx"],
    )


def _luna_weights(hparams: Mapping[str, Any], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = _renamed(theirs, _LUNA)
    if "embed.positions.weight" in ours:
        # Positions begin behind that of padding, a row of zeros.
        ours["embed.positions.weight"] = ours["embed.positions.weight"][
            hparams["padding_idx"] + 1 :
        ]
    if hparams["tie_layer_weights"]:
        ours = {name: w for name, w in ours.items() if not re.match(r"layers\.[1-9]", name)}
    return ours


def _convluna(hparams: Mapping[str, Any]) -> ConvLuna:
    simplified = hparams["model"].startswith("Simplified")
    expected = {"qkv_dim": hparams["hidden_dim"], "affine": True, "norm_type": "layernorm"}
    for name, value in expected.items():
        if hparams.get(name, value) != value:
            raise InputError(f"{name}={hparams[name]!r}: our ConvLuna has {value!r}")
    readout: Readout = "cls" if hparams["use_cls"] else "mean_with_padding"
    if hparams.get("use_mem_repr"):
        readout = "memory_with_cls" if hparams["use_cls"] else "memory"
    return ConvLuna(
        vocab_size=hparams["num_embeddings"],
        num_classes=hparams["classes"],
        max_length=hparams["seq_len"],
        dim_model=hparams["hidden_dim"],
        num_layers=hparams["num_blocks"],
        num_memory=hparams["mem_size"],
        num_heads=hparams["num_heads"],
        dim_feedforward=hparams["mlp_dim"],
        filter=SequenceFilter(
            hparams["kernel"],
            hparams["stride"],
            hparams["pool"],
            clear_padding=simplified,
            mask_windows=False,
        ),
        temperature_pack=hparams["temperature_pack"],
        # In the released code this option lands in another argument.
        temperature_unpack="unit",
        share=_shares(hparams),
        project_values=not simplified,
        readout=readout,
        dropout=hparams["internal_dropout_rate"],
        padding_idx=hparams["padding_idx"],
    )


def _shares(hparams: Mapping[str, Any]) -> bool:
    """Whether both attentions have the same projections: in the released code "full" says no."""
    sharing = hparams.get("shared_att", "qkvo")
    if sharing not in ("qkvo", "full"):
        raise InputError(f"shared_att={sharing!r}: our ConvLuna shares all projections or none")
    return sharing == "qkvo"


def _convluna_weights(hparams: Mapping[str, Any], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = _renamed(theirs, _CONVLUNA)
    ours["memory"] = ours["memory"][0]
    ours["embed.positions.weight"] = ours["embed.positions.weight"][0]
    if "embed.cls" in ours:
        ours["embed.cls"] = ours["embed.cls"].flatten()
    kept = {}
    for name, weight in ours.items():
        unused = name.endswith("unpack_projections.log_temp") or (
            hparams["temperature_pack"] != "learn" and name.endswith("pack_temperature.log")
        )
        filters = hparams["kernel"] > 1 and not hparams["pool"]
        unused |= name.endswith(".taps") and not filters
        unused |= ".unpack_projections." in name and _shares(hparams)
        if not unused:
            kept[name] = weight[:, 0, :, 0] if name.endswith(".taps") else weight
    return kept


def _memory_transformer(hparams: Mapping[str, Any]) -> MemoryTransformer:
    for name, value in {"activation": "relu", "norm": "post"}.items():
        if hparams.get(name, value) != value:
            raise InputError(f"{name}={hparams[name]!r}: our MemoryTransformer has {value!r}")
    return MemoryTransformer(
        vocab_size=hparams["vocab_size"],
        num_classes=hparams["num_classes"],
        max_length=hparams["max_len"],
        dim_model=hparams["d_model"],
        num_layers=hparams["num_layers"],
        num_memory=hparams["num_memory"],
        num_heads=hparams["num_heads"],
        dim_feedforward=hparams["dim_feedforward"],
        variant=hparams["variant"],
        padding_idx=hparams["padding_idx"],
    )


def _memory_transformer_weights(
    hparams: Mapping[str, Any], theirs: dict[str, Tensor]
) -> dict[str, Tensor]:
    bottleneck = hparams["variant"] == "bottleneck"
    names = [
        (r"^layers\.(\d+)\.", r"layers.\1.token_layer." if bottleneck else r"layers.\1.layer."),
        (r"^mem_layers\.(\d+)\.", r"layers.\1.memory_layer."),
    ]
    ours = {}
    for name, weight in _renamed(theirs, [*names, *_MEMORY_TRANSFORMER]).items():
        if ".in_proj." not in name:
            ours[name] = weight
            continue
        # Rows of torch's projection are queries, keys, values.
        width = len(weight) // 3
        ours[name.replace("in_proj", "to_q")] = weight[:width]
        ours[name.replace("in_proj", "to_kv")] = weight[width:]
    return ours


def _causal(hparams: Mapping[str, Any]) -> CausalLunaAttention:
    return CausalLunaAttention(hparams["embed_dim"], hparams["num_heads"], hparams["tie_kv"])


def _causal_weights(hparams: Mapping[str, Any], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    return _renamed(theirs, _LUNA_ATTENTION)


def _renamed(theirs: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The weights by our names."""
    return {renamed(name, names): weight for name, weight in theirs.items()}


# By a part of what the official code calls them.
_MODELS = {
    "LRAModel": _Official(_luna, _luna_weights),
    "LunaLRAEncoder": _Official(_luna, _luna_weights),
    "ConvLunaClassifier": _Official(_convluna, _convluna_weights),
    "MemoryTransformer": _Official(_memory_transformer, _memory_transformer_weights),
    "LunarCausalAttention": _Official(_causal, _causal_weights),
}
