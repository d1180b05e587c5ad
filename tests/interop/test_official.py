from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import GOLDEN_NAMES, assert_same_prediction, golden, random_points
from torch import Tensor

from npbench.interop import official
from npbench.models import CMANP, NeuralProcess


@pytest.fixture
def hparams() -> dict[str, Any]:
    return golden("cmanp").hparams


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return golden("cmanp").weights


def assert_same_model(actual: NeuralProcess, expected: NeuralProcess) -> None:
    x, y = random_points(2, 5)
    assert_same_prediction(actual(x, y, x), expected(x, y, x), 0.0)


def test_official_arguments_become_ours(
    hparams: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    model = official.load("cmanp", hparams, weights)
    assert isinstance(model, CMANP)
    assert not model.training
    assert model.latents.shape == (hparams["num_latents"], hparams["d_model"])
    assert len(model.blocks) == len(model.decoder.layers) == hparams["num_layers"]
    for block in model.blocks:
        assert len(block.latents) == hparams["num_latents_per_layer"]
        assert block.attend_points.attention.num_heads == hparams["nhead"]
        assert block.mix_block[0].contract.in_features == hparams["dim_feedforward"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("embedder.0.weight", "embed_points.0.weight"),
        ("query_embedder.6.bias", "decoder.embed.6.bias"),
        ("predictor.2.weight", "head.mlp.2.weight"),
        ("encoder.layers.1.layer_cross_attn.fn.to_q.weight",
         "blocks.1.attend_points.attention.to_q.weight"),
        ("encoder.layers.0.cross_attn.fn.to_kv.weight",
         "blocks.0.attend_block.attention.to_kv.weight"),
        ("decoder.layers.1.cross_attn.norm_context.weight",
         "decoder.layers.1.attend.norm_context.weight"),
        ("decoder.layers.0.cross_ff.fn.net.0.bias", "decoder.layers.0.feedforward.expand.bias"),
    ],
)  # fmt: skip
def test_official_names_become_ours(
    hparams: dict[str, Any], weights: dict[str, Tensor], theirs: str, ours: str
) -> None:
    weights[theirs] = torch.randn_like(weights[theirs])
    model = official.load("cmanp", hparams, weights)
    assert torch.equal(model.get_parameter(ours), weights[theirs])


def assert_every_weight_arrives(
    name: str, hparams: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    """Filled with its number, each weight is found in ours as often as it has elements."""
    marked = {key: torch.full_like(w, float(i)) for i, (key, w) in enumerate(weights.items())}
    model = official.load(name, hparams, marked)
    found = Counter(mark for p in model.parameters() for mark in p.flatten().tolist())
    is_joint = "mean_net.0.weight" in weights
    assert found == {
        float(i): weight.numel()
        for i, (key, weight) in enumerate(weights.items())
        # The diagonal head of the model that a joint one extends is not used.
        if not (is_joint and key.startswith("predictor."))
    }


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_official_weight_arrives(name: str) -> None:
    assert_every_weight_arrives(name, *golden(name)[:2])


@pytest.mark.parametrize("name", ["cmanpand", "lbanpnd", "tnpnd"])
def test_the_diagonal_of_a_low_rank_covariance_arrives(name: str) -> None:
    hparams, weights, *_ = golden(name)
    hparams |= {"cov_approx": "lowrank"}
    projector = {k: w for k, w in weights.items() if k.startswith("projector.")}
    last = max(projector).rpartition(".")[0]
    for key, weight in projector.items():
        rows = hparams["dim_y"] if key.startswith(last) else len(weight)
        diagonal = torch.randn(rows, *weight.shape[1:])
        weights[key.replace("projector.", "diag_net.")] = diagonal
    assert_every_weight_arrives(name, hparams, weights)
    model = official.load(name, hparams, weights)
    assert torch.equal(model.head.diagonal[0].weight, weights["diag_net.0.weight"])
    with pytest.raises(ValueError, match=r"8 left over: head\.diagonal"):
        official.load(name, hparams | {"cov_approx": "cholesky"}, weights)


def test_stacked_projections_are_split_into_queries_and_the_rest() -> None:
    hparams, weights, *_ = golden("tnpd")
    stacked = weights["encoder.layers.1.self_attn.in_proj_weight"]
    attention = official.load("tnpd", hparams, weights).layers[1].attention
    assert torch.equal(torch.cat([attention.to_q.weight, attention.to_kv.weight]), stacked)


@pytest.mark.parametrize("name", ["bnp", "banp"])
def test_the_bootstrap_s_layer_is_joined_to_the_head_s_first(name: str) -> None:
    hparams, weights, *_ = golden(name)
    joined = torch.cat([weights["dec.fc.weight"], weights["dec.fc_ctx.weight"]], dim=1)
    assert torch.equal(official.load(name, hparams, weights).head.mlp[0].weight, joined)


def test_names_may_begin_as_those_of_data_parallel(
    hparams: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    prefixed = {f"module.{name}": weight for name, weight in weights.items()}
    expected = official.load("cmanp", hparams, weights)
    assert_same_model(official.load("cmanp", hparams, prefixed), expected)


@pytest.mark.parametrize("wrap", [lambda weights: {"model": weights, "epoch": 3}, dict])
def test_a_checkpoint_file_is_read(
    hparams: dict[str, Any], weights: dict[str, Tensor], tmp_path: Path, wrap: Callable
) -> None:
    path = tmp_path / "ckpt.tar"
    torch.save(wrap(weights), path)
    expected = official.load("cmanp", hparams, weights)
    assert_same_model(official.load("cmanp", hparams, path), expected)
    assert_same_model(official.load("cmanp", hparams, str(path)), expected)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown official model 'transformer'; known: .*cmanp"):
        official.load("transformer", {}, {})


def test_an_unknown_argument_is_refused(hparams: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\['depth'\] of cmanp; known: .*'num_layers'"):
        official.load("cmanp", hparams | {"depth": 3}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"predictor.0.weight": torch.zeros(3, 3)}, "head.mlp.0.weight"),
        (lambda w: w | {"extra.weight": torch.zeros(3)}, "extra.weight"),
        (lambda w: {k: v for k, v in w.items() if k != "predictor.0.weight"}, "head.mlp.0.weight"),
    ],
    ids=["another shape", "left over", "missing"],
)
def test_weights_that_do_not_fit_are_refused(
    hparams: dict[str, Any], weights: dict[str, Tensor], change: Callable, message: str
) -> None:
    with pytest.raises(ValueError, match="no cmanp of these hyper-parameters") as error:
        official.load("cmanp", hparams, change(weights))
    assert message in str(error.value)


def test_arguments_that_do_not_fit_the_weights_are_refused(
    hparams: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match="no cmanp of these hyper-parameters"):
        official.load("cmanp", hparams | {"num_latents": 9}, weights)


def test_weights_go_into_their_own_class_only() -> None:
    hparams, weights, *_ = golden("cmanpand")
    model = official.load("cmanpand", hparams, weights)
    with pytest.raises(ValueError, match="cmanp is a CMANP, not a CMANPAND"):
        official.load_weights(model, "cmanp", weights)
    official.load_weights(model, "cmanpand", weights)


@pytest.mark.parametrize("length", [0, 10, 3000, 20000])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_refused(
    hparams: dict[str, Any], weights: dict[str, Tensor], tmp_path: Path, legacy: bool, length: int
) -> None:
    path = tmp_path / "ckpt.tar"
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"ckpt\.tar .*no checkpoint"):
        official.load("cmanp", hparams, path)


@pytest.mark.parametrize("content", [[1], {"epoch": 3}, {"model": None}, {"model": {1: 2}}])
def test_a_file_without_weights_is_refused(
    hparams: dict[str, Any], tmp_path: Path, content: Any
) -> None:
    path = tmp_path / "ckpt.tar"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"ckpt\.tar holds no state dict"):
        official.load("cmanp", hparams, path)


def test_weights_that_are_not_finite_are_refused(
    hparams: dict[str, Any], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    name, weight = next(iter(weights.items()))
    torch.save(weights | {name: torch.full_like(weight, torch.nan)}, tmp_path / "ckpt.tar")
    with pytest.raises(ValueError, match=rf"ckpt\.tar holds a {name} that is not finite"):
        official.load("cmanp", hparams, tmp_path / "ckpt.tar")


class Malicious:
    """Creates a file wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_cannot_run_code(
    hparams: dict[str, Any], weights: dict[str, Tensor], tmp_path: Path, legacy: bool
) -> None:
    checkpoint, trace = tmp_path / "ckpt.tar", tmp_path / "trace"
    torch.save(
        {"model": weights, "epoch": Malicious(trace)},
        checkpoint,
        _use_new_zipfile_serialization=not legacy,
    )
    torch.load(checkpoint, weights_only=False)
    assert trace.exists(), "the file does what it should be kept from"
    trace.unlink()

    with pytest.raises(ValueError, match="holds more than tensors"):
        official.load("cmanp", hparams, checkpoint)
    assert not trace.exists()
