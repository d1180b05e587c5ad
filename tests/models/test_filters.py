"""CMANP, CMANPAND and CMHP keep all that they promise with a filter."""

import json
from pathlib import Path
from random import Random

import lightning as L
import pytest
import torch
import yaml
from helpers import (
    assert_close,
    assert_same_prediction,
    merge_in_a_random_tree,
    random_points,
    random_slices,
    random_task,
    small_cmanp,
)

from npbench.attention import AttentionState
from npbench.blocks import Bottleneck, FeatureMap, PointFilter, PointGate, Temperature
from npbench.commands.sections import instantiate
from npbench.models import CMANP, CMANPAND, CMHP, CMANPState
from npbench.models.contracts.points import Points
from npbench.models.streaming import PointReader
from npbench.training import MetaRegression

FILTERS = [Temperature(start=2.0), PointGate(open=0.5), Bottleneck(rank=2), FeatureMap(6)]
every_filter = pytest.mark.parametrize("kind", FILTERS, ids=lambda kind: type(kind).__name__)
CONFIG = Path(__file__).parents[2] / "configs/gp/cmanp-small.yaml"


def filtered(kind: PointFilter, dtype: torch.dtype = torch.float64, **arguments: object) -> CMANP:
    """A model whose filters are far from where they start."""
    torch.manual_seed(1)
    model = small_cmanp(dtype=dtype, filter=kind, **arguments)
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.filter.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model


@every_filter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_chunked_shuffled_merged_and_updated_equal_all_at_once(
    kind: PointFilter, dtype: torch.dtype
) -> None:
    """To 1e-5 in float32, and 1e-10 in float64, with padding."""
    model, random = filtered(kind, dtype), Random(0)
    x, y = random_points(2, 23, dtype=dtype)
    xt, _ = random_points(2, 5, dtype=dtype)
    mask = torch.rand(2, 23) < 0.8
    whole = model(x, y, xt, mask)
    assert_same_prediction(model.query(model.condition(x, y, mask, chunk_size=4), xt), whole)
    order = torch.randperm(23)
    assert_same_prediction(model(x[:, order], y[:, order], xt, mask[:, order]), whole)
    windows = [*random_slices(23, random), slice(0, 0)]
    shards = [model.condition(x[:, w], y[:, w], mask[:, w]) for w in windows]
    merged = merge_in_a_random_tree(shards, CMANPState.merge, random)
    assert_same_prediction(model.query(merged, xt), whole)
    state = model.condition(x[:, :0], y[:, :0])
    for point in range(23):
        window = slice(point, point + 1)
        state = model.update(state, x[:, window], y[:, window], mask[:, window])
    assert_same_prediction(model.query(state, xt), whole)
    rows = [model(x[[i], mask[i]][None], y[[i], mask[i]][None], xt[[i]]) for i in range(2)]
    for name in ("mean", "stddev"):
        assert_close(torch.cat([getattr(row, name) for row in rows]), getattr(whole, name))


@every_filter
def test_forgetting_gives_the_points_back(kind: PointFilter) -> None:
    model, (x, y) = filtered(kind), random_points(1, 9, dtype=torch.float64)
    left = model.forget(model.condition(x, y), x[:, :3], y[:, :3])
    assert_same_prediction(model.query(left, x), model(x[:, 3:], y[:, 3:], x), 1e-8)


@every_filter
def test_training_in_chunks_gives_the_gradients_of_all_points_at_once(kind: PointFilter) -> None:
    task, results = random_task(2, 11, 5, dtype=torch.float64).pad(13, 5), []
    for chunk_size in (None, 4):
        model = filtered(kind, context_chunk_size=chunk_size).train()
        loss = model.loss(task)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    for mine, theirs in zip(*results, strict=True):
        assert_close(mine, theirs, 1e-9)


@every_filter
def test_the_gradients_of_points_in_chunks_are_right(kind: PointFilter) -> None:
    """Also where weights are frozen, and where nothing but the latents is trained."""
    model = filtered(kind)
    reader = PointReader(model.embed_points, model.blocks)
    x, y = (z.requires_grad_() for z in random_points(2, 5, dtype=torch.float64))
    mask = torch.tensor([[True] * 5, [True, False, True, False, True]])

    def fold(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state: AttentionState = reader.fold(Points(x, y, mask), 2)
        return state.lse, state.out

    assert torch.autograd.gradcheck(fold, (x, y), fast_mode=True)
    for parameter in reader.parameters():
        parameter.requires_grad_(False)
    assert torch.autograd.gradcheck(fold, (x, y), fast_mode=True)
    latents = [block.latents for block in model.blocks]
    points = Points(x.detach(), y.detach(), mask)
    found, expected = (
        torch.autograd.grad((state.lse * state.out[..., 0]).sum(), latents)
        for state in (reader.fold(points, 2), reader.absorb(points))
    )
    for mine, theirs in zip(found, expected):
        assert_close(mine, theirs)


@every_filter
def test_it_runs_under_autocast(kind: PointFilter) -> None:
    model = filtered(kind, torch.float32, context_chunk_size=3).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(random_task(2, 8, 4))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.condition(*random_points(1, 4)).attention.lse.dtype == torch.float32


def test_a_state_file_knows_the_filter_of_its_model(tmp_path: Path) -> None:
    model, (x, y) = filtered(PointGate()), random_points(1, 6, dtype=torch.float64)
    path = tmp_path / "state.safetensors"
    with torch.no_grad():
        state = model.condition(x, y)
        state.save(path, model)
        loaded = CMANPState.load(path, model)
        assert_same_prediction(model.query(loaded, x), model.query(state, x), 0.0)
    plain = small_cmanp(dtype=torch.float64)
    plain.load_state_dict(model.state_dict(), strict=False)
    others = [plain, small_cmanp(dtype=torch.float64, filter=PointGate(open=0.5))]
    others[1].load_state_dict(model.state_dict())
    with torch.no_grad():
        retrained = filtered(PointGate())
        retrained.blocks[0].filter.weight[0, 0, 0] += 1e-9
    for other in (*others, retrained):
        with pytest.raises(ValueError, match="of another model, or of other weights"):
            CMANPState.load(path, other)


def test_a_model_without_a_filter_is_what_it_was() -> None:
    """It has no other weights, and its arguments are those of before but for a None."""
    model = small_cmanp()
    assert model.hparams["filter"] is None
    assert not any("filter" in name for name in model.state_dict())


@every_filter
def test_a_checkpoint_brings_its_filter_back(kind: PointFilter, tmp_path: Path) -> None:
    model, path = filtered(kind, torch.float32), tmp_path / "model.ckpt"
    module = MetaRegression(model)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    again = MetaRegression.load_from_checkpoint(path, weights_only=True).model.eval()
    assert again.hparams == model.hparams
    assert json.loads(json.dumps(again.hparams)) == again.hparams
    x, y = random_points(1, 6)
    assert_same_prediction(again(x, y, x), model(x, y, x), 0.0)
    assert type(model)(**model.hparams).hparams == model.hparams


@every_filter
def test_a_configuration_names_a_filter_by_its_class_path(
    kind: PointFilter, tmp_path: Path
) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    config["model"]["init_args"]["model"]["init_args"]["filter"] = kind.described()
    path = tmp_path / "filtered.yaml"
    path.write_text(yaml.safe_dump(config))
    model = instantiate(path, "model", MetaRegression).model
    assert model.hparams["filter"] == kind.described()
    assert len([name for name, _ in model.named_parameters() if ".filter." in name]) >= 2


def test_the_models_that_share_the_block_take_filters_too() -> None:
    sizes = {"dim_model": 16, "num_heads": 2, "num_layers": 1, "num_latents": 4}
    for kind in FILTERS:
        joint = CMANPAND(1, 1, block_size=3, num_block_latents=4, filter=kind, **sizes)
        joint.loss(random_task(2, 7, 5)).backward()
        assert joint.hparams["filter"] == kind.described()
        events = CMHP(2, filter=kind, **sizes)
        assert events.blocks[0].filter is not None
        assert CMHP(**events.hparams).hparams == events.hparams
