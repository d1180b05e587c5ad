"""TNP-KR: invariant where it says so, exact in what it keeps, clear in what it refuses."""

import json

import pytest
import torch
from helpers import assert_close, assert_same_prediction, random_points, small
from torch import Tensor

from npbench.attention import attend
from npbench.attention.bias_spec import Bias
from npbench.attention.performer import PerformerAttention
from npbench.models import TNPKR
from npbench.task import Task

ATTENTIONS = ["scan", "deep_kernel", "performer"]
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)


def model_with(dim_x: int = 2, dim_y: int = 1, **arguments: object) -> TNPKR:
    sizes = {
        "dim_model": 16, "num_heads": 2, "dim_head": 8, "num_layers": 2, "dim_feedforward": 16,
        "embed_widths": (16,), "num_features": 12, "dim_hidden": 10,
    }  # fmt: skip
    return TNPKR(dim_x, dim_y, **(sizes | arguments)).double().eval()


def points(batch: int, number: int, dim_x: int = 2, dim_y: int = 1) -> tuple[Tensor, Tensor]:
    return random_points(batch, number, dim_x, dim_y, torch.float64)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"dim_x": 1, "dim_y": 1}, 475_770),
        ({"dim_x": 2, "dim_y": 1, "invariant": False}, 475_770 + 256 * 2),
        (
            {"dim_x": 2, "dim_y": 3, "bias": Bias("centred_rbf"), "likelihood": "categorical"},
            476_467,
        ),
        ({"dim_x": 1, "dim_y": 1, "attention": "deep_kernel"}, 526_474),
        ({"dim_x": 2, "dim_y": 1, "attention": "deep_kernel"}, 527_498),
        ({"dim_x": 1, "dim_y": 1, "attention": "performer"}, 510_346),
        ({"dim_x": 2, "dim_y": 1, "attention": "performer"}, 510_858),
    ],
)
def test_the_default_has_the_parameters_of_the_paper(arguments: dict, expected: int) -> None:
    assert sum(p.numel() for p in TNPKR(**arguments).parameters()) == expected


def test_moving_all_points_changes_nothing_in_float32() -> None:
    model = TNPKR(2, 1).eval()
    x, y = torch.rand(2, 30, 2) * 4 - 2, torch.randn(2, 30, 1)
    shift = torch.tensor([8.0, -4.0])
    assert_same_prediction(model(x + shift, y, x + shift), model(x, y, x), 1e-5)


def test_a_fixed_effect_is_seen_and_space_and_time_move() -> None:
    biases = [Bias(columns=(1, 2)), Bias("exponential", (3,), num_basis=2)]
    model = model_with(4, bias=biases)
    assert model.token_columns == [0]
    (x, y), (xt, _) = points(2, 9, 4), points(2, 5, 4)
    expected = model(x, y, xt)
    for column, moves in ((0, False), (1, True), (2, True), (3, True)):
        shift = torch.zeros(4).double()
        shift[column] = 0.5
        moved = model(x + shift, y, xt + shift)
        assert torch.allclose(moved.mean, expected.mean, rtol=1e-9) == moves


def test_part_of_the_inputs_may_be_left_out_of_the_tokens() -> None:
    model = model_with(3, bias=[Bias(columns=(0, 1)), Bias(columns=(2,))], invariant=[2])
    assert model.token_columns == [0, 1]
    assert model_with(3, invariant=False).token_columns == [0, 1, 2]
    assert model_with(3, invariant=True).token_columns == []


@every_attention
def test_many_points_and_targets_give_what_a_few_at_a_time_do(attention: str) -> None:
    """Without gradients targets come in pieces, and scan attention in chunks always."""
    model = model_with(attention=attention, num_layers=1)
    (x, y), (xt, _) = points(1, 1100), points(1, 16_400)
    state = model.condition(x, y)
    with torch.no_grad():
        whole = model.query(state, xt).mean
    assert_close(model.query(state, xt[:, -20:]).mean, whole[:, -20:], 1e-10)


@every_attention
def test_forgetting_leaves_the_state_of_the_other_points(attention: str) -> None:
    model = model_with(attention=attention)
    (x, y), (xt, _) = points(2, 9), points(2, 4)
    gone = torch.tensor([[2, 5, 7], [0, 1, 8]])[..., None]
    mask = torch.tensor([[True, True, True], [True, False, True]])
    kept = torch.ones(2, 9, dtype=torch.bool)
    kept[0, [2, 5, 7]] = False
    kept[1, [0, 8]] = False
    left = model.forget(
        model.condition(x, y), x.gather(1, gone.expand(-1, -1, 2)), y.gather(1, gone), mask
    )
    assert_same_prediction(model.query(left, xt), model(x, y, xt, kept), 1e-10)


def test_a_point_that_is_there_twice_is_forgotten_once() -> None:
    model, (x, y) = model_with(), points(1, 3)
    twice = [torch.cat([z, z[:, :1]], dim=1) for z in (x, y)]
    state = model.condition(*twice)
    left = model.forget(state, x[:, :1], y[:, :1])
    assert_same_prediction(model.query(left, x), model(x, y, x), 1e-10)
    left = model.forget(left, x[:, :1], y[:, :1])
    with pytest.raises(ValueError, match="task 0 does not hold point 0 of those to forget"):
        model.forget(left, x[:, :1], y[:, :1])


@pytest.mark.parametrize("attention", ATTENTIONS[1:])
def test_a_state_without_points_answers_as_before_and_is_of_constant_size(attention: str) -> None:
    model = model_with(attention=attention)
    (x, y), (xt, _) = points(2, 50), points(2, 4)
    state = model.condition(x, y)
    small_state = model.without_points(state)
    assert_same_prediction(model.query(small_state, xt), model.query(state, xt), 1e-12)
    assert small_state.nbytes == model.without_points(model.condition(x[:, :5], y[:, :5])).nbytes
    with pytest.raises(ValueError, match="this state is without its points"):
        model.update(small_state, x, y)
    with pytest.raises(ValueError, match="this state is without its points"):
        model.forget(small_state, x, y)


def test_scan_attention_needs_its_points() -> None:
    model, (x, y) = model_with(), points(1, 3)
    with pytest.raises(ValueError, match='attention="scan" needs all points'):
        model.without_points(model.condition(x, y))


def test_the_kept_matrices_of_the_paper_have_8192_numbers_a_block() -> None:
    model = TNPKR(1, 1, attention="deep_kernel")
    state = model.without_points(model.condition(*random_points(1, 20)))
    assert state.kept.numel() == 6 * 8192


def test_blocks_may_be_passed_more_than_once() -> None:
    twice = model_with(num_layers=2, num_repeats=2)
    copied = model_with(num_layers=4)
    weights = twice.state_dict()
    for name in list(weights):
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            weights |= {
                f"blocks.{2 * int(number) + i}.{rest}": twice.state_dict()[name] for i in (0, 1)
            }
    copied.load_state_dict(weights)
    (x, y), (xt, _) = points(2, 9), points(2, 4)
    assert_same_prediction(copied(x, y, xt), twice(x, y, xt), 1e-12)


def test_projections_start_orthogonal_and_basis_functions_apart() -> None:
    model = TNPKR(1, 1)
    weight = model.blocks[0].attention.to_q.weight
    assert_close(weight.T @ weight, torch.eye(64), 1e-5)
    rates = model.blocks[0].attention.bias.biases[0].b
    assert_close(rates, torch.tensor([1 / 16, 1 / 4, 1.0, 4.0, 16.0]).expand(4, -1), 1e-6)
    assert (model.blocks[0].attention.to_q.bias == 0).all()


def test_later_points_do_not_change_what_is_said_of_earlier_times() -> None:
    model = model_with(bias=[Bias(columns=(0,)), Bias("scalar", (1,), "causal")])
    (x, y), (xt, _) = points(2, 8), points(2, 4)
    x[:, :5, 1], x[:, 5:, 1], xt[..., 1] = 0.0, 2.0, 1.0
    assert_same_prediction(model(x, y, xt), model(x[:, :5], y[:, :5], xt), 1e-10)
    late = xt + torch.tensor([0.0, 5.0])
    assert not torch.allclose(model(x, y, late).mean, model(x[:, :5], y[:, :5], late).mean)


def test_longitudes_wrap_around() -> None:
    model = model_with(bias=Bias("exponential", (0, 1), "great_circle", length=60.0))
    x = torch.rand(2, 8, 2).double() * torch.tensor([360.0, 180.0]) - torch.tensor([180.0, 90.0])
    y = torch.randn(2, 8, 1).double()
    around = x + torch.tensor([360.0, 0.0])
    assert_same_prediction(model(around, y, x), model(x, y, x), 1e-9)


def test_many_random_features_come_near_to_softmax_attention() -> None:
    """Nearer by far than equal weights of all points are."""
    attention = PerformerAttention(32, num_heads=2, dim_head=16, num_features=20_000)
    h, context = torch.randn(1, 20, 32) / 2, torch.randn(1, 7, 32) / 2
    q, (k, v) = attention.queries(h), attention.keys_values(context)
    out = attention.heads(q, attention.keep(context))
    softmax = attend(q, k, v)
    assert (out - softmax).norm() < 0.2 * (v.mean(dim=-2, keepdim=True) - softmax).norm()


def test_the_random_features_are_orthogonal_and_saved_with_the_model() -> None:
    model = TNPKR(1, 1, attention="performer")
    projection = model.state_dict()["blocks.0.attention.projection"]
    for group in projection.split(32):
        assert_close(group @ group.T, 32 * torch.eye(32), 1e-4)
    assert not torch.equal(projection, model.state_dict()["blocks.1.attention.projection"])
    other = TNPKR(1, 1, attention="performer")
    other.load_state_dict(model.state_dict())
    x, y = random_points(1, 6)
    assert_same_prediction(other(x, y, x), model(x, y, x), 0.0)


@every_attention
def test_classes_have_probabilities(attention: str) -> None:
    model = model_with(dim_y=3, attention=attention, likelihood="categorical")
    x, xt = points(2, 9)[0], points(2, 4)[0]
    classes = torch.randint(3, (2, 13))
    y, yt = torch.eye(3).double()[classes].split([9, 4], dim=1)
    task = Task(x, y, xt, yt)
    evaluation = model.evaluate(task)
    assert_close(evaluation.mean.sum(dim=-1), torch.ones(2, 4).double(), 1e-12)
    expected = (evaluation.mean * yt).sum(dim=-1).log().mean(dim=-1)
    assert_close(evaluation.log_likelihood, expected, 1e-12)
    samples = model.sample(model.condition(x, y), xt, num_samples=5)
    assert samples.shape == (5, 2, 4, 3)
    assert_close(samples.sum(dim=-1), torch.ones(5, 2, 4).double(), 0.0)
    model.train().loss(task).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_arguments_pass_through_json() -> None:
    model = model_with(bias=[Bias(columns=(0,)), Bias("scalar", (1,), length=2.0)])
    again = TNPKR(**json.loads(json.dumps(model.hparams)))
    assert json.dumps(again.hparams) == json.dumps(model.hparams)
    assert again.state_dict().keys() == model.state_dict().keys()
    single = TNPKR(**json.loads(json.dumps(model_with(bias=Bias("scalar")).hparams)))
    assert single.state_dict().keys() == model_with(bias=Bias("scalar")).state_dict().keys()


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "linear"}, "attention='linear' must be one of scan, deep_kernel, performer"),
        (
            {"bias": {"kernel": "matern"}},
            "bias.kernel='matern' must be one of rbf, centred_rbf, scalar",
        ),
        (
            {"bias": {"distance": "taxi"}},
            "bias.distance='taxi' must be one of euclidean, periodic",
        ),
        (
            {"bias": {"columns": (0, 2)}},
            r"bias.columns=\[0, 2\] names column 2, which does not exist: dim_x=2 .* 0 to 1",
        ),
        ({"bias": {"columns": (-1,)}}, "names column -1, which does not exist"),
        ({"bias": {"columns": (0, 0)}}, "must name one input or more, each of them once"),
        ({"bias": {"columns": ()}}, "must name one input or more"),
        ({"bias": {"num_basis": 0}}, "num_basis=0 must be 1 or more"),
        ({"bias": {"length": 0.0}}, "bias.length=0.0 and bias.spread=4.0 must be positive"),
        (
            {"bias": {"distance": "periodic", "period": -1.0}},
            "period=-1.0 must be a positive number",
        ),
        (
            {"bias": {"columns": (0,), "distance": "great_circle"}},
            r"the great_circle distance is one of 2 column\(s\), not of bias.columns=\[0\]",
        ),
        ({"bias": {"distance": "causal"}}, r"the causal distance is one of 1 column\(s\)"),
        (
            {"attention": "performer", "bias": {"kernel": "rbf"}},
            "attention='performer' takes no bias",
        ),
        ({"attention": "deep_kernel", "invariant": True}, "is not invariant to translation"),
        (
            {"bias": {"columns": (0,)}, "invariant": [1]},
            r"invariant=\[1\] leaves out input\(s\) \[1\], which no bias has",
        ),
        ({"likelihood": "poisson"}, 'likelihood=\'poisson\' must be "gaussian" or "categorical"'),
        ({"likelihood": "categorical"}, "dim_y=1 classes are none to choose from"),
        ({"num_layers": 0}, "num_layers=0 and num_repeats=1 must be 1 or more"),
        ({"embed_widths": (0,)}, "must be two or more, all above 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TNPKR(2, 1, **arguments)


@pytest.mark.usefixtures("as_a_user")
def test_a_latitude_of_120_is_refused() -> None:
    model = model_with(bias=Bias("exponential", (0, 1), "great_circle"))
    x, y = points(2, 4)
    state = model.condition(x, y)
    x[1, 2, 1] = 120.0
    for call in (lambda: model.condition(x, y), lambda: model.query(state, x)):
        with pytest.raises(ValueError, match="a latitude of 120: latitudes are from -90 to 90"):
            call()


def test_scan_attention_may_have_no_bias() -> None:
    model = model_with(bias=[], invariant=False)
    (x, y), (xt, _) = points(2, 9), points(2, 4)
    mask = torch.rand(2, 9) < 0.5
    mask[0, 0] = mask[1, 1] = True
    row = model(x[:1, mask[0]], y[:1, mask[0]], xt[:1])
    assert_close(model(x, y, xt, mask).mean[:1], row.mean, 1e-10)


def test_the_low_rank_joint_model_is_one_of_all_targets() -> None:
    model = small("TNPKRND", dim_x=2, dim_y=1)
    (x, y), (xt, yt) = points(2, 9), points(2, 4)
    dist = model.query(model.condition(x, y), xt)
    covariance = dist.covariance_matrix
    assert (covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))).abs().max() > 0
    assert_close(-model.loss(Task(x, y, xt, yt)), dist.log_prob(yt.flatten(1)).mean(), 1e-10)
