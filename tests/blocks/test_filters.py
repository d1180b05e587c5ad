from itertools import product

import pytest
import torch
from helpers import assert_close
from helpers.blocks import CONFIG, randomised
from torch import Tensor
from torch.func import functional_call

from npbench.attention import AttentionState
from npbench.blocks import (
    Bottleneck,
    ConstantMemoryAttentionBlock,
    FeatureMap,
    PointFilter,
    PointGate,
    Temperature,
)
from npbench.blocks.filters import FilterLayer

FILTERS = [Temperature(start=2.0), PointGate(open=0.5), Bottleneck(rank=2), FeatureMap(6)]
every_filter = pytest.mark.parametrize("kind", FILTERS, ids=lambda kind: type(kind).__name__)


def layer_of(kind: PointFilter) -> FilterLayer:
    return randomised(kind.build(num_heads=3, dim_head=4))


def queries_and_points() -> tuple[Tensor, Tensor, Tensor]:
    shapes = (1, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def state_of(layer: FilterLayer, q: Tensor, k: Tensor, v: Tensor) -> AttentionState:
    q, k, v, bias = layer(q, k, v)
    return AttentionState.from_chunk(q.expand(len(k), -1, -1, -1), k, v, None, bias)


@every_filter
def test_a_filter_takes_each_point_by_itself(kind: PointFilter) -> None:
    layer, (q, k, v) = layer_of(kind), queries_and_points()
    together = layer(q, k, v)
    for point in range(7):
        window = slice(point, point + 1)
        alone = layer(q, k[..., window, :], v[..., window, :])
        assert_close(alone.q, together.q)
        assert_close(alone.k, together.k[..., window, :])
        assert_close(alone.v, together.v[..., window, :])
        if together.bias is not None:
            assert_close(alone.bias, together.bias[..., window])


@every_filter
def test_the_gradients_of_a_filter_are_right(kind: PointFilter) -> None:
    """Of queries, points and parameters, through the state that attention keeps."""
    layer = layer_of(kind)
    names, parameters = zip(*layer.named_parameters())

    def of(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        q, k, v, bias = functional_call(layer, dict(zip(names, values)), (q, k, v))
        state = AttentionState.from_chunk(q.expand(len(k), -1, -1, -1), k, v, None, bias)
        return state.lse, state.out

    q, k, v = (z[..., :3, :].clone().requires_grad_() for z in queries_and_points())
    assert torch.autograd.gradcheck(of, (q, k, v, *parameters), fast_mode=True)


def test_a_temperature_multiplies_the_scores() -> None:
    layer, (q, k, v) = layer_of(Temperature()), queries_and_points()
    scores = layer.log_temperature.exp() * (q @ k.mT) / 4**0.5
    assert_close(state_of(layer, q, k, v).lse, scores.logsumexp(dim=-1))
    assert_close(state_of(layer, q, k, v).out, scores.softmax(dim=-1) @ v)


def test_a_gate_weighs_each_point_alike_for_all_latents() -> None:
    layer, (q, k, v) = layer_of(PointGate()), queries_and_points()
    gate = (layer.weight @ torch.cat([k, v], dim=-1).mT + layer.bias).sigmoid()
    weights = gate * ((q @ k.mT) / 4**0.5).exp()
    assert_close(state_of(layer, q, k, v).out, (weights / weights.sum(-1, keepdim=True)) @ v)


def test_a_bottleneck_projects_on_few_directions_at_first() -> None:
    layer = Bottleneck(rank=2).build(num_heads=3, dim_head=4).double()
    q, k, v = queries_and_points()
    once = layer(q, k, v)
    twice = layer(q, once.k, once.v)
    assert_close(twice.k, once.k, 1e-5)
    assert_close(twice.v, once.v, 1e-5)
    assert (torch.linalg.matrix_rank(once.k) == 2).all()
    whole = Bottleneck(rank=4).build(num_heads=3, dim_head=4).double()
    assert_close(whole(q, k, v).k, k, 1e-5)


def test_a_feature_map_is_a_ratio_of_sums_over_points() -> None:
    """Whose numerator and denominator are linear in the points: the kernel's state is sums."""
    layer, (q, k, v) = layer_of(FeatureMap(6)), queries_and_points()
    features, asked = layer.features(k), layer.features(q)
    numerator = asked @ (features.mT @ v)
    denominator = asked @ features.sum(dim=-2)[..., None]
    state = state_of(layer, q, k, v)
    assert_close(state.out, numerator / denominator)
    assert_close(state.lse, denominator[..., 0].log())


@pytest.mark.parametrize("kind", [Temperature(), PointGate()], ids=["temperature", "gate"])
def test_an_untrained_filter_of_scores_changes_no_output(kind: PointFilter) -> None:
    layer, (q, k, v) = kind.build(num_heads=3, dim_head=4).double(), queries_and_points()
    expected = AttentionState.from_chunk(q.expand(2, -1, -1, -1), k, v)
    assert_close(state_of(layer, q, k, v).out, expected.out)


@every_filter
def test_a_block_with_a_filter_takes_masks_a_bias_and_no_points(kind: PointFilter) -> None:
    block = randomised(ConstantMemoryAttentionBlock(CONFIG, num_block_latents=4, filter=kind))
    points, mask = torch.randn(2, 9, 12).double(), torch.rand(2, 9) < 0.5
    bias = torch.randn(2, 3, 4, 9).double()
    for added in (None, bias):
        state = block.absorb(points, mask, added)
        for row, real in enumerate(mask):
            window = None if added is None else added[row : row + 1, ..., real]
            alone = block.absorb(points[row : row + 1, real], bias=window)
            assert_close(state.lse[row], alone.lse[0])
            assert_close(state.out[row], alone.out[0])
    assert block.absorb(points[:, :0]).lse.isneginf().all()


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Temperature(start=0.0), r"filter.start=0.0 must be a number above 0"),
        (PointGate(open=1.0), r"filter.open=1.0 must lie between 0 and 1"),
        (Bottleneck(rank=5), r"filter.rank=5 must be from 1 to 4, the width of a head"),
        (FeatureMap(num_features=0), r"filter.num_features=0 must be 1 or more"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_filters_that_make_no_sense_are_refused(kind: PointFilter, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.build(num_heads=3, dim_head=4)


def test_a_filter_is_described_by_its_class_path_and_made_of_it_again() -> None:
    for kind, other in product(FILTERS, FILTERS):
        assert (PointFilter.of(kind.described()) == other) == (kind is other)
    assert PointFilter.of(None) is None
    assert PointFilter.of(FILTERS[0]) is FILTERS[0]
    with pytest.raises(ValueError, match=r"'antigravity.geohash' is no PointFilter; known: npb"):
        PointFilter.of({"class_path": "antigravity.geohash"})
    with pytest.raises(ValueError, match=r"PointGate cannot be made .* 'width'"):
        PointFilter.of({"class_path": "npbench.blocks.PointGate", "init_args": {"width": 2}})
