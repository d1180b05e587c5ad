import pytest
import torch
from helpers import (
    assert_close,
    assert_standard_normal,
    random_points,
    random_task,
    sharpened,
)

from npbench.models import CMANPAND
from npbench.profiling import LiveTensors
from npbench.task import Task

both_covariances = pytest.mark.parametrize("covariance", ["cholesky", "lowrank"])


def small_cmanpand(
    covariance: str = "cholesky", block_size: int = 2, dim_y: int = 1, **arguments: object
) -> CMANPAND:
    sizes = {
        "dim_model": 16, "num_heads": 2, "num_layers": 2, "dim_feedforward": 16, "num_latents": 6,
        "num_block_latents": 4, "embed_depth": 2, "dim_projection": 6, "num_std_layers": 1,
        "projection_depth": 2,
    }  # fmt: skip
    model = CMANPAND(1, dim_y, **sizes, covariance=covariance, block_size=block_size, **arguments)
    return model.double().eval()


def task_of(context: int = 7, target: int = 5, dim_y: int = 1) -> Task:
    return random_task(2, context, target, dim_y=dim_y, dtype=torch.float64)


def test_the_paper_s_sizes_are_the_defaults() -> None:
    """1,460,951 in the official code, of which 8,578 are a diagonal head that nothing uses."""
    model = CMANPAND(dim_x=1, dim_y=1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_460_951 - 8_578
    assert model.block_size == 100


@both_covariances
@pytest.mark.parametrize("dim_y", [1, 2])
def test_the_log_likelihood_is_the_chain_rule_over_blocks(covariance: str, dim_y: int) -> None:
    model, task = small_cmanpand(covariance, block_size=2, dim_y=dim_y), task_of(dim_y=dim_y)
    state, total = model.condition(task.xc, task.yc), torch.zeros(2, dtype=torch.float64)
    for block in (slice(0, 2), slice(2, 4), slice(4, 5)):
        x, y = task.xt[:, block], task.yt[:, block]
        total += model.query(state, x).log_prob(y.flatten(1))
        state = model.update(state, x, y)
    assert_close(model.log_likelihood(task), total / 5)


@both_covariances
@pytest.mark.parametrize("block_size", [5, 8])
def test_one_block_is_the_joint_density(covariance: str, block_size: int) -> None:
    model, task = small_cmanpand(covariance, block_size), task_of()
    joint = model(task.xc, task.yc, task.xt).log_prob(task.yt.flatten(1))
    assert_close(model.log_likelihood(task), joint / 5)
    assert_close(model.loss(task), -joint.mean())


def test_the_loss_takes_all_targets_at_once_whatever_the_block_size() -> None:
    model, task = small_cmanpand(block_size=2), task_of()
    joint = model(task.xc, task.yc, task.xt).log_prob(task.yt.flatten(1))
    assert_close(model.loss(task), -joint.mean())


@both_covariances
def test_marginals_are_given_the_context_alone_block_by_block(covariance: str) -> None:
    model, task = small_cmanpand(covariance, block_size=3), task_of()
    state = model.condition(task.xc, task.yc)
    marginals = model.marginals(state, task.xt)
    for block in (slice(0, 3), slice(3, 5)):
        dist = model.query(state, task.xt[:, block])
        assert_close(marginals.mean[:, block, 0], dist.mean)
        assert_close(marginals.std[:, block, 0], dist.stddev)


@both_covariances
def test_samples_of_one_block_have_the_joint_s_moments(covariance: str) -> None:
    model, task = small_cmanpand(covariance, block_size=4), task_of(target=4)
    state, number = model.condition(task.xc, task.yc), 20_000
    dist = model.query(state, task.xt)
    samples = model.sample(state, task.xt, number)[..., 0]
    standard_error = dist.stddev / number**0.5
    assert ((samples.mean(0) - dist.mean).abs() < 5 * standard_error).all()
    scale = dist.stddev[:, :, None] * dist.stddev[:, None]
    centred = samples - dist.mean
    covariance_ = torch.einsum("sbm,sbn->bmn", centred, centred) / number
    error = (covariance_ - dist.covariance_matrix).abs() / scale
    assert (error < 5 * (2 / number) ** 0.5).all()
    assert (dist.covariance_matrix / scale).tril(-1).abs().max() > 0.05, "there is something to see"


@both_covariances
def test_each_block_is_drawn_given_the_blocks_before_it(covariance: str) -> None:
    """Whitened by the prediction that has absorbed the sample's own blocks before, every block is
    standard normal, and independent of the others."""
    model, task = small_cmanpand(covariance, block_size=2), task_of(target=5)
    model = sharpened(model, model.head.mean[-1].weight, 5.0)
    number = 3000
    state, xt = model.condition(task.xc, task.yc).repeat(number), task.xt.repeat(number, 1, 1)
    samples = model.sample(model.condition(task.xc, task.yc), task.xt, number).flatten(0, 1)
    white, slopes = [], []
    with torch.no_grad():
        for block in (slice(0, 2), slice(2, 4), slice(4, 5)):
            x, y = xt[:, block], samples[:, block]
            dist = model.query(state, x)
            away = y - dist.mean[..., None]
            white.append(torch.linalg.solve_triangular(dist.scale_tril, away, upper=False)[..., 0])
            means = dist.mean.unflatten(0, (number, 2))
            slopes.append((means.std(0) / dist.stddev.mean(0)).max())
            state = model.update(state, x, y)
    assert_standard_normal(torch.cat(white, dim=1))
    assert min(slopes[1:]) > 0.3, "the blocks before make a difference"


@pytest.mark.parametrize("verb", ["log_likelihood", "sample", "marginals"])
def test_memory_grows_with_neither_context_nor_targets(verb: str) -> None:
    model = small_cmanpand(block_size=50, context_chunk_size=200).float()

    def peak(context: int, target: int) -> int:
        task = Task(*random_points(1, context), *random_points(1, target))
        with torch.no_grad():
            state = model.condition(task.xc[:, :500], task.yc[:, :500])
            with LiveTensors() as live:
                if verb == "log_likelihood":
                    model.log_likelihood(task)
                elif verb == "sample":
                    model.sample(state, task.xt, 2)
                else:
                    model.marginals(state, task.xt)
        numbers = {"log_likelihood": 0, "sample": 2, "marginals": 3}[verb]  # held for each target
        return live.peak_bytes - 4 * numbers * target

    assert peak(8000, 200) == peak(1000, 200)
    assert peak(200, 2000) == peak(200, 200)


def test_the_state_is_cmanp_s() -> None:
    model = small_cmanpand()
    x, y = random_points(2, 30, dtype=torch.float64)
    states = [model.condition(x[:, part], y[:, part]) for part in (slice(0, 9), slice(9, 30))]
    merged, whole = model.merge(*states), model.condition(x, y)
    for mine, theirs in zip(merged.tensors(), whole.tensors(), strict=True):
        assert_close(mine, theirs)


def test_gradients_flow_through_the_autoregressive_likelihood() -> None:
    model, task = small_cmanpand("lowrank"), task_of()
    model.log_likelihood(task).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.usefixtures("as_a_user")
def test_a_block_holds_one_target_at_least() -> None:
    with pytest.raises(ValueError, match="block_size=0 must be 1 or more"):
        small_cmanpand(block_size=0)
