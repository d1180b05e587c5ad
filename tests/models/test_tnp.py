import torch
from helpers import assert_close, random_points, random_task

from npbench.models import TNPA, TNPD
from npbench.models.points import Points
from npbench.models.stored import StoredContext

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
    """Each value, standardised by the prediction given those drawn before it, is standard normal;
    and so are the products of different targets' uncorrelated."""
    model, task = small_tnpa(), random_task(2, 6, 3, dtype=torch.float64)
    state, number = model.condition(task.xc, task.yc), 4000
    samples = model.sample(state, task.xt, number).flatten(0, 1)
    forced = model.teacher_forced(
        state.repeat(number), Points(task.xt.repeat(number, 1, 1), samples)
    )
    white = ((samples - forced.mean) / forced.stddev)[..., 0]
    count = len(white)
    assert (white.mean(0).abs() < 5 / count**0.5).all()
    assert ((white.T @ white / count - torch.eye(3)).abs() < 5 * (2 / count) ** 0.5).all()
    first = model.query(state, task.xt[:, :1])
    drawn = samples.unflatten(0, (number, 2))[:, :, :1]
    assert ((drawn.mean(0) - first.mean).abs() < 5 * first.stddev / number**0.5).all()


def test_samples_depend_on_the_values_before_them() -> None:
    model, task = small_tnpa(), random_task(1, 6, 2, dtype=torch.float64)
    state = model.condition(task.xc, task.yc)
    y = torch.tensor([-3.0, 3.0], dtype=torch.float64).reshape(2, 1, 1)
    targets = Points(task.xt.repeat(2, 1, 1), torch.cat([y, y], dim=1))
    second = model.teacher_forced(state.repeat(2), targets).mean[:, 1]
    assert (second[0] - second[1]).abs() > 1e-3
