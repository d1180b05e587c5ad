"""What every model owes to the contract, whatever it is made of."""

from collections.abc import Callable, Iterable
from inspect import isabstract
from typing import Any

import pytest
import torch
from helpers import (
    SIZES,
    assert_close,
    assert_same_record,
    assert_standard_normal,
    random_points,
    random_task,
    small,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from npbench import models
from npbench.models import NeuralProcess, State
from npbench.models.contracts.process import Evaluation, Marginals
from npbench.task import Task

LOWRANK = ["CMANPAND-lowrank", "LBANPND-lowrank", "TNPND-lowrank"]
# Joint models whose targets have no order.
UNORDERED = [*LOWRANK, "LocatedCMANPAND", "TNPKRND"]
CONSTANT = {
    "CMANP", "CMANPAND", "LocatedCMANP", "LocatedCMANPAND", "SecondMomentNP",
    "SecondMomentJointNP", "FourierMomentNP", "ConvCNP", "CNP", "NP",
}  # fmt: skip
JOINTLY = {"CMANPAND", "LBANPND", "TNPND"}
RANDOM = {"NP", "ANP", "BNP", "BANP"}

KERNELS = ["TNPKR-deep_kernel", "TNPKR-performer"]

every_model = pytest.mark.parametrize("name", [*SIZES, *LOWRANK, *KERNELS])


def points(model: NeuralProcess, batch: int, number: int) -> tuple[Tensor, Tensor]:
    return random_points(batch, number, model.dim_x, dim_y=3, dtype=torch.float64)


def task_of(model: NeuralProcess, batch: int = 2, context: int = 7, target: int = 5) -> Task:
    return random_task(batch, context, target, dim_x=model.dim_x, dim_y=3, dtype=torch.float64)


def seeded(function: Callable, *arguments: object) -> object:
    """With the same random numbers at every call: some models sample."""
    torch.manual_seed(1)
    return function(*arguments)


def predicted(evaluation: Evaluation) -> list[Tensor]:
    """What is said of each target: mean, std, and the integral transform of models of numbers."""
    return [z for z in (evaluation.mean, evaluation.std, evaluation.pit) if z is not None]


def assert_same(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        assert_close(mine, theirs, 1e-9)


def assert_same_state(model: NeuralProcess, actual: State, expected: State) -> None:
    xt, _ = points(model, expected.batch_size, 5)
    assert_same(seeded(model.marginals, actual, xt), seeded(model.marginals, expected, xt))


def padded(task: Task, places: Tensor) -> Task:
    """The task with its points spread over longer rows; NaN stands in between."""
    num_context, num_target = task.xc.shape[1], task.xt.shape[1]

    def spread(values: Tensor, number: int) -> Tensor:
        longer = values.new_full([len(values), len(places), values.shape[-1]], torch.nan)
        longer[:, places[:number].sort().values] = values
        return longer

    masks = []
    for number in (num_context, num_target):
        mask = torch.zeros(task.batch_size, len(places), dtype=torch.bool)
        mask[:, places[:number]] = True
        masks.append(mask)
    return Task(
        spread(task.xc, num_context), spread(task.yc, num_context),
        spread(task.xt, num_target), spread(task.yt, num_target), *masks,
    )  # fmt: skip


def test_every_public_neural_process_is_tested_here() -> None:
    public = (getattr(models, name) for name in models.__all__)
    assert set(SIZES) == {
        cls.__name__ for cls in public if issubclass(cls, NeuralProcess) and not isabstract(cls)
    }


@every_model
@pytest.mark.parametrize("sizes", [(4, 3), (0, 4), (4, 0), (1, 1)])
def test_updating_equals_conditioning_on_the_union(name: str, sizes: tuple[int, int]) -> None:
    model = small(name)
    (x1, y1), (x2, y2) = (points(model, 2, size) for size in sizes)
    updated = model.update(model.condition(x1, y1), x2, y2)
    assert_same_state(
        model, updated, model.condition(torch.cat([x1, x2], 1), torch.cat([y1, y2], 1))
    )


@every_model
def test_updating_with_masks_equals_conditioning_on_the_real_points(name: str) -> None:
    model = small(name)
    x, y = points(model, 2, 9)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1]).bool().expand(2, -1)
    expected = model.condition(x[:, mask[0]], y[:, mask[0]])
    first, second = slice(0, 4), slice(4, 9)
    state = model.condition(x[:, first], y[:, first], mask[:, first])
    state = model.update(state, x[:, second], y[:, second], mask[:, second])
    assert_same_state(model, state, expected)
    half = model.condition(x[:, :1], y[:, :1])
    assert_same_state(
        model,
        model.update(half, x[:, 1:], y[:, 1:], mask[:, 1:]),
        expected,
    )


@every_model
def test_a_context_may_come_in_chunks(name: str) -> None:
    model = small(name)
    x, y = points(model, 2, 9)
    whole = model.condition(x, y)
    chunks = [(x[:, :2], y[:, :2]), (x[:, 2:2], y[:, 2:2]), (x[:, 2:], y[:, 2:])]
    assert_same_state(model, model.condition(iter(chunks)), whole)
    assert_same_state(model, model.condition(x, y, chunk_size=4), whole)


@every_model
def test_the_order_of_the_context_changes_nothing(name: str) -> None:
    model = small(name)
    x, y = points(model, 2, 9)
    order = torch.randperm(9)
    assert_same_state(model, model.condition(x[:, order], y[:, order]), model.condition(x, y))


@every_model
@pytest.mark.parametrize("scattered", [False, True])
def test_padding_equals_truncation(name: str, scattered: bool) -> None:
    model = small(name)
    task = task_of(model)
    places = torch.randperm(11) if scattered else torch.arange(11)
    longer = padded(task, places)
    evaluation = seeded(model.evaluate, task)
    expected = seeded(model.evaluate, longer)
    assert_close(expected.log_likelihood, evaluation.log_likelihood, 1e-9)
    real = longer.target_mask[0]
    assert_same([z[:, real] for z in predicted(expected)], predicted(evaluation))
    assert_close(seeded(model.log_likelihood, longer), evaluation.log_likelihood, 1e-9)
    assert_close(seeded(model.train().loss, longer), seeded(model.loss, task), 1e-9)


@every_model
def test_a_context_that_is_all_padding_is_empty(name: str) -> None:
    model = small(name)
    x, y = points(model, 2, 4)
    none = torch.zeros(2, 4, dtype=torch.bool)
    empty = model.condition(x[:, :0], y[:, :0])
    assert_same_state(model, model.condition(x, y, none), empty)


@every_model
@pytest.mark.parametrize(("context", "target"), [(0, 1), (0, 4), (1, 1), (6, 1), (1, 5)])
def test_the_edges_have_finite_predictions_and_gradients(
    name: str, context: int, target: int
) -> None:
    model = small(name).train()
    task = task_of(model, context=context, target=target)
    model.loss(task).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    evaluation = model.eval().evaluate(task)
    values = evaluation.log_likelihood, *predicted(evaluation)
    assert all(torch.isfinite(z).all() for z in values)
    assert (evaluation.std > 0).all()
    assert evaluation.log_likelihood.shape == (2,)
    assert evaluation.mean.shape == evaluation.std.shape == (2, target, 3)


@pytest.mark.parametrize("name", [n for n in [*SIZES, *LOWRANK] if n not in RANDOM])
def test_a_padded_batch_equals_its_tasks_one_by_one(name: str) -> None:
    """Of all sizes, so that some have no targets left where others do."""
    model = small(name)
    sizes = [(0, 5), (7, 1), (4, 3), (1, 2)]
    tasks = [task_of(model, 1, context, target) for context, target in sizes]
    rows = [padded(task, torch.randperm(9)) for task in tasks]
    names = ("xc", "yc", "xt", "yt", "context_mask", "target_mask")
    together = Task(*(torch.cat([getattr(row, name) for row in rows]) for name in names))
    alone = [model.evaluate(task) for task in tasks]
    evaluation = model.evaluate(together)
    assert_close(evaluation.log_likelihood, torch.cat([e.log_likelihood for e in alone]), 1e-9)
    for row, expected in enumerate(alone):
        real = together.target_mask[row]
        assert_close(evaluation.mean[row, real], expected.mean[0], 1e-9)
        assert_close(evaluation.std[row, real], expected.std[0], 1e-9)
    losses = [model.loss(task) for task in tasks]
    assert_close(model.loss(together), torch.stack(losses).mean(), 1e-9)


@every_model
def test_the_loss_reaches_every_parameter(name: str) -> None:
    """So that no parameter is one that DDP waits for in vain."""
    model = small(name).train()
    model.loss(task_of(model)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@every_model
def test_evaluating_agrees_with_log_likelihood_and_marginals(name: str) -> None:
    model = small(name)
    task = task_of(model)
    evaluation = seeded(model.evaluate, task)
    assert_close(seeded(model.log_likelihood, task), evaluation.log_likelihood, 1e-9)
    state = model.condition(task.xc, task.yc)
    assert_same(seeded(model.marginals, state, task.xt), predicted(evaluation)[:2])


class HostReads(TorchDispatchMode):
    """Counts how often a number leaves the device: on a GPU each time everything waits for it."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [n for n in [*SIZES, *KERNELS] if n not in {*JOINTLY, *UNORDERED}])
@pytest.mark.parametrize("phase", ["loss", "evaluate"])
def test_the_values_of_a_task_are_checked_once_a_step(name: str, phase: str) -> None:
    model = small(name)
    task = task_of(model)
    with HostReads() as reads:
        getattr(model, phase)(task)
    assert reads.count == 1


@every_model
def test_samples_are_draws_of_the_targets_values(name: str) -> None:
    model = small(name)
    task = task_of(model, target=4)
    state = model.condition(task.xc, task.yc)
    samples = model.sample(state, task.xt, num_samples=6)
    assert samples.shape == (6, 2, 4, 3)
    assert samples.dtype == torch.float64
    assert not samples.requires_grad
    assert (samples[0] != samples[1]).all()
    with pytest.raises(ValueError, match="num_samples=0 must be 1 or more"):
        model.sample(state, task.xt, num_samples=0)


# The others draw one block, one target or one function after another: see their own tests.
@pytest.mark.parametrize(
    "name",
    [
        "CMANP",
        "LocatedCMANP",
        "LBANP",
        "EQTNP",
        "TNPD",
        "TNPKR",
        "TNPKRND",
        "ConvCNP",
        *KERNELS,
        "CNP",
        "CANP",
        "LBANPND",
        "TNPND",
        *LOWRANK[1:],
    ],
)
def test_samples_are_draws_from_query(name: str) -> None:
    model = small(name)
    task = task_of(model, target=2)
    state = model.condition(task.xc, task.yc)
    dist = model.query(state, task.xt)
    away = model.sample(state, task.xt, 4000).reshape(4000, 2, -1) - dist.mean.reshape(2, -1)
    if hasattr(dist, "scale_tril"):
        away = torch.linalg.solve_triangular(dist.scale_tril, away[..., None], upper=False)[..., 0]
    else:
        away = away / dist.stddev.reshape(2, -1)
    assert_standard_normal(away.flatten(1).detach())


@every_model
def test_the_state_grows_unless_its_model_streams(name: str) -> None:
    model = small(name)
    few, many = (model.condition(*points(model, 2, n)).nbytes for n in (10, 100))
    assert (few == many) == (name.partition("-")[0] in CONSTANT)


@every_model
def test_a_state_can_be_moved_detached_and_repeated(name: str) -> None:
    model = small(name)
    state = model.condition(*points(model, 2, 6))
    assert_same_state(model, state.to("cpu").detach(), state)
    xt, _ = points(model, 2, 4)
    repeated = state.repeat(3)
    assert repeated.batch_size == 6
    if name not in RANDOM:
        marginals = model.marginals(repeated, xt.repeat(3, 1, 1))
        assert_same(marginals, Marginals(*(z.repeat(3, 1, 1) for z in model.marginals(state, xt))))


@every_model
def test_the_recorded_arguments_rebuild_the_model(name: str) -> None:
    model = small(name)
    again = type(model)(**model.hparams)
    shapes, expected = ({k: v.shape for k, v in m.state_dict().items()} for m in (again, model))
    assert shapes == expected


@every_model
def test_permuting_the_targets_permutes_what_does_not_depend_on_their_order(name: str) -> None:
    model = small(name)
    state = model.condition(*points(model, 2, 6))
    xt, _ = points(model, 2, 5)
    order = torch.randperm(5)
    plain, permuted = seeded(model.query, state, xt), seeded(model.query, state, xt[:, order])
    if name in JOINTLY:  # tril cuts the factor of the covariance along the order
        places = (3 * order[:, None] + torch.arange(3)).flatten()
        assert_close(permuted.mean, plain.mean[:, places], 1e-9)
        covariance = plain.covariance_matrix[:, places][:, :, places]
        assert not torch.allclose(permuted.covariance_matrix, covariance, rtol=1e-3)
    elif name in UNORDERED:
        places = (3 * order[:, None] + torch.arange(3)).flatten()
        assert_close(permuted.mean, plain.mean[:, places], 1e-9)
        covariance = plain.covariance_matrix[:, places][:, :, places]
        assert_close(permuted.covariance_matrix, covariance, 1e-9)
    elif name == "SecondMomentJointNP":
        places = (3 * order[:, None] + torch.arange(3)).flatten()
        normals, expected = permuted.component_distribution, plain.component_distribution
        assert_close(permuted.mean, plain.mean[:, places], 1e-9)
        covariance = expected.covariance_matrix[..., places, :][..., places]
        assert_close(normals.covariance_matrix, covariance, 1e-9)
    else:
        assert_close(permuted.mean, plain.mean[:, order], 1e-9)
        assert_close(permuted.stddev, plain.stddev[:, order], 1e-9)


@pytest.mark.parametrize("name", [n for n in [*SIZES, *KERNELS] if n not in {*JOINTLY, "TNPKRND"}])
def test_targets_do_not_see_each_other(name: str) -> None:
    model = small(name)
    state, (xt, _) = model.condition(*points(model, 2, 6)), points(model, 2, 4)
    together = seeded(model.marginals, state, xt)
    for target in range(4):
        alone = seeded(model.marginals, state, xt[:, [target]])
        assert_same(alone, Marginals(*(z[:, [target]] for z in together)))


@every_model
def test_a_state_stays_as_it_was(name: str) -> None:
    model = small(name)
    state, (x, y) = model.condition(*points(model, 2, 6)), points(model, 2, 4)
    before = state.map(torch.clone)
    model.query(state, x)
    model.sample(state, x, 2)
    model.update(state, x, y)
    assert_same_record(state, before)


@every_model
def test_only_some_likelihoods_depend_on_the_order_of_the_targets(name: str) -> None:
    model = small(name)
    task = task_of(model)
    order = torch.tensor([4, 2, 0, 1, 3])
    permuted = Task(task.xc, task.yc, task.xt[:, order], task.yt[:, order])
    likelihood, other = (seeded(model.log_likelihood, each) for each in (task, permuted))
    # Autoregressive, or cut by tril.
    ordered = name in {
        "TNPA",
        "CMANPAND",
        "LocatedCMANPAND",
        "CMANPAND-lowrank",
        "LBANPND",
        "TNPND",
    }
    assert torch.allclose(likelihood, other, rtol=1e-9) != ordered


def test_a_running_mean_counts_more_points_than_float32_can() -> None:
    many = models.CNPState(torch.zeros(1, 2, 4), torch.full((1, 1, 1), 2**24))
    one = models.CNPState(torch.zeros(1, 2, 4), torch.ones(1, 1, 1, dtype=torch.long))
    assert many.merge(one).count.item() == 2**24 + 1
