from itertools import combinations
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SIZES, assert_close, random_task, small, small_cmanp

from npbench import EventSequences, Task, models
from npbench.blocks import CausalConvolution, FeatureMap, PointGate
from npbench.models import CMHP, CNP
from npbench.models.contracts import HasMemory, MemoryView
from npbench.profiling import attention_entropy, cosine_similarity, degradation_of, effective_rank
from npbench.sequences import TokenSequences

WITH_MEMORY = {"CMANP", "CMANPAND", "LBANP", "LBANPND", "LocatedCMANP", "LocatedCMANPAND"}


def test_the_cosine_is_the_mean_over_pairs() -> None:
    vectors = torch.randn(3, 5, 4, dtype=torch.float64)
    units = F.normalize(vectors, dim=-1)
    pairs = [(units[:, i] * units[:, j]).sum(dim=-1) for i, j in combinations(range(5), 2)]
    assert_close(cosine_similarity(vectors), torch.stack(pairs).mean(dim=0))
    assert cosine_similarity(vectors[:, :1]).isnan().all()
    assert_close(cosine_similarity(torch.ones(4, 3) * torch.arange(1.0, 5.0)[:, None]),
                 torch.tensor(1.0))  # fmt: skip


def test_the_effective_rank_counts_directions() -> None:
    """Of equal singular values it is their number; it does not depend on scale or rotation."""
    q, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    for rank in (1, 3, 7):
        assert_close(effective_rank(5 * q[:, :rank]), torch.tensor(float(rank)).double())
    uneven = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    expected = torch.distributions.Categorical(torch.tensor([0.75, 0.25]).double()).entropy().exp()
    assert_close(effective_rank(uneven @ q[:2]), expected)
    assert effective_rank(torch.zeros(3, 4)) == 1


def test_the_entropy_of_attention_is_between_one_point_and_all() -> None:
    log_weights = torch.log_softmax(torch.randn(2, 3, 5, dtype=torch.float64), dim=-1)
    expected = torch.distributions.Categorical(logits=log_weights).entropy()
    assert_close(attention_entropy(log_weights), expected)
    assert_close(attention_entropy(torch.full((4,), 0.25).log()[None]), torch.tensor([log(4)]))
    assert attention_entropy(torch.tensor([[0.0, -torch.inf]])).tolist() == [0.0]
    assert attention_entropy(torch.full((1, 2), -torch.inf)).isnan().all()


def test_all_models_with_latents_have_a_memory() -> None:
    assert {name for name in SIZES if isinstance(small(name), HasMemory)} == WITH_MEMORY
    assert isinstance(CMHP(2), HasMemory)
    assert not isinstance(CNP(1, 1), HasMemory)


def padded(task: Task) -> Task:
    """With NaN behind the points, which must not be looked at."""
    longer = task.pad(9, 5)
    padding = ~longer.context_mask[..., None]
    return Task(
        longer.xc.masked_fill(padding, torch.nan), longer.yc.masked_fill(padding, torch.nan),
        longer.xt, longer.yt, longer.context_mask, longer.target_mask,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(WITH_MEMORY))
def test_the_memory_is_what_the_model_computes_of_a_context(name: str) -> None:
    """Its weights sum to 1 over real points, and padding changes nothing."""
    model = small(name)
    task = random_task(2, 6, 5, dim_x=2, dim_y=3, dtype=torch.float64)
    layers, longer = model.memory_layers(task), model.memory_layers(padded(task))
    state = model.condition(task.xc, task.yc)
    encodings = state.encodings.unbind(1) if name.startswith("LBANP") else state.latents.unbind(0)
    assert len(layers) == len(encodings)
    for layer, other, latents in zip(layers, longer, encodings, strict=True):
        assert_close(layer.latents, latents)
        assert_close(other.packed, layer.packed)
        assert_close(other.latents, latents)
        assert_close(other.log_weights[..., :6], layer.log_weights)
        assert other.log_weights[..., 6:].isneginf().all()
        total = layer.log_weights.exp().sum(dim=-1)
        seen = total > 0  # places see no point beyond their reach
        assert_close(total[seen], torch.ones_like(total[seen]))


@pytest.mark.parametrize("kind", [None, PointGate(open=0.5), FeatureMap(6)], ids=str)
def test_the_weights_are_those_that_the_values_get(kind: object) -> None:
    model = small_cmanp(dtype=torch.float64, filter=kind)
    task = padded(random_task(2, 6, 5, dtype=torch.float64))
    for block, layer in zip(model.blocks, model.memory_layers(task), strict=True):
        embedding = model.embed_points(torch.cat([task.xc, task.yc], dim=-1)[:, :6])
        _, values = block.attend_points.keys_values_of(embedding)
        out = layer.log_weights[..., :6].exp() @ values
        assert_close(block.attend_points.attention.join(out), layer.packed)


@pytest.mark.parametrize("convolution", [None, CausalConvolution(3)], ids=["plain", "convolution"])
@pytest.mark.parametrize("recency", [False, True])
def test_the_memory_of_a_history_is_that_of_its_state(
    recency: bool, convolution: CausalConvolution | None
) -> None:
    sizes = {"dim_model": 8, "num_heads": 2, "num_latents": 3, "num_block_latents": 4}
    model = CMHP(2, recency=recency, convolution=convolution, **sizes).double().eval()
    if convolution is not None:
        torch.nn.init.normal_(model.convolve.kernel)
    times, marks = torch.rand(2, 7).double().cumsum(-1), torch.randint(2, (2, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    layers = model.memory_layers(EventSequences(times, marks, mask))
    alone = model.memory_layers(EventSequences(times[1:, :4], marks[1:, :4]))
    assert len(layers) == 2
    for block, layer, row in zip(model.blocks, layers, alone, strict=True):
        assert_close(layer.log_weights.exp().sum(dim=-1), torch.ones(2, 2, 4).double())
        for mine, theirs in zip(row.tensors(), layer.tensors(), strict=True):
            assert_close(mine[0], theirs[1, ..., : mine.shape[-1]])
        points = model.embed(times / model.time_scale - times[:, :1], marks)
        if convolution is None and not recency:
            _, values = block.attend_points.keys_values_of(points)
            out = block.attend_points.attention.join(layer.log_weights.exp() @ values)
            assert_close(out, layer.packed)


@pytest.mark.parametrize("name", ["Luna", "ConvLuna", "MemoryTransformer", "RMT", "Transformer"])
def test_classifiers_of_sequences_show_their_memory(name: str) -> None:
    sizes = {"dim_model": 8, "num_layers": 2, "num_heads": 2, "dim_feedforward": 8}
    if name != "Transformer":
        sizes["num_memory"] = 3
    model = getattr(models, name)(vocab_size=7, num_classes=2, **sizes).double().eval()
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    rows = degradation_of(model.memory_layers(TokenSequences(torch.randint(7, (2, 9)), mask=mask)))
    assert len(rows) == (0 if name == "Transformer" else 2)
    for row in rows:
        assert 1 <= row["rank_latents"] <= 3 + 1e-6
        assert 0 < row["relative_entropy"] <= 1 + 1e-6
        assert -1 <= row["cosine_packed"] <= 1


def test_the_rows_are_means_over_tasks_that_have_points() -> None:
    packed, latents = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    log_weights = torch.log_softmax(torch.randn(3, 2, 4, 6, dtype=torch.float64), dim=-1)
    log_weights[0] = -torch.inf  # no points
    log_weights[1, ..., 0], log_weights[1, ..., 1:] = 0.0, -torch.inf  # one point
    (row,) = degradation_of([MemoryView(packed, latents, log_weights)])
    assert row["layer"] == 1
    assert row["cosine_packed"] == pytest.approx(float(cosine_similarity(packed[1:]).mean()))
    assert row["rank_latents"] == pytest.approx(float(effective_rank(latents[1:]).mean()))
    (without,) = degradation_of([MemoryView(None, latents, log_weights)])
    assert np.isnan(without["rank_packed"])
    assert {k: v for k, v in without.items() if "packed" not in k} == {
        k: v for k, v in row.items() if "packed" not in k
    }
    entropy = attention_entropy(log_weights[2])
    assert row["entropy"] == pytest.approx(float(entropy.mean()) / 2)
    assert row["relative_entropy"] == pytest.approx(float(entropy.mean()) / log(6))
