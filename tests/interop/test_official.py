import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_prediction, random_points
from torch import Tensor

from npbench.interop import official
from npbench.models import CMANP, NeuralProcess


@pytest.fixture
def hparams(shared: Path) -> dict[str, Any]:
    with np.load(shared / "golden" / "cmanp.npz") as file:
        return json.loads(str(file["hparams"]))


@pytest.fixture
def weights(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "cmanp.npz") as file:
        return {
            name.removeprefix("w/"): torch.from_numpy(file[name])
            for name in file.files
            if name.startswith("w/")
        }


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


def test_every_official_weight_arrives(hparams: dict[str, Any], weights: dict[str, Tensor]) -> None:
    marked = {name: torch.full_like(w, float(i)) for i, (name, w) in enumerate(weights.items())}
    model = official.load("cmanp", hparams, marked)
    marks = [parameter.unique().tolist() for parameter in model.parameters()]
    assert sorted(marks) == [[float(i)] for i in range(len(weights))]


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
