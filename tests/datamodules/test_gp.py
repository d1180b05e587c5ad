import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior, UniformPrior
from helpers import assert_close, assert_same_record, small_cmanp
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from datamodules import Curriculum, GPDataModule
from datamodules.gaussian_process import GPDraw, realise
from datamodules.kernels import (
    BetaPrior,
    LogUniformPrior,
    Noise,
    OneOf,
    Product,
    RandomKernel,
    SquaredUniformPrior,
    Sum,
    released_rbf,
)
from datamodules.loading import Part
from npbench import Exact, Task


def fixed_rbf(scale: float = 0.7, length: float = 0.4) -> Kernel:
    kernel = ScaleKernel(RBFKernel())
    kernel.outputscale = scale**2
    kernel.base_kernel.lengthscale = length
    return kernel


def matern() -> Kernel:
    return ScaleKernel(
        MaternKernel(nu=2.5, lengthscale_prior=UniformPrior(0.1, 0.6)),
        outputscale_prior=SquaredUniformPrior(0.1, 1.0),
    )


def periodic() -> Kernel:
    return PeriodicKernel(
        lengthscale_prior=SquaredUniformPrior(0.3, 0.6), period_length_prior=UniformPrior(0.1, 0.5)
    )


def product() -> Kernel:
    return ScaleKernel(
        Product([RBFKernel(lengthscale_prior=UniformPrior(0.5, 1.0)), periodic()]),
        outputscale_prior=SquaredUniformPrior(0.1, 1.0),
    )


def noisy() -> Kernel:
    return Sum([released_rbf(), Noise(LogUniformPrior(0.01, 1.0))])


def one_of() -> Kernel:
    return OneOf([released_rbf(), ScaleKernel(matern()), noisy()])


def ard() -> Kernel:
    return RBFKernel(ard_num_dims=2, lengthscale_prior=UniformPrior(0.1, 0.6))


def ard_with_a_range_per_input() -> Kernel:
    ranges = torch.tensor([0.1, 1.0]), torch.tensor([0.2, 2.0])
    return RBFKernel(ard_num_dims=2, lengthscale_prior=UniformPrior(*ranges))


def gamma() -> Kernel:
    return RBFKernel(lengthscale_prior=GammaPrior(3.0, 6.0))


KERNELS = pytest.mark.parametrize(
    ("make_kernel", "dim_x"),
    [
        (released_rbf, 1),
        (matern, 1),
        (periodic, 1),
        (product, 1),
        (noisy, 1),
        (one_of, 1),
        (gamma, 1),
        (ard, 2),
        (ard_with_a_range_per_input, 2),
    ],
)


def single_tasks(batch: Task) -> list[Task]:
    """The tasks of a batch, without padding."""
    tasks = []
    for row in range(batch.batch_size):
        masks = batch.context_mask, batch.target_mask
        context, target = (slice(None) if mask is None else mask[row] for mask in masks)
        exact = batch.exact and Exact(
            batch.exact.mean[[row]][:, target],
            batch.exact.std[[row]][:, target],
            batch.exact.log_likelihood[[row]],
            batch.exact.joint_log_likelihood[[row]],
        )
        points = [batch.xc[[row]][:, context], batch.yc[[row]][:, context]]
        points += [batch.xt[[row]][:, target], batch.yt[[row]][:, target]]
        tasks.append(Task(*points, exact=exact))
    return tasks


def assert_exact(task: Task, covariance: Tensor) -> None:
    """By the textbook's formula, from the covariance of a task's values, context first."""
    yc, yt = task.yc[0].double(), task.yt[0].double()
    n = len(yc)
    gain = torch.linalg.solve(covariance[:n, :n], covariance[:n, n:]).T
    mean, posterior = gain @ yc, covariance[n:, n:] - gain @ covariance[:n, n:]
    std = posterior.diagonal().sqrt()[:, None].expand_as(mean)
    joint = MultivariateNormal(mean.T, posterior).log_prob(yt.T).sum() / len(yt)
    exact = task.exact
    assert_close(exact.mean[0].double(), mean, 1e-4)
    assert_close(exact.std[0].double(), std, 1e-4)
    log_likelihood = Normal(mean, std).log_prob(yt).sum() / len(yt)
    assert_close(exact.log_likelihood[0].double(), log_likelihood, 1e-4)
    assert_close(exact.joint_log_likelihood[0].double(), joint, 1e-4)


def seen_draws(monkeypatch: pytest.MonkeyPatch) -> list[GPDraw]:
    """Every draw from here on: a task alone does not tell its hyper-parameters."""
    draws = []

    def spy(kernel: RandomKernel, draw: GPDraw, *args: object, **kwargs: object) -> Task:
        draws.append(draw)
        return realise(kernel, draw, *args, **kwargs)

    monkeypatch.setattr("datamodules.gp.realise", spy)
    return draws


def sizes(task: Task) -> tuple[int, int]:
    return task.xc.shape[1], task.xt.shape[1]


# Training batches


def test_a_training_batch_is_a_function_of_seed_rank_and_index() -> None:
    data = GPDataModule(seed=3)
    batch = data.training_batch(5, rank=1)
    assert_same_record(GPDataModule(seed=3).training_batch(5, rank=1), batch)
    for other in (
        data.training_batch(6, rank=1),
        data.training_batch(5, rank=0),
        data.training_batch(1, rank=5),
        GPDataModule(seed=4).training_batch(5, rank=1),
    ):
        assert not torch.equal(other.xc[:, 0], batch.xc[:, 0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_do_not_depend_on_the_number_of_workers(num_workers: int) -> None:
    data = GPDataModule(seed=3, batch_size=2, steps_per_epoch=5, num_workers=num_workers)
    batches = list(data.train_dataloader())
    assert len(batches) == 5
    for index, batch in enumerate(batches):
        assert_same_record(batch, data.training_batch(index))


def test_an_epoch_begins_where_the_trainer_is() -> None:
    data = GPDataModule(batch_size=2, steps_per_epoch=2)
    total = SimpleNamespace(ready=7)
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=total))
    loop = SimpleNamespace(epoch_loop=progress)
    data.trainer = SimpleNamespace(
        global_rank=1, world_size=2, fit_loop=loop, max_steps=-1, accumulate_grad_batches=1
    )
    loader = data.train_dataloader()
    for first in (7, 9):
        total.ready = first
        batches = list(loader)
        assert len(batches) == 2
        for step, batch in enumerate(batches):
            assert_same_record(batch, data.training_batch(first + step, rank=1))


def test_training_tasks_share_sizes_and_differ_in_all_else() -> None:
    batch = GPDataModule(batch_size=8).training_batch(0)
    assert batch.context_mask is None
    assert batch.target_mask is None
    assert batch.exact is None
    assert batch.batch_size == 8
    assert all(tensor.dtype == torch.float32 for tensor in batch.tensors())
    for tensor in batch.tensors():
        assert len(tensor[:, 0].unique()) == 8


@pytest.mark.parametrize("num_workers", [0, 1])
def test_drawing_leaves_the_global_random_state_alone(num_workers: int) -> None:
    data = GPDataModule(
        t_noise=0.1,
        curriculum=Curriculum(released_rbf(), 10),
        steps_per_epoch=2,
        num_val_tasks=3,
        num_workers=num_workers,
    )
    before = torch.get_rng_state()
    data.training_batch(0)
    data.evaluation_batch(range(3))
    data.figure_task()
    assert len(list(data.train_dataloader())) == 2
    assert len(list(data.val_dataloader())) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("evaluation", [False, True])
def test_sizes_are_uniform_on_the_documented_ranges(evaluation: bool) -> None:
    """With at least 3 and, together, less than 10: N in 3…6, M in 3…9 − N."""
    data = GPDataModule(min_num_points=3, max_num_points=10, batch_size=1)
    number = 400
    if evaluation:
        drawn = [sizes(task) for task in single_tasks(data.evaluation_batch(range(number)))]
    else:
        drawn = [sizes(data.training_batch(index)) for index in range(number)]
    pairs = {(n, m) for n in range(3, 7) for m in range(3, 10 - n)}
    assert set(drawn) == pairs
    for n, m in pairs:
        probability = 1 / 4 / (7 - n)
        standard_error = (probability * (1 - probability) / number) ** 0.5
        assert abs(drawn.count((n, m)) / number - probability) < 4 * standard_error


def test_inputs_fill_their_range() -> None:
    data = GPDataModule(dim_x=2, x_range=(-0.5, 3.0), batch_size=200)
    batch = data.training_batch(0)
    x = torch.cat([batch.xc, batch.xt], dim=1).reshape(-1, 2)
    assert ((x.amin(0) + 0.5).abs() < 0.02).all()
    assert ((x.amax(0) - 3.0).abs() < 0.02).all()
    assert ((x.mean(0) - 1.25).abs() < 5 * 3.5 / 12**0.5 / len(x) ** 0.5).all()


@pytest.mark.parametrize("t_noise", [None, 0.1])
def test_padding_gives_one_shape_and_the_same_loss(t_noise: float | None) -> None:
    model = small_cmanp()
    arguments = {"max_num_points": 12, "batch_size": 3, "t_noise": t_noise}
    plain, padded = (GPDataModule(pad=pad, **arguments) for pad in (False, True))
    assert len({sizes(plain.training_batch(index)) for index in range(8)}) > 1
    for index in range(8):
        task = padded.training_batch(index)
        assert sizes(task) == (8, 8)
        assert task.context_mask.shape == task.target_mask.shape == (3, 8)
        assert_close(model.loss(task), model.loss(plain.training_batch(index)))


@pytest.mark.parametrize("noise_std", [1e-3, 0.3])
def test_noise_has_its_standard_deviation(noise_std: float) -> None:
    data = GPDataModule(kernel=fixed_rbf(scale=1e-4), noise_std=noise_std, batch_size=200)
    batch = data.training_batch(0)
    y = torch.cat([batch.yc, batch.yt], dim=1).flatten()
    expected = (noise_std**2 + 1e-8) ** 0.5
    assert (y.std() / expected - 1).abs() < 5 / (2 * len(y)) ** 0.5


def test_outliers_are_added_with_heavy_tails() -> None:
    plain, contaminated = (GPDataModule(batch_size=200, t_noise=t) for t in (None, 0.15))
    task, other = plain.training_batch(0), contaminated.training_batch(0)
    assert torch.equal(other.xc, task.xc)
    assert torch.equal(other.xt, task.xt)
    added = torch.cat([other.yc - task.yc, other.yt - task.yt], dim=1).flatten() / 0.15
    # Of StudentT(2.1): the median of the magnitude, and P(|t| > 6), for a normal one 2e-9.
    assert added.abs().median().item() == pytest.approx(0.808, abs=0.06)
    assert (added.abs() > 6).double().mean().item() == pytest.approx(0.0227, abs=0.008)
    assert plain.evaluation_batch(range(2)).exact is not None
    assert contaminated.evaluation_batch(range(2)).exact is None
    assert contaminated.figure_task().exact is None


# Batches whose tasks differ in size


def mask_sizes(batch: Task) -> list[tuple[int, int]]:
    return [sizes(task) for task in single_tasks(batch)]


def test_tasks_of_varied_sizes_have_the_law_of_single_ones() -> None:
    """With at least 3 and, together, less than 10: N in 3…6, M in 3…9 − N."""
    data = GPDataModule(max_num_points=10, batch_size=400, vary_sizes=True)
    drawn = mask_sizes(data.training_batch(0))
    allowed = {(n, m) for n in range(3, 7) for m in range(3, 10 - n)}
    assert set(drawn) == allowed
    for n, m in allowed:
        probability = 1 / 4 / (7 - n)
        standard_error = (probability * (1 - probability) / 400) ** 0.5
        assert abs(drawn.count((n, m)) / 400 - probability) < 4 * standard_error


@pytest.mark.parametrize("t_noise", [None, 0.1])
@pytest.mark.parametrize("pad", [False, True])
def test_the_loss_of_varied_tasks_is_the_mean_of_theirs(pad: bool, t_noise: float | None) -> None:
    data = GPDataModule(batch_size=5, vary_sizes=True, pad=pad, t_noise=t_noise)
    model = small_cmanp()
    batch = data.training_batch(0)
    alone = torch.stack([model.loss(task) for task in single_tasks(batch)])
    assert_close(model.loss(batch), alone.mean())
    if pad:
        assert sizes(batch) == (46, 46)


@pytest.mark.parametrize("vary_sizes", [False, True])
@pytest.mark.parametrize("pad", [False, True])
def test_the_number_of_targets_may_be_fixed(vary_sizes: bool, pad: bool) -> None:
    data = GPDataModule(
        max_num_points=10, batch_size=30, vary_sizes=vary_sizes, num_targets=12, pad=pad
    )
    contexts = []
    for index in range(30):
        batch = data.training_batch(index)
        drawn = mask_sizes(batch)
        assert {m for _, m in drawn} == {12}
        assert (len({n for n, _ in drawn}) > 1) == vary_sizes
        assert (batch.context_mask is None) == (not pad and not vary_sizes)
        contexts += [n for n, _ in drawn]
        if pad:
            assert sizes(batch) == (6, 12)
    assert set(contexts) == {3, 4, 5, 6}


def test_varied_tasks_follow_a_curriculum(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = seen_draws(monkeypatch)
    curriculum = Curriculum(easy_rbf(), 8)
    for vary_sizes in (False, True):
        GPDataModule(batch_size=50, vary_sizes=vary_sizes, curriculum=curriculum).training_batch(2)
    together, varied = (draw.hyperparameters for draw in draws)
    assert all(torch.equal(one, other) for one, other in zip(together, varied, strict=True))
    assert len(draws[1].num_context.unique()) > 10


def test_how_tasks_are_trained_on_does_not_touch_evaluation() -> None:
    plain = GPDataModule()
    changed = GPDataModule(vary_sizes=True, num_targets=7, pad=True)
    for part in (Part.VALIDATE, Part.TEST, Part.PREDICT):
        assert_same_record(
            changed.evaluation_batch(range(4), part), plain.evaluation_batch(range(4), part)
        )
    assert_same_record(changed.figure_task(1), plain.figure_task(1))


# What release 0.1.0 drew, which every later release must draw


@pytest.mark.parametrize(
    ("kind", "shape", "first_context", "first_target"),
    [
        (
            "training",
            (20, 16),
            [-1.97191823, 0.283530891, -0.688758552],
            [-0.4890311, -0.312176, -0.1798325],
        ),
        (
            "validation",
            (30, 16),
            [-1.78276765, 0.46927771, 0.938083172],
            [-0.02137561, -0.650459, 0.08004589],
        ),
        (
            "test",
            (37, 8),
            [1.05332971, -0.7068699, -0.248976976],
            [0.02651266, 0.1926054, -0.7238805],
        ),
    ],
)  # fmt: skip
def test_batches_are_those_of_release_0_1_0(
    kind: str, shape: tuple[int, int], first_context: list[float], first_target: list[float]
) -> None:
    """So that no number of the documentation changes."""
    data = GPDataModule()
    batch = {
        "training": lambda: data.training_batch(5, rank=1),
        "validation": lambda: data.evaluation_batch(range(3, 6), Part.VALIDATE),
        "test": lambda: data.evaluation_batch(range(3, 6)),
    }[kind]()
    assert sizes(batch) == shape
    assert torch.equal(batch.xc[:3, 0, 0], torch.tensor(first_context))
    assert_close(batch.yt[:3, 0, 0], torch.tensor(first_target))


# Evaluation tasks


def evaluation_tasks(**arguments: object) -> list[Task]:
    data = GPDataModule(num_val_tasks=7, **arguments)
    return [task for batch in data.val_dataloader() for task in single_tasks(batch)]


@pytest.mark.parametrize(
    "change",
    [
        {"eval_batch_size": 1},
        {"eval_batch_size": 3},
        {"eval_batch_size": 3, "num_workers": 2},
        {"seed": 5, "batch_size": 2, "steps_per_epoch": 1, "num_test_tasks": 2},
    ],
)
def test_an_evaluation_task_is_a_function_of_eval_seed_and_index(change: dict) -> None:
    expected = evaluation_tasks(eval_seed=2)
    torch.manual_seed(123)
    torch.rand(5)
    tasks = evaluation_tasks(eval_seed=2, **change)
    assert len(tasks) == len(expected) == 7
    for ours, theirs in zip(tasks, expected):
        for mine, other in zip(ours.tensors(), theirs.tensors(), strict=True):
            assert_close(mine, other, 1e-6)


def test_fixed_tasks_differ_by_seed_index_and_split() -> None:
    data, other = GPDataModule(eval_seed=2), GPDataModule(eval_seed=3)
    batches = [
        next(iter(loader))
        for loader in (
            data.val_dataloader(), data.test_dataloader(), data.predict_dataloader(),
            other.val_dataloader(), data.train_dataloader(),
        )
    ]  # fmt: skip
    first_inputs = torch.cat([batch.xc[:, 0, 0] for batch in batches])
    assert len(first_inputs.unique()) == len(first_inputs) == 5 * 16


def test_fewer_evaluation_tasks_than_processes_are_refused() -> None:
    data = GPDataModule(num_predict_tasks=16)
    data.trainer = SimpleNamespace(global_rank=0, world_size=17)
    with pytest.raises(ValueError, match="16 evaluation tasks cannot be shared out among 17 proc"):
        data.predict_dataloader()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_evaluation_tasks_out(world_size: int) -> None:
    whole = torch.cat([task.xc[0, 0] for task in evaluation_tasks()])
    shares = []
    for rank in range(world_size):
        data = GPDataModule(num_val_tasks=7, eval_batch_size=2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        shares.append(torch.cat([batch.xc[:, 0, 0] for batch in data.val_dataloader()]))
    assert torch.equal(torch.cat(shares).sort().values, whole.sort().values)


def test_evaluation_loaders_know_their_length() -> None:
    data = GPDataModule(num_val_tasks=7, num_test_tasks=8, num_predict_tasks=1, eval_batch_size=4)
    loaders = data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()
    assert [len(loader) for loader in loaders] == [2, 2, 1]
    assert [len(list(loader)) for loader in loaders] == [2, 2, 1]


def test_values_behind_the_points_are_zero() -> None:
    batch = GPDataModule().evaluation_batch(range(6))
    for mask, tensors in (
        (batch.context_mask, (batch.xc, batch.yc)),
        (batch.target_mask, (batch.xt, batch.yt)),
    ):
        assert not mask.all()
        assert mask.any(1).all()
        assert all(not tensor[~mask].any() for tensor in tensors)
        assert all(tensor[mask].all() for tensor in tensors)


# Exact answers


@pytest.mark.parametrize("dim_y", [1, 2])
def test_exact_answers_are_those_of_the_textbook(dim_y: int) -> None:
    data = GPDataModule(kernel=fixed_rbf(scale=0.7, length=0.4), noise_std=0.05, dim_y=dim_y)
    for task in single_tasks(data.evaluation_batch(range(8))):
        assert task.yt.shape[-1] == dim_y
        x = torch.cat([task.xc, task.xt], dim=1)[0].double()
        covariance = 0.49 * (-0.5 * (x - x.T).square() / 0.16).exp()
        assert_exact(task, covariance + 0.05**2 * torch.eye(len(x)))


@KERNELS
def test_exact_answers_are_right_for_every_kernel(
    make_kernel: Callable[[], Kernel], dim_x: int
) -> None:
    """Each task against a kernel of its own, with its own hyper-parameters."""
    kernel = RandomKernel(make_kernel())
    draw = GPDraw(
        num_context=torch.tensor([3, 8, 5]),
        num_target=torch.tensor([6, 2, 4]),
        x=4 * torch.rand(3, 10, dim_x, dtype=torch.float64) - 2,
        hyperparameters=kernel.draw(3),
        white=torch.randn(3, 10, 2, dtype=torch.float64),
        outliers=None,
    )
    batch = realise(kernel, draw, noise_std=0.02, with_exact=True)
    for row, task in enumerate(single_tasks(batch)):
        assert sizes(task) == (draw.num_context[row], draw.num_target[row])
        alone = make_kernel().double()
        for (_, module, _, _, assign), value in zip(
            alone.named_priors(), draw.hyperparameters, strict=True
        ):
            assign(module, value[row])
        x = draw.x[row, : sum(sizes(task))]
        with torch.no_grad():
            covariance = alone(x).to_dense() + 0.02**2 * torch.eye(len(x))
        assert_exact(task, covariance)


def test_each_task_draws_one_of_the_kernels() -> None:
    """With equal chances; its covariance is that of this kernel."""
    kernel = RandomKernel(OneOf([fixed_rbf(scale=1.0), fixed_rbf(scale=2.0), fixed_rbf(scale=3.0)]))
    x = torch.zeros(3000, 1, 1, dtype=torch.float64)
    variance = kernel.covariance(x, kernel.draw(3000)).flatten().round()
    values, counts = variance.unique(return_counts=True)
    assert values.tolist() == [1.0, 4.0, 9.0]
    assert ((counts - 1000).abs() < 5 * (3000 * 2 / 9) ** 0.5).all()


def test_noise_of_a_tasks_own_is_log_uniform_and_on_every_value() -> None:
    kernel = RandomKernel(Noise(LogUniformPrior(0.01, 1.0)))
    x = torch.randn(2000, 3, 1, dtype=torch.float64)
    hyperparameters = kernel.draw(2000)
    std = hyperparameters[0][:, 0]
    covariance = kernel.covariance(x, hyperparameters)
    assert_close(covariance, std.square()[:, None, None] * torch.eye(3, dtype=torch.float64))
    level = (std.log() / math.log(0.01)).sort().values
    assert_close(level, torch.linspace(0, 1, 2000, dtype=torch.float64), 0.05)
    prior = LogUniformPrior(0.01, 1.0)
    grid = torch.linspace(0.0101, 0.999, 100_000)
    assert prior.log_prob(grid).exp().mean() * 0.989 == pytest.approx(1.0, abs=0.02)


@KERNELS
def test_every_kernel_gives_tasks(make_kernel: Callable[[], Kernel], dim_x: int) -> None:
    data = GPDataModule(dim_x=dim_x, dim_y=2, kernel=make_kernel(), batch_size=3)
    for task in (data.training_batch(0), data.evaluation_batch(range(3))):
        assert task.xc.shape[-1] == task.xt.shape[-1] == dim_x
        assert task.yc.shape[-1] == task.yt.shape[-1] == 2
        assert all(torch.isfinite(tensor).all() for tensor in task.tensors())
        assert not torch.allclose(task.yc[..., 0], task.yc[..., 1])


def test_outputs_are_independent_draws_of_one_process() -> None:
    """So that the joint log-likelihood of one output does not depend on the other."""
    data = GPDataModule(kernel=fixed_rbf(), dim_y=2, batch_size=2000)
    batch = data.training_batch(1)
    first, second = batch.yc[:, 0].unbind(-1)
    correlation = (first * second).mean() / (0.7**2 + 0.02**2)
    assert correlation.abs() < 5 / 2000**0.5


def test_the_figure_task_is_dense_ordered_and_exact() -> None:
    data = GPDataModule(
        kernel=fixed_rbf(scale=0.7, length=0.4), noise_std=0.05, x_range=(-1.0, 2.0)
    )
    task = data.figure_task(index=1, num_targets=30)
    assert_close(task.xt[0, :, 0], torch.linspace(-1.0, 2.0, 30))
    assert_same_record(data.figure_task(index=1, num_targets=30), task)
    assert not torch.equal(data.figure_task(index=2, num_targets=30).xc[:, 0], task.xc[:, 0])
    x = torch.cat([task.xc, task.xt], dim=1)[0].double()
    covariance = 0.49 * (-0.5 * (x - x.T).square() / 0.16).exp()
    assert_exact(task, covariance + 0.05**2 * torch.eye(len(x)))


def test_the_truth_of_a_figure_task_is_what_noise_was_added_to() -> None:
    for index in range(3):
        data = GPDataModule(kernel=fixed_rbf(scale=0.7, length=0.4), noise_std=0.1)
        task = data.figure_task(index)
        noise = (task.yt - task.truth)[0, :, 0]
        assert abs(noise.std().item() - 0.1) < 5 * 0.1 / (2 * 200) ** 0.5
        assert abs(noise.mean().item()) < 5 * 0.1 / 200**0.5
        # A function of length scale 0.4 hardly bends between points that are 0.02 apart.
        assert task.truth[0, :, 0].diff(n=3).abs().max() < 1e-2
        assert task.exact.log_likelihood.isfinite().all()


def test_without_noise_the_truth_is_what_was_observed() -> None:
    task = GPDataModule(kernel=fixed_rbf(), noise_std=0.0).figure_task(num_targets=20)
    assert_close(task.truth, task.yt, 1e-3)


@pytest.mark.parametrize("dim_x", [2, 3])
def test_the_figure_task_of_several_inputs_is_a_grid_of_the_first_two(dim_x: int) -> None:
    data = GPDataModule(dim_x=dim_x, x_range=(-1.0, 2.0), noise_std=0.05)
    task = data.figure_task(num_targets=30)
    line = torch.linspace(-1.0, 2.0, 5)
    assert task.xt.shape == (*task.truth.shape[:2], dim_x) == (1, 25, dim_x)
    assert_close(task.xt[0, :, :2], torch.cartesian_prod(line, line))
    assert not task.xt[..., 2:].any()
    assert data.figure_task().xt.shape[1] == 24**2


def test_the_ceiling_is_where_it_was_measured() -> None:
    data = GPDataModule(num_val_tasks=1600, eval_batch_size=400)
    exact = [batch.exact for batch in data.val_dataloader()]
    for ceiling, values in (
        (1.507, torch.cat([answer.log_likelihood for answer in exact])),
        (1.79, torch.cat([answer.joint_log_likelihood for answer in exact])),
    ):
        assert len(values) == 1600
        assert abs(values.mean().item() - ceiling) < 4 * values.std().item() / 1600**0.5


# Kernels and their priors


def test_the_released_kernel_draws_from_the_released_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = seen_draws(monkeypatch)
    GPDataModule(batch_size=2000).training_batch(0)
    scale, length = draws[0].hyperparameters
    for root, low, high in ((scale.sqrt(), 0.1, 1.0), (length, 0.1, 0.6)):
        assert root.numel() == 2000
        assert low <= root.min() < low + 0.01
        assert high - 0.01 < root.max() <= high


def test_the_periodic_kernel_is_its_formula() -> None:
    kernel = RandomKernel(periodic())
    hyperparameters = kernel.draw(4)
    x = torch.rand(4, 6, 1, dtype=torch.float64)
    by_name = {
        name.split("_prior")[0]: value.reshape(4, 1, 1)
        for (name, *_), value in zip(kernel.kernel.named_priors(), hyperparameters, strict=True)
    }
    period, length = by_name["period_length"], by_name["lengthscale"].sqrt()
    assert ((period >= 0.1) & (period < 0.5)).all()
    assert ((length >= 0.3) & (length < 0.6)).all()
    phase = torch.pi * (x - x.mT).abs() / period
    covariance = kernel.covariance(x, hyperparameters)
    assert_close(covariance.detach(), (-2 * phase.sin().square() / length**2).exp())


def test_a_squared_uniform_prior_is_the_square_of_a_uniform_one() -> None:
    prior = SquaredUniformPrior(0.3, 0.9)
    for samples in (prior.sample(torch.Size([4000])), prior.rsample([4000])):
        assert samples.shape == (4000,)
        root = samples.sqrt()
        assert 0.3 <= root.min() < 0.31
        assert 0.89 < root.max() <= 0.9
        assert (root.mean() - 0.6).abs() < 5 * 0.6 / 12**0.5 / 4000**0.5
    value = torch.linspace(0.09 + 1e-6, 0.81 - 1e-6, 20_001)
    density = prior.log_prob(value).exp()
    assert torch.trapezoid(density, value).item() == pytest.approx(1.0, abs=1e-4)
    below = value <= 0.36
    assert torch.trapezoid(density[below], value[below]).item() == pytest.approx(0.5, abs=1e-3)


def test_a_beta_prior_is_the_beta_distribution() -> None:
    """With mean 3/10 and variance 21/1100."""
    lengths = RandomKernel(RBFKernel(lengthscale_prior=BetaPrior(3.0, 7.0))).draw(4000)[0]
    assert lengths.shape == (4000, 1, 1)
    assert ((lengths > 0) & (lengths < 1)).all()
    std = (21 / 1100) ** 0.5
    assert (lengths.mean() - 0.3).abs() < 5 * std / 4000**0.5
    assert lengths.std().item() == pytest.approx(std, rel=0.06)
    value = torch.linspace(1e-6, 1 - 1e-6, 20_001)
    density = BetaPrior(3.0, 7.0).log_prob(value).exp()
    assert torch.trapezoid(density, value).item() == pytest.approx(1.0, abs=1e-4)
    assert_close(density, 252 * value**2 * (1 - value) ** 6, 1e-4)
    assert BetaPrior(3.0, 7.0).expand([2]).sample().shape == (2,)


# Curriculum


def easy_rbf() -> Kernel:
    return ScaleKernel(
        RBFKernel(lengthscale_prior=UniformPrior(2.0, 3.0)),
        outputscale_prior=SquaredUniformPrior(2.0, 3.0),
    )


def lengths(
    monkeypatch: pytest.MonkeyPatch, index: int, num_batches: int, batch_size: int = 50
) -> Tensor:
    draws = seen_draws(monkeypatch)
    data = GPDataModule(batch_size=batch_size, curriculum=Curriculum(easy_rbf(), num_batches))
    data.training_batch(index)
    return draws[-1].hyperparameters[1].flatten()


@pytest.mark.parametrize(
    ("index", "low", "high"), [(0, 2.0, 3.0), (2, 1.525, 2.4), (4, 1.05, 1.8), (8, 0.1, 0.6)]
)
def test_a_curriculum_moves_from_the_easy_range_to_the_real_one(
    monkeypatch: pytest.MonkeyPatch, index: int, low: float, high: float
) -> None:
    drawn = lengths(monkeypatch, index, num_batches=8)
    assert low <= drawn.min() < low + 0.2 * (high - low)
    assert high - 0.2 * (high - low) < drawn.max() <= high


def test_a_curriculum_keeps_the_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    easy, middle = (lengths(monkeypatch, 2, num_batches) - low
                    for num_batches, low in ((2_000_000, 2.0), (4, 1.05)))  # fmt: skip
    assert_close(middle / 0.75, easy, 1e-5)


@pytest.mark.parametrize("index", [3, 4, 100])
def test_after_its_batches_a_curriculum_has_no_effect(index: int) -> None:
    curriculum = Curriculum(easy_rbf(), num_batches=3)
    with_it, without = GPDataModule(curriculum=curriculum), GPDataModule()
    assert_same_record(with_it.training_batch(index), without.training_batch(index))
    assert not torch.equal(with_it.training_batch(2).yc, without.training_batch(2).yc)
    assert torch.equal(with_it.training_batch(2).xc, without.training_batch(2).xc)


def test_a_curriculum_does_not_touch_evaluation() -> None:
    curriculum = Curriculum(easy_rbf(), num_batches=1000)
    with_it, without = GPDataModule(curriculum=curriculum), GPDataModule()
    assert_same_record(with_it.evaluation_batch(range(3)), without.evaluation_batch(range(3)))


# Inputs on a grid


@pytest.mark.parametrize("dim_x", [1, 2, 3])
def test_inputs_on_a_grid_are_nodes_of_it_and_no_two_the_same(dim_x: int) -> None:
    side = {1: 50, 2: 8, 3: 4}[dim_x]
    data = GPDataModule(dim_x=dim_x, x_grid=side, x_range=(1.0, 3.0), kernel=fixed_rbf())
    line = torch.linspace(1.0, 3.0, side)
    for batch in (data.training_batch(0), data.evaluation_batch(range(3))):
        for task in single_tasks(batch):
            x = torch.cat([task.xc, task.xt], dim=1)[0]
            assert (x[..., None] - line).abs().amin(dim=-1).max() < 1e-6
            assert len(x.unique(dim=0)) == len(x)
    every = torch.cat([data.training_batch(i).xc.flatten(0, 1) for i in range(40)])
    assert len(every.unique(dim=0)) == side**dim_x


def test_exact_answers_on_a_grid_are_those_of_the_textbook() -> None:
    data = GPDataModule(dim_x=2, x_grid=8, kernel=fixed_rbf(0.7, 0.4), noise_std=0.05)
    for task in single_tasks(data.evaluation_batch(range(4))):
        x = torch.cat([task.xc, task.xt], dim=1)[0].double()
        covariance = 0.49 * (-0.5 * torch.cdist(x, x).square() / 0.16).exp()
        assert_exact(task, covariance + 0.05**2 * torch.eye(len(x)))


def test_the_smallest_grid_that_holds_a_task_is_enough() -> None:
    data = GPDataModule(dim_x=2, x_grid=7, max_num_points=50)
    assert data.figure_task().xt.shape == (1, 24**2, 2)
    data.evaluation_batch(range(4))


def test_scattered_inputs_do_not_depend_on_the_option() -> None:
    plain, none = GPDataModule(dim_x=2), GPDataModule(dim_x=2, x_grid=None)
    assert_same_record(plain.training_batch(0), none.training_batch(0))


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim_x": 0}, "dim_x=0 must be 1 or more"),
        ({"dim_y": 0}, "dim_y=0 must be 1 or more"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1 must be 1 or more"),
        ({"min_num_points": 0}, "min_num_points=0 must be 1 or more"),
        ({"min_num_points": 3, "max_num_points": 6}, "max_num_points=6 leaves no room for 3"),
        ({"num_targets": 0}, "num_targets=0 must be 1 or more"),
        ({"noise_std": -0.1}, "noise_std=-0.1 must be 0 or more"),
        ({"x_range": (2.0, -2.0)}, "x_range"),
        ({"extent": 0.0}, "extent"),
        ({"steps_per_epoch": -1}, "steps_per_epoch=-1"),
        ({"num_val_tasks": -1}, "num_val_tasks=-1"),
        ({"curriculum": Curriculum(RBFKernel(), 10)}, "curriculum"),
        ({"x_grid": 1}, "x_grid=1 must be 2 or more points in each dimension"),
        ({"x_grid": 6, "dim_x": 2}, r"x_grid=6 gives 36 points in 2 .*, and a task may have 49"),
        ({"x_grid": 7, "dim_x": 2, "num_targets": 9}, r"49 points .* a task may have 55"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_tasks_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPDataModule(**arguments)


def test_the_smallest_room_for_points_is_enough() -> None:
    data = GPDataModule(min_num_points=3, max_num_points=7)
    assert sizes(data.training_batch(0)) == (3, 3)


def test_a_curriculum_of_no_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="1 batch or more, not 0"):
        Curriculum(easy_rbf(), num_batches=0)


def test_the_context_of_a_task_lies_on_a_share_of_the_range() -> None:
    low, high, extent = -1.0, 3.0, 0.2
    data = GPDataModule(
        dim_x=2, extent=extent, x_range=(low, high), min_num_points=100, max_num_points=250,
        batch_size=100,
    )  # fmt: skip
    task = data.training_batch(0)
    x = task.xc
    width = (x.amax(dim=1) - x.amin(dim=1)) / (high - low)
    assert (x >= low).all()
    assert (x <= high).all()
    assert width.max() > 0.9
    assert extent * 0.9 < width.min() < extent * 1.1
    # Log-uniform: half of the tasks have a share below the geometric mean.
    assert 0.35 < (width.amax(dim=-1) < extent**0.5).float().mean() < 0.65
    centre = (x.amax(dim=1) + x.amin(dim=1)) / 2
    assert (centre[width[:, 0] < 0.3].std(dim=0) > 0.5).all()
    # Half of the targets lie anywhere.
    inside = (task.xt >= x.amin(dim=1, keepdim=True)) & (task.xt <= x.amax(dim=1, keepdim=True))
    narrow = width.amax(dim=-1) < 0.3
    assert 0.4 < inside[narrow].all(dim=-1).float().mean() < 0.65
