"""Sites of Gaussian-process tasks that are read several times, with noise of their own."""

from dataclasses import replace

import pytest
import torch
from gpytorch.kernels import Kernel, RBFKernel, ScaleKernel
from gpytorch.priors import UniformPrior
from helpers import assert_close, assert_same_record
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from datamodules import GPDataModule
from datamodules.gaussian_process import GPDraw, realise
from datamodules.kernels import LogUniformPrior, Noise, OneOf, RandomKernel, Sum, released_rbf
from datamodules.loading import Part
from datamodules.readings import Readings
from npbench.errors import InputError


def noisy() -> Kernel:
    return Sum([released_rbf(), Noise(LogUniformPrior(0.05, 0.5))])


def draw_of(kernel: RandomKernel, number: Tensor, num_context: Tensor, num_sites: int) -> GPDraw:
    """As many tasks, with three targets each."""
    batch = len(number)
    return GPDraw(
        num_context,
        torch.full((batch,), 3),
        4 * torch.rand(batch, num_sites + 3, 1, dtype=torch.float64) - 2,
        kernel.draw(batch),
        torch.randn(batch, num_sites + 3, 1, dtype=torch.float64),
        None,
        Readings(number, torch.randn(batch, num_sites, int(number.max()), 1, dtype=torch.float64)),
    )


def covariance(kernel: RandomKernel, x: Tensor, variance: Tensor, draw: GPDraw) -> Tensor:
    """Of readings at x, several of which may be at one place, with independent noise."""
    same = (x[:, None] == x).all(dim=-1)  # here the kernel takes the noise for one and the same
    noise = same * kernel.noise_variance(1, draw.hyperparameters)
    prior = kernel.covariance(x[None].double(), draw.hyperparameters)[0]
    return prior - noise + variance * torch.eye(len(x))


def test_exact_answers_are_those_of_the_plain_process_of_all_readings() -> None:
    """As by the textbook, with each reading as a point by itself."""
    kernel = RandomKernel(noisy())
    for number, sites in ((4, 5), (1, 6), (7, 3)):
        draw = draw_of(kernel, torch.tensor([number]), torch.tensor([sites]), sites)
        task = realise(kernel, draw, 0.1, with_exact=True)
        assert task.xc.shape == task.yc.shape == (1, sites * number, 1)
        n = sites * number
        sigma = 0.1**2 + kernel.noise_variance(1, draw.hyperparameters)
        x = torch.cat([task.xc, task.xt], dim=1)[0]
        full = covariance(kernel, x, sigma, draw)
        gain = torch.linalg.solve(full[:n, :n], full[:n, n:]).T
        mean, posterior = gain @ task.yc[0].double(), full[n:, n:] - gain @ full[:n, n:]
        std, yt = posterior.diagonal().sqrt()[:, None], task.yt[0].double()
        assert_close(task.exact.mean[0].double(), mean, 1e-6)
        assert_close(task.exact.std[0].double(), std, 1e-6)
        joint = MultivariateNormal(mean.T, posterior).log_prob(yt.T).sum() / 3
        marginal = Normal(mean, std).log_prob(yt).sum() / 3
        assert_close(task.exact.log_likelihood[0].double(), marginal, 1e-6)
        assert_close(task.exact.joint_log_likelihood[0].double(), joint, 1e-6)


def test_readings_have_the_law_of_the_plain_process() -> None:
    """The covariance of 20,000 tasks of two sites, read three times, and a target."""
    kernel = ScaleKernel(RBFKernel())
    kernel.outputscale, kernel.base_kernel.lengthscale = 0.5, 0.7
    fixed, batch = RandomKernel(kernel), 20_000
    draw = draw_of(fixed, torch.full((batch,), 3), torch.full((batch,), 2), 2)
    x = torch.tensor([0.0, 0.5, 0.3, 1.0, 1.5], dtype=torch.float64)
    draw = replace(draw, x=x[:, None].expand(batch, -1, -1))
    task = realise(fixed, draw, 0.4, with_exact=False)
    y = torch.cat([task.yc, task.yt[:, :1]], dim=1)[..., 0].double()
    at = torch.cat([task.xc, task.xt[:, :1]], dim=1)[0].double()
    assert at[:, 0].tolist() == pytest.approx([0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.3])
    expected = 0.5 * (-0.5 * (at - at.T).square() / 0.49).exp() + 0.16 * torch.eye(7)
    error = 5 * 2**0.5 * expected[0, 0] / batch**0.5
    assert_close(y.T @ y / batch, expected, error)


@pytest.mark.parametrize("vary_sizes", [False, True])
def test_a_batch_of_readings_is_a_function_of_its_index(vary_sizes: bool) -> None:
    arguments = {"repeats": (1, 6), "vary_sizes": vary_sizes, "max_num_points": 12}
    data, again = (GPDataModule(kernel=noisy(), batch_size=4, **arguments) for _ in range(2))
    numbers = set()
    for index in range(20):
        task = data.training_batch(index)
        if index < 3:
            assert_same_record(again.training_batch(index), task)
        for row in range(4):
            real = slice(None) if task.context_mask is None else task.context_mask[row]
            sites, counts = task.xc[row, real].unique(dim=0, return_counts=True)
            assert 3 <= len(sites) <= 8
            assert len(counts.unique()) == 1
            numbers.add(int(counts[0]))
            values = task.yc[row, real]
            assert len(values.unique()) == len(values)  # each reading has noise of its own
    assert numbers == {1, 2, 3, 4, 5, 6}
    fixed = [GPDataModule(repeats=(1, 6), eval_batch_size=size) for size in (2, 4)]
    alone = fixed[0].evaluation_batch(range(3, 4), Part.VALIDATE)
    batch = fixed[1].evaluation_batch(range(2, 6), Part.VALIDATE)
    assert_close(batch.yc[1, : alone.yc.shape[1]], alone.yc[0])
    assert_close(batch.exact.log_likelihood[1], alone.exact.log_likelihood[0])


def test_without_repeats_nothing_changes_and_with_them_the_functions_stay() -> None:
    plain, one, many = (GPDataModule(repeats=r) for r in ((1, 1), (1, 1), (2, 3)))
    assert_same_record(one.training_batch(3), plain.training_batch(3))
    task, repeated = plain.evaluation_batch(range(1)), many.evaluation_batch(range(1))
    number = repeated.xc.shape[1] // task.xc.shape[1]
    assert number in (2, 3)
    assert torch.equal(repeated.xc, task.xc.repeat(1, number, 1))
    assert torch.equal(repeated.xt, task.xt)


def test_more_readings_of_a_site_leave_less_to_know() -> None:
    few, many = (GPDataModule(noise_std=0.5, repeats=(n, n)) for n in (2, 20))
    std = [data.evaluation_batch(range(8)).exact.std for data in (few, many)]
    assert (std[1] <= std[0] + 1e-6).all()
    assert std[1].mean() < 0.95 * std[0].mean()


def test_the_truth_of_a_figure_is_without_noise() -> None:
    kernel = Sum([
        RBFKernel(lengthscale_prior=UniformPrior(1.0, 1.1)), Noise(UniformPrior(0.4, 0.5)),
    ])  # fmt: skip
    task = GPDataModule(kernel=kernel, noise_std=0.0, repeats=(3, 3)).figure_task(0)
    assert task.truth.diff(dim=1).abs().max() < 0.1  # of 200 points on [−2, 2]
    assert 0.3 < (task.yt - task.truth).std() < 0.6
    assert task.exact.log_likelihood.isfinite().all()


def test_padding_has_room_for_all_readings() -> None:
    data = GPDataModule(max_num_points=12, batch_size=3, pad=True, repeats=(1, 4))
    for index in range(4):
        assert data.training_batch(index).xc.shape == (3, 32, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": (0, 3)}, r"repeats=\[0, 3\] must go from 1 or more readings"),
        ({"repeats": (4, 3)}, r"repeats=\[4, 3\] must go from 1 or more readings"),
        ({"repeats": (1, 3), "bayes_grid": 8}, "go neither with bayes_grid nor with t_noise"),
        ({"repeats": (1, 3), "t_noise": 0.1}, "go neither with bayes_grid nor with t_noise"),
        (
            {"repeats": (1, 3), "kernel": OneOf([noisy(), released_rbf()])},
            "nor with a Noise kernel that is no summand",
        ),
    ],
)
def test_repeats_that_cannot_be_drawn_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPDataModule(**arguments)
