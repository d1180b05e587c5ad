"""TNP-KR computes what the authors' JAX package does."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import GOLDEN
from torch import Tensor

from npbench.attention.distances import Causal, Distance, Euclidean, GreatCircle
from npbench.attention.kernels import score_bias
from npbench.attention.pair_bias import (
    CentredRBFBias,
    ExponentialBias,
    PairBias,
    RBFBias,
    ScalarBias,
    SummedBias,
)
from npbench.attention.scan import scan_attention
from npbench.interop import dl4bi
from npbench.models import TNPKR
from npbench.task import Task

# Of golden/README.md: absolute or relative, whichever is larger.
TOLERANCE = 2e-5
MODELS = ["scan", "scalar", "invariant", "categorical", "spacetime", "dka", "performer"]
every_model = pytest.mark.parametrize("name", MODELS)


class Golden(NamedTuple):
    hparams: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def task(self) -> Task:
        """Inputs are columns: fixed effects, space, time."""
        context, target = (
            torch.cat([self.inputs[name] for name in names if name in self.inputs], dim=-1)
            for names in (["x_ctx", "s_ctx", "t_ctx"], ["x_test", "s_test", "t_test"])
        )
        masks = (
            torch.arange(z.shape[1]) < self.inputs[f"valid_lens_{kind}"][:, None]
            for kind, z in (("ctx", context), ("test", target))
        )
        return Task(context, self.inputs["f_ctx"], target, self.inputs["f_test"], *masks)


def golden(name: str) -> Golden:
    with np.load(GOLDEN / f"tnpkr/tnpkr_{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    hparams = json.loads(str(arrays.pop("hparams")))
    parts = (
        {k.removeprefix(kind): torch.from_numpy(np.asarray(z)) for k, z in arrays.items()
         if k.startswith(kind)}
        for kind in ("w/", "in/", "out/")
    )  # fmt: skip
    return Golden(hparams, *parts)


def model_of(values: Golden) -> TNPKR:
    return dl4bi.load(values.hparams, values.weights)


def assert_golden(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=TOLERANCE, atol=TOLERANCE)


@every_model
def test_the_attention_of_a_block_computes_what_theirs_does(name: str) -> None:
    values = golden(name)
    task, outputs, tokens = values.task, values.outputs, values.inputs
    attention = model_of(values).blocks[0].attention
    kept = attention.keep(tokens["blk_kv"], task.xc, task.context_mask)
    out = attention(tokens["blk_q"], task.xt, kept, task.xc, task.context_mask)
    assert_golden(out, outputs["attn"])


@every_model
def test_the_heads_of_an_attention_compute_what_theirs_do(name: str) -> None:
    values = golden(name)
    task, outputs = values.task, values.outputs
    if "head_out" not in outputs:
        assert name == "dka"  # which has one head
        return
    attention = model_of(values).blocks[0].attention
    q, k, v = (values.inputs[f"head_{z}"] for z in "qkv")
    if name == "performer":
        features = attention.features(k).masked_fill(~task.context_mask[:, None, :, None], 0.0)
        kept = features.mT @ torch.nn.functional.pad(v, (0, 1), value=1.0)
        assert_golden(attention.heads(q, kept), outputs["head_out"])
        return
    for chunk in (None, (1, 1), (4, 5)):
        out = scan_attention(q, k, v, attention.bias, task.xt, task.xc, task.context_mask, chunk)
        assert_golden(out, outputs["head_out"])
    parts = [bias(task.xt, task.xc) for bias in attention.bias.biases]
    expected = [outputs[f"bias_{part}"] for part in "st" if f"bias_{part}" in outputs]
    assert len(parts) == len(expected) > 0
    for part, theirs in zip(parts, expected):
        assert_golden(part, theirs)


@every_model
def test_a_block_computes_what_theirs_does(name: str) -> None:
    values = golden(name)
    task, outputs, tokens = values.task, values.outputs, values.inputs
    block = model_of(values).blocks[0]
    kept = block.keep(tokens["blk_kv"], task.xc, task.context_mask)
    for what, x in (("blk_q", task.xt), ("blk_kv", task.xc)):
        assert_golden(block(tokens[what], x, kept, task.xc, task.context_mask), outputs[what])


@every_model
def test_tokens_are_those_of_theirs(name: str) -> None:
    values = golden(name)
    model, task = model_of(values), values.task
    assert_golden(model.tokens(task.xc, task.yc), values.outputs["tok_ctx"])
    assert_golden(model.tokens(task.xt), values.outputs["tok_test"])


@every_model
@pytest.mark.parametrize("masked", [True, False])
def test_a_model_predicts_what_theirs_does(name: str, masked: bool) -> None:
    values = golden(name)
    model, task = model_of(values), values.task
    dist = model(task.xc, task.yc, task.xt, task.context_mask if masked else None)
    suffix = "" if masked else "_nomask"
    if name == "categorical":
        logits = values.outputs[f"logits{suffix}"]
        assert_golden(dist.logits, logits.log_softmax(dim=-1))
        if masked:
            assert_golden(dist.mean, values.outputs["p"])
        return
    assert_golden(dist.mean, values.outputs[f"mean{suffix}"])
    assert_golden(dist.stddev, values.outputs[f"std{suffix}"])
    if masked and "full_mean" in values.outputs:
        assert_golden(dist.mean, values.outputs["full_mean"])
        assert_golden(dist.stddev, values.outputs["full_std"])


@every_model
def test_likelihood_and_gradients_are_those_of_theirs(name: str) -> None:
    values = golden(name)
    model, task, outputs = model_of(values), values.task, values.outputs
    dist = model(task.xc, task.yc, task.xt, task.context_mask)
    log_prob = dist.log_prob(task.yt)
    assert_golden(log_prob, outputs["ll"].reshape(log_prob.shape))
    all_targets = Task(task.xc, task.yc, task.xt, task.yt, task.context_mask)
    loss = model.loss(all_targets)
    assert_golden(loss, outputs["nll"])
    assert_golden(-loss, outputs["tar_ll"])
    masked = (log_prob * task.target_mask).sum() / task.target_mask.sum()
    assert_golden(-masked, outputs["nll_masked"])
    loss.backward()
    norms = [p.grad.norm() for p in model.parameters()]
    assert_golden(torch.stack(norms).norm(), outputs["grad_norm"])
    gradients = {key: z for key, z in outputs.items() if key.startswith("grad/")}
    assert bool(gradients) == (name not in ("dka", "performer"))
    for key, expected in gradients.items():
        part, _, letter = key.rpartition(".")[2].split("_")
        bias = model.blocks[0].attention.bias.biases["st".index(part)]
        assert_golden(getattr(bias, letter).grad, expected)


def with_weights(bias: PairBias, **weights: Tensor) -> PairBias:
    for name, weight in weights.items():
        getattr(bias, name).data.copy_(weight)
    return bias


def test_distances_and_biases_are_those_of_theirs() -> None:
    """Theirs counts causal distances below 0: a scalar bias of ours has the other sign."""
    values = golden("bias")
    weights, outputs = values.weights, values.outputs
    s, t, earth = (
        (values.inputs[f"q_{name}"], values.inputs[f"k_{name}"]) for name in ("s", "t", "lonlat")
    )

    def between(distance: Distance, a: Tensor, b: Tensor) -> Tensor:
        return distance.between(a[:, :, None].unbind(-1), b[:, None].unbind(-1))

    assert_golden(between(Euclidean(), *s), outputs["dist"])
    assert_golden(between(GreatCircle(), *earth), outputs["great_circle"])
    since = outputs["delta_time_causal"]
    assert_golden(between(Causal(), *t), torch.where(since.isinf(), since, -since))

    a, b, c, b_geo = (weights[name] for name in ("a", "b", "c", "b_geo"))
    scalar = with_weights(ScalarBias(3, Euclidean(), [0, 1]), a=weights["scalar_a"])
    causal = with_weights(ScalarBias(3, Causal(), [0]), a=-weights["scalar_a"])
    rbf = with_weights(RBFBias(3, Euclidean(), [0, 1]), a=a, b=b)
    centred = with_weights(CentredRBFBias(3, Euclidean(), [0, 1]), a=a, b=b, c=c)
    geodesic = with_weights(ExponentialBias(3, GreatCircle(), [0, 1]), a=a, b=b_geo)
    geodesic_rbf = with_weights(RBFBias(3, GreatCircle(), [0, 1]), a=a, b=b_geo / 60)
    assert_golden(scalar(*s), outputs["scalar"])
    assert_golden(rbf(*s), outputs["rbf_network"])
    assert_golden(centred(*s), outputs["tisa"])
    assert_golden(geodesic(*earth), outputs["geodesic_exponential"])
    assert_golden(geodesic_rbf(*earth), outputs["geodesic_rbf"])
    assert_golden(causal(*t), outputs["scalar_causal"])

    q, k, v = (values.inputs[f"head_{z}"] for z in "qkv")
    mask = torch.arange(9) < values.inputs["valid_lens"][:, None]
    causal.columns = (2,)
    x, points = (torch.cat(pair, dim=-1) for pair in zip(s, t))
    for chunk in ((2, 4), (100, 100)):
        out = scan_attention(q, k, v, SummedBias([rbf, causal]), x, points, mask, chunk)
        theirs = outputs["attn_causal"]
        seen = torch.isfinite(score_bias(mask, causal(x, points), q.dtype)).any(dim=-1)
        assert seen.any()
        assert_golden(out[seen], theirs[seen])
        assert (out[~seen] == 0).all()
        out = scan_attention(q, k, v, SummedBias([geodesic]), *earth, mask, chunk)
        assert_golden(out, outputs["attn_geodesic"])


def test_the_golden_values_are_those_of_the_shared_folder(shared: Path) -> None:
    originals = {path.name: path for path in (shared / "golden/tnpkr").glob("*.npz")}
    assert sorted(originals) == sorted(f"tnpkr_{name}.npz" for name in [*MODELS, "bias"])
    for name, path in originals.items():
        assert (GOLDEN / "tnpkr" / name).read_bytes() == path.read_bytes()


def test_weights_may_be_numpy_arrays_and_named_as_in_the_files() -> None:
    values = golden("scan")
    weights = {f"w/{name}": weight.numpy() for name, weight in values.weights.items()}
    model = dl4bi.load(values.hparams, weights)
    assert not model.training
    assert model.token_columns == [0, 1]


@pytest.mark.parametrize(("given", "expected"), [(None, 2), ({"s": 3}, 3), ({"s": 1}, 1)])
def test_space_that_is_not_in_the_token_has_the_columns_that_are_said(
    given: dict | None, expected: int
) -> None:
    values = golden("invariant")
    model = dl4bi.load(values.hparams, values.weights, given)
    assert model.dim_x == expected
    assert model.token_columns == []


@pytest.mark.usefixtures("as_a_user")
def test_what_does_not_fit_is_said() -> None:
    values = golden("scan")
    weights = dict(values.weights)
    with pytest.raises(ValueError, match="model='GPT' must be one of BSATNP"):
        dl4bi.load(values.hparams | {"model": "GPT"}, weights)
    with pytest.raises(ValueError, match="do not explain"):
        dl4bi.load(values.hparams, weights, {"s": 1, "x": 0, "t": 0})
    with pytest.raises(ValueError, match="they lack 'embed_all'"):
        dl4bi.load({k: v for k, v in values.hparams.items() if k != "embed_all"}, weights)
    with pytest.raises(ValueError, match="1 left over: extra"):
        dl4bi.load(values.hparams, weights | {"extra": torch.ones(1)})
    del weights["KRBlock_1.ffn.Dense_0.bias"]
    with pytest.raises(ValueError, match=r"1 missing: blocks.1.feedforward.layers.0.bias"):
        dl4bi.load(values.hparams, weights)
