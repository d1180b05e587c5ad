import torch
from helpers import (
    assert_close,
    assert_standard_normal,
    random_points,
    random_task,
    sharpened,
)

from npbench.models import TNPA, TNPD
from npbench.models.contracts.points import Points
from npbench.models.contracts.stored_context import StoredContext

SIZES = {"dim_model": 16, "num_heads": 2, "num_layers": 3, "dim_feedforward": 16, "embed_depth": 2}


def small_tnpa() -> TNPA:
    return TNPA(1, 1, **SIZES).double().eval()


def test_a_query_reads_the_stored_layers_not_the_points() -> None:
    model = TNPD(1, 1, **SIZES).eval()
    x, y = random_points(2, 6)
    state = model.condition(x, y)
    forgotten = Points(torch.full_like(x, torch.nan), torch.full_like(y, torch.nan))
    without = StoredContext(forgotten, state.encodings)
    assert torch.equal(model.query(without, x).mean, model.query(state, x).mean)
    embedded: list[int] = []
    model.embed.register_forward_hook(lambda _, inputs, __: embedded.append(inputs[0].shape[1]))
    model.query(state, x[:, :2])
    assert embedded == [2], "the two targets alone"


def test_a_target_sees_the_context_and_the_targets_before_it() -> None:
    model, task = small_tnpa(), random_task(2, 6, 4, dtype=torch.float64)
    state = model.condition(task.xc, task.yc)
    whole = model.teacher_forced(state, Points(task.xt, task.yt))
    for m in range(4):
        upto = Points(task.xt[:, : m + 1], task.yt[:, : m + 1].clone())
        upto.y[:, m] = 100.0  # its own value must not matter
        dist = model.teacher_forced(state, upto)
        assert_close(dist.mean[:, m], whole.mean[:, m])
        assert_close(dist.stddev[:, m], whole.stddev[:, m])


def test_the_first_target_is_predicted_as_by_query() -> None:
    model, task = small_tnpa(), random_task(2, 6, 4, dtype=torch.float64)
    state = model.condition(task.xc, task.yc)
    forced = model.teacher_forced(state, Points(task.xt, task.yt))
    queried = model.query(state, task.xt)
    assert_close(forced.mean[:, 0], queried.mean[:, 0])
    assert not torch.allclose(forced.mean[:, 1:], queried.mean[:, 1:])


def test_the_log_likelihood_is_the_chain_rule() -> None:
    model, task = small_tnpa(), random_task(2, 6, 4, dtype=torch.float64)
    state, total = model.condition(task.xc, task.yc), torch.zeros(2, dtype=torch.float64)
    for m in range(4):
        dist = model.teacher_forced(state, Points(task.xt[:, : m + 1], task.yt[:, : m + 1]))
        total += dist.log_prob(task.yt[:, : m + 1])[:, m]
    assert_close(model.log_likelihood(task), total / 4)
    assert_close(model.loss(task), -(total / 4).mean())


def test_samples_follow_the_chain_rule() -> None:
    """Standardised by the prediction given those drawn before it, every value is standard normal,
    and independent of the others."""
    model, task = small_tnpa(), random_task(2, 6, 3, dtype=torch.float64)
    model = sharpened(model, model.head.mlp[-1].weight[:1], 10.0)
    state, number = model.condition(task.xc, task.yc), 4000
    samples = model.sample(state, task.xt, number).flatten(0, 1)
    with torch.no_grad():
        targets = Points(task.xt.repeat(number, 1, 1), samples)
        forced = model.teacher_forced(state.repeat(number), targets)
    assert_standard_normal(((samples - forced.mean) / forced.stddev)[..., 0])
    means, stds = (z.unflatten(0, (number, 2))[..., 0] for z in (forced.mean, forced.stddev))
    slopes = (means.std(0) / stds.mean(0)).max(0).values
    assert (slopes[1:] > 0.2).all(), "the values before make a difference"


def test_the_first_value_is_drawn_from_query() -> None:
    model, task = small_tnpa(), random_task(2, 6, 3, dtype=torch.float64)
    state = model.condition(task.xc, task.yc)
    first = model.query(state, task.xt[:, :1])
    drawn = model.sample(state, task.xt, 4000)[:, :, :1]
    assert_standard_normal(((drawn - first.mean) / first.stddev)[..., 0, 0].detach())
