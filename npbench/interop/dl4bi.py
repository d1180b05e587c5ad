"""Weights of TNP-KR's JAX package, loaded into our model.

Source: the authors' package dl4bi, in which scan attention is BSATNP (once ScanTNPKR), and the
others are BTNP (once TNPKR).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npbench.attention.bias_spec import Bias
from npbench.errors import InputError
from npbench.interop.weights import as_tensors, put, renamed
from npbench.models import TNPKR

_MODELS = ("BSATNP", "BTNP", "ScanTNPKR", "TNPKR")
_ATTENTIONS = {
    "BiasedScanAttention": "scan",
    "DeepKernelAttention": "deep_kernel",
    "FastAttention": "performer",
}
_KERNELS = {
    "rbf_network": "rbf",
    "tisa": "centred_rbf",
    "scalar": "scalar",
    "exponential_network": "exponential",
}
# Parts of the inputs, in the order of our columns: fixed effects, space, time.
_PARTS = ("x", "s", "t")
# Where nothing says how many columns a part has.
_WIDTHS = {"x": 0, "s": 2, "t": 1}

# Regular expressions that turn their parameter names into ours, applied one after the other.
_NAMES = [
    (r"^projections\.(.*)\.attn\.attn\.qk_orf$", r"\1.attn.projection"),
    (r"^embed_obs\.embedding$", "embed_observed.weight"),
    (r"^embed_all\.", "embed."),
    (r"^LayerNorm_0\.", "norm_embedding."),
    (r"^LayerNorm_1\.", "norm."),
    (r"^head\.", "head.mlp."),
    (r"^KRBlock_(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.norm\.", r"\1.norm_attention."),
    (r"^(blocks\.\d+)\.LayerNorm_0\.", r"\1.norm_feedforward."),
    (r"\.ffn\.", ".feedforward."),
    (r"\.attn\.LayerNorm_0\.", ".attn.norm."),
    (r"\.attn\.attn\.([xst])_bias_", r".attn.bias.biases.\1."),
    (r"\.attn\.", ".attention."),
    (r"\.(kernel|scale)$", ".weight"),
]
_PROJECTIONS = [
    (r"\.proj_(q|k|v)s\.Dense_0\.", r".to_\1."),
    (r"\.proj_out\.Dense_0\.", ".to_out."),
]
_DEEP_KERNEL = [(r"\.proj_qks\.", ".features."), (r"\.proj_vs\.", ".values.")]


def load(
    hparams: Mapping[str, Any],
    weights: Mapping[str, Tensor | np.ndarray],
    columns: Mapping[str, int] | None = None,
) -> TNPKR:
    """A `TNPKR` with weights of dl4bi, in eval mode.

    The model's inputs are columns in the order fixed effects, space, time.

    Args:
        hparams: nested constructor arguments by the package's names.
        weights: parameters by their flax paths, "." for "/"; a random projection of a Performer as
            "projections.KRBlock_i.attn.attn.qk_orf".
        columns: how many columns the parts "x", "s" and "t" have. It is needed where a part is not
            in the token, as weights then do not say it: by default 2 of space and 1 of time.

    Raises:
        InputError: on arguments that our model does not have, and on weights that are missing, left
            over or of another shape.
    """
    theirs = as_tensors(weights)
    model = TNPKR(**_arguments(hparams, theirs, dict(columns or {})))
    ours = _renamed(theirs, list(_biases(hparams)), model.attention)
    put(model, ours, "TNPKR")
    return model.eval()


def _arguments(
    hparams: Mapping[str, Any], weights: Mapping[str, Tensor], columns: dict[str, int]
) -> dict[str, Any]:
    """The arguments of our model."""
    try:
        return _translated(hparams, weights, columns)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"these hyper-parameters are none of dl4bi: they lack {error}") from error


def _translated(
    hparams: Mapping[str, Any], weights: Mapping[str, Tensor], columns: dict[str, int]
) -> dict[str, Any]:
    if hparams["model"] not in _MODELS:
        raise InputError(f"model={hparams['model']!r} must be one of {', '.join(_MODELS)}")
    outer = hparams["blk"]["attn"]
    inner = outer.get("attn", outer)
    if inner["type"] not in _ATTENTIONS:
        raise InputError(f"attention {inner['type']!r} must be one of {', '.join(_ATTENTIONS)}")
    attention = _ATTENTIONS[inner["type"]]
    for part in (hparams["embed_all"], hparams["head"], hparams["blk"]["ffn"]):
        if part.get("act_fn", "gelu") != "gelu":
            raise InputError(f"act_fn={part['act_fn']!r}: our model has gelu alone")
    categorical = "Multinomial" in hparams["output_fn"]
    *embed_widths, dim_model = hparams["embed_all"]["dims"]
    *head_widths, dim_out = hparams["head"]["dims"]
    dim_y = dim_out if categorical else dim_out // 2
    places = _columns(hparams, weights["embed_all.Dense_0.kernel"].shape[0], dim_y, columns)
    arguments = {
        "dim_x": sum(map(len, places.values())),
        "dim_y": dim_y,
        "attention": attention,
        "dim_model": dim_model,
        "num_layers": hparams["num_blks"],
        "num_repeats": hparams.get("num_reps", 1),
        "dim_feedforward": hparams["blk"]["ffn"]["dims"][0],
        "embed_widths": embed_widths,
        "head_widths": head_widths,
        "dropout": hparams["blk"].get("p_dropout", 0.0),
        "min_std": hparams.get("min_std", 0.0),
        "likelihood": "categorical" if categorical else "gaussian",
    }
    if attention == "deep_kernel":
        hidden, num_features = outer["proj_qks"]["dims"]
        if outer["proj_vs"]["dims"] != [hidden, dim_model]:
            raise InputError(
                f"proj_vs has dims {outer['proj_vs']['dims']}, ours [{hidden}, {dim_model}]"
            )
        return arguments | {"dim_hidden": hidden, "num_features": num_features}
    arguments["num_heads"] = outer["num_heads"]
    arguments["dim_head"] = outer["proj_qs"]["dims"][-1] // outer["num_heads"]
    if attention == "performer":
        return arguments | {"num_features": inner["num_ortho_features"]}
    arguments["bias"] = [
        Bias(_kernel(bias["type"]), places[part], num_basis=bias.get("num_basis", 5))
        for part, bias in _biases(hparams).items()
    ]
    hidden_parts = [part for part in _PARTS if hparams.get(f"embed_{part}") == "none"]
    return arguments | {"invariant": [i for part in hidden_parts for i in places[part]]}


def _biases(hparams: Mapping[str, Any]) -> Mapping[str, Any]:
    """The biases by the parts of the inputs that they are of."""
    outer = hparams["blk"]["attn"]
    return outer.get("attn", {}).get("bias", {})


def _kernel(name: str) -> Any:
    if name not in _KERNELS:
        raise InputError(f"bias {name!r} must be one of {', '.join(_KERNELS)}")
    return _KERNELS[name]


def _columns(
    hparams: Mapping[str, Any], dim_token: int, dim_y: int, given: dict[str, int]
) -> dict[str, list[int]]:
    """Which of our inputs each part is: fixed effects, then space, then time."""
    in_token = {part: hparams.get(f"embed_{part}") != "none" for part in _PARTS}
    left = dim_token - hparams["embed_obs"]["features"] - dim_y
    left -= sum(width for part, width in given.items() if in_token[part])
    widths = dict(given)
    for part in ("t", "s", "x"):  # fixed effects are what is left
        if part not in widths:
            expected = _WIDTHS[part] if part in _biases(hparams) or part == "s" else 0
            if in_token[part]:
                expected = left if part == "x" else min(left, expected)
                left -= expected
            elif part not in _biases(hparams):
                expected = 0
            widths[part] = expected
    if left:
        raise InputError(
            f"the embedding takes {dim_token} numbers, which columns={given} do not explain: give "
            f'the numbers of columns of the parts "x", "s" and "t"'
        )
    places, start = {}, 0
    for part in _PARTS:
        places[part] = list(range(start, start + widths[part]))
        start += widths[part]
    return places


def _renamed(
    theirs: Mapping[str, Tensor], bias_parts: list[str], attention: str
) -> dict[str, Tensor]:
    """The weights by our names, and as ours are laid out."""
    names = _NAMES + (_DEEP_KERNEL if attention == "deep_kernel" else _PROJECTIONS)
    names = [*names, (r"\.Dense_(\d+)\.", r".layers.\1.")]
    names += [(rf"\.biases\.{part}\.", f".biases.{i}.") for i, part in enumerate(bias_parts)]
    ours = {}
    for name, weight in theirs.items():
        weight = weight.T if name.endswith(".kernel") else weight
        ours[renamed(name, names)] = weight
    for name in [name for name in ours if ".to_k." in name]:
        value = ours.pop(name.replace(".to_k.", ".to_v."), None)
        if value is not None:
            ours[name.replace(".to_k.", ".to_kv.")] = torch.cat([ours.pop(name), value])
    return ours
