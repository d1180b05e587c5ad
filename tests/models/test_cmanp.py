from random import Random
from typing import Any

import pytest
import torch
from helpers import (
    assert_close,
    assert_same_prediction,
    few_examples,
    merge_in_a_random_tree,
    random_points,
    random_slices,
    random_task,
    small_cmanp,
)
from hypothesis import given
from hypothesis.strategies import SearchStrategy, integers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from npbench import Task
from npbench.models import CMANP, CMANPState

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def shapes() -> dict[str, SearchStrategy[int]]:
    return {
        "seed": integers(0, 10**6),
        "batch": integers(1, 3),
        "points": integers(1, 12),
        "dim_x": integers(1, 2),
        "dim_y": integers(1, 2),
    }


@DTYPES
@given(**shapes(), chunk_size=integers(1, 13))
@few_examples
def test_conditioning_in_chunks_equals_conditioning_at_once(
    dtype: torch.dtype,
    seed: int,
    batch: int,
    points: int,
    dim_x: int,
    dim_y: int,
    chunk_size: int,
) -> None:
    torch.manual_seed(seed)
    model = small_cmanp(dim_x, dim_y, dtype)
    x, y = random_points(batch, points, dim_x, dim_y, dtype)
    xt, _ = random_points(batch, 3, dim_x, dim_y, dtype)
    at_once = model(x, y, xt)
    sliced = model.condition(x, y, chunk_size=chunk_size)
    chunks = [(x[:, window], y[:, window]) for window in random_slices(points, Random(seed))]
    assert_same_prediction(model.query(sliced, xt), at_once)
    assert_same_prediction(model.query(model.condition(chunks), xt), at_once)
    assert_same_prediction(model.query(model.condition(iter(chunks)), xt), at_once)


@DTYPES
@given(**shapes())
@few_examples
def test_the_context_is_a_set_and_may_come_point_by_point(
    dtype: torch.dtype, seed: int, batch: int, points: int, dim_x: int, dim_y: int
) -> None:
    torch.manual_seed(seed)
    model = small_cmanp(dim_x, dim_y, dtype)
    x, y = random_points(batch, points, dim_x, dim_y, dtype)
    xt, _ = random_points(batch, 3, dim_x, dim_y, dtype)
    at_once = model(x, y, xt)

    order = torch.randperm(points)
    assert_same_prediction(model(x[:, order], y[:, order], xt), at_once)

    first, *rest = order.tolist()
    state = model.condition(x[:, [first]], y[:, [first]])
    for index in rest:
        state = model.update(state, x[:, [index]], y[:, [index]])
    assert_same_prediction(model.query(state, xt), at_once)


@DTYPES
@given(**shapes())
@few_examples
def test_shards_merged_in_any_tree_equal_conditioning_at_once(
    dtype: torch.dtype, seed: int, batch: int, points: int, dim_x: int, dim_y: int
) -> None:
    torch.manual_seed(seed)
    random = Random(seed)
    model = small_cmanp(dim_x, dim_y, dtype)
    x, y = random_points(batch, points, dim_x, dim_y, dtype)
    xt, _ = random_points(batch, 3, dim_x, dim_y, dtype)
    shards = [model.condition(x[:, w], y[:, w]) for w in random_slices(points, random)]
    at_once = model(x, y, xt)

    merged = merge_in_a_random_tree(shards, CMANPState.merge, random)
    assert merged.latents is None
    assert_same_prediction(model.query(merged, xt), at_once)
    assert_same_prediction(model.query(model.merge(*shards), xt), at_once)


def test_merging_through_the_model_equals_merging_the_states() -> None:
    model = small_cmanp()
    x, y = random_points(2, 8)
    shards = [model.condition(x[:, w], y[:, w]) for w in (slice(3), slice(3, 8))]
    of_model, of_states = model.merge(*shards), shards[0].merge(shards[1])
    assert of_model.latents is not None
    assert of_states.latents is None
    assert_same_prediction(model.query(of_model, x), model.query(of_states, x), 0.0)
    more = random_points(2, 2)
    updated = model.update(of_states, *more)
    assert_same_prediction(model.query(updated, x), model.query(model.update(of_model, *more), x))


def padded_with_nan(task: Task, num_context: int, num_target: int) -> Task:
    """Padding that would show wherever it is looked at."""
    padded = task.pad(num_context, num_target)
    context, target = ~padded.context_mask[..., None], ~padded.target_mask[..., None]
    return Task(
        padded.xc.masked_fill(context, torch.nan),
        padded.yc.masked_fill(context, torch.nan),
        padded.xt,
        padded.yt.masked_fill(target, torch.nan),
        padded.context_mask,
        padded.target_mask,
    )


def concatenated(tasks: list[Task]) -> Task:
    names = ("xc", "yc", "xt", "yt", "context_mask", "target_mask")
    return Task(*(torch.cat([getattr(task, name) for task in tasks]) for name in names))


@given(**shapes() | {"batch": integers(1, 4)})
@few_examples
def test_a_padded_batch_equals_its_tasks_one_by_one(
    seed: int, batch: int, points: int, dim_x: int, dim_y: int
) -> None:
    """Contexts of all sizes, the empty one too."""
    torch.manual_seed(seed)
    random = Random(seed)
    model = small_cmanp(dim_x, dim_y, torch.float64)
    tasks = [
        random_task(1, random.randint(0, points), random.randint(1, 5), dim_x=dim_x, dim_y=dim_y,
                    dtype=torch.float64)
        for _ in range(batch)
    ]  # fmt: skip
    together = concatenated([padded_with_nan(task, points, 5) for task in tasks])
    one_by_one = torch.cat([model.log_likelihood(task) for task in tasks])
    assert_close(model.log_likelihood(together), one_by_one)
    assert_close(model.loss(together), -one_by_one.mean())

    prediction = model(together.xc, together.yc, together.xt, together.context_mask)
    for row, task in enumerate(tasks):
        alone, num_target = model(task.xc, task.yc, task.xt), task.xt.shape[1]
        assert_close(prediction.mean[row, :num_target], alone.mean[0])
        assert_close(prediction.stddev[row, :num_target], alone.stddev[0])


def test_a_padded_batch_gives_the_gradients_of_its_tasks_one_by_one() -> None:
    model = small_cmanp(dtype=torch.float64)
    tasks = [random_task(1, context, 3, dtype=torch.float64) for context in (0, 2, 6)]
    together = concatenated([padded_with_nan(task, 6, 5) for task in tasks])
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model.loss(together), parameters)
    losses = torch.stack([model.loss(task) for task in tasks])
    for mine, theirs in zip(ours, torch.autograd.grad(losses.mean(), parameters)):
        assert_close(mine, theirs)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_mask_works_in_chunks_and_updates_too(chunk_size: int | None) -> None:
    model = small_cmanp(dtype=torch.float64)
    x, y = random_points(2, 7, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False, False, True], [False] * 6 + [True]])
    expected = model(x, y, x, mask)
    chunked = model.condition(x, y, mask, chunk_size=chunk_size)
    assert_same_prediction(model.query(chunked, x), expected)
    updated = model.update(model.condition(x[:, :3], y[:, :3], mask[:, :3]),
                           x[:, 3:], y[:, 3:], mask[:, 3:])  # fmt: skip
    assert_same_prediction(model.query(updated, x), expected)
    triples = [(x[:, :3], y[:, :3], mask[:, :3]), (x[:, 3:], y[:, 3:], mask[:, 3:])]
    assert_same_prediction(model.query(model.condition(triples), x), expected)


def test_the_size_of_the_state_does_not_depend_on_the_context() -> None:
    model = small_cmanp()
    sizes = {points: model.condition(*random_points(2, points)).nbytes for points in (0, 1, 300)}
    layers, batch, heads, width = 2, 2, 2, 16
    lse, out, latents = heads * 4, 4 * width, 6 * width
    assert set(sizes.values()) == {4 * layers * batch * (lse + out + latents)}


def test_an_empty_context_gives_the_prior() -> None:
    """However it is written; and the prior absorbs data like any state."""
    model = small_cmanp()
    x, y = random_points(2, 5)
    xt, _ = random_points(2, 4)
    prior = model.condition(x[:, :0], y[:, :0])
    expected = model.query(prior, xt)
    assert torch.isfinite(expected.mean).all()
    assert (expected.stddev > 0).all()
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    for state in (
        model.condition(x, y, nothing),
        model.condition(x, y, nothing, chunk_size=2),
        model.condition([(x[:, :0], y[:, :0])]),
        model.update(prior, x[:, :0], y[:, :0]),
        model.merge(prior, prior),
    ):
        assert_same_prediction(model.query(state, xt), expected)
    assert_same_prediction(model.query(model.update(prior, x, y), xt), model(x, y, xt))
    assert not torch.allclose(model(x, y, xt).mean, expected.mean)


def test_the_prior_can_be_trained() -> None:
    model = small_cmanp()
    task = random_task(context=0)
    empty = Task(*random_points(2, 3), task.xt, task.yt, torch.zeros(2, 3, dtype=torch.bool))
    for same in (task, empty):
        model.zero_grad()
        model.loss(same).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert model.head.mlp[0].weight.grad.any()


def test_one_context_point_and_one_target_are_enough() -> None:
    model = small_cmanp(dim_x=2, dim_y=3)
    task = random_task(1, 1, 1, dim_x=2, dim_y=3)
    prediction = model(task.xc, task.yc, task.xt)
    assert prediction.batch_shape == (1, 1)
    assert prediction.event_shape == (3,)
    expected = torch.distributions.Normal(prediction.mean, prediction.stddev).log_prob(task.yt)
    assert_close(model.log_likelihood(task), expected.sum().reshape(1))


def test_the_log_likelihood_sums_over_outputs_and_averages_over_targets() -> None:
    model = small_cmanp(dim_y=2)
    task = random_task(3, 6, 4, dim_y=2)
    prediction = model(task.xc, task.yc, task.xt)
    density = torch.distributions.Normal(prediction.mean, prediction.stddev).log_prob(task.yt)
    assert_close(model.log_likelihood(task), density.sum((1, 2)) / 4)
    assert_close(model.loss(task), -density.sum() / 12)


def test_targets_do_not_see_each_other() -> None:
    model = small_cmanp()
    x, y = random_points(2, 5)
    xt, _ = random_points(2, 4)
    together = model(x, y, xt)
    for target in range(4):
        alone = model(x, y, xt[:, [target]])
        assert_close(alone.mean, together.mean[:, [target]])
        assert_close(alone.stddev, together.stddev[:, [target]])


def test_a_query_leaves_the_state_as_it_was() -> None:
    model = small_cmanp()
    state = model.condition(*random_points(2, 5))
    before = [tensor.clone() for tensor in state.tensors()]
    model.query(state, torch.randn(2, 4, 1))
    model.update(state, *random_points(2, 3))
    assert all(torch.equal(now, then) for now, then in zip(state.tensors(), before, strict=True))


def test_the_default_model_has_as_many_parameters_as_the_papers() -> None:
    assert sum(p.numel() for p in CMANP(dim_x=1, dim_y=1).parameters()) == 1_341_634


def test_a_bounded_standard_deviation_stays_above_its_bound() -> None:
    model = small_cmanp(bound_std=True)
    with torch.no_grad():
        model.head.mlp[-1].bias.fill_(-50.0)
    x, y = random_points(2, 5)
    assert_close(model(x, y, x).stddev, torch.full((2, 5, 1), 0.05))


def test_samples_have_the_moments_of_the_prediction() -> None:
    model = small_cmanp(dim_y=2)
    state = model.condition(*random_points(3, 5, dim_y=2))
    xt, _ = random_points(3, 4)
    prediction = model.query(state, xt)
    number = 20_000
    samples = model.sample(state, xt, number)
    assert samples.shape == (number, 3, 4, 2)
    assert model.sample(state, xt).shape == (1, 3, 4, 2)
    standard_error = prediction.stddev / number**0.5
    assert ((samples.mean(0) - prediction.mean).abs() < 5 * standard_error).all()
    assert ((samples.std(0) - prediction.stddev).abs() < 5 * standard_error / 2**0.5).all()
    residuals = ((samples - prediction.mean) / prediction.stddev).flatten(1)
    correlation = residuals.T @ residuals / number
    assert ((correlation - torch.eye(24)).abs() < 5 * (2 / number) ** 0.5).all()


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "norm_residual": False}])
def test_the_loss_gives_every_parameter_a_gradient(options: dict[str, bool]) -> None:
    model = small_cmanp(**options).train()
    model.loss(random_task()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@DTYPES
def test_gradients_through_chunks_equal_gradients_at_once(dtype: torch.dtype) -> None:
    model = small_cmanp(dtype=dtype)
    task = random_task(context=9, dtype=dtype)
    parameters = list(model.parameters())

    def gradients(chunk_size: int | None) -> tuple[Tensor, ...]:
        state = model.condition(task.xc, task.yc, chunk_size=chunk_size)
        log_density = model.query(state, task.xt).log_prob(task.yt)
        return torch.autograd.grad(log_density.mean(), parameters)

    at_once = gradients(None)
    for chunk_size in (1, 4):
        for ours, theirs in zip(gradients(chunk_size), at_once):
            assert_close(ours, theirs)


def test_a_mass_channel_streams_and_trains_in_chunks_too() -> None:
    """Predictions and gradients are those of all points at once; more of the same points differ."""
    task, results = random_task(2, 9, 5, dtype=torch.float64), []
    for chunk_size in (None, 4):
        torch.manual_seed(0)
        model = small_cmanp(dtype=torch.float64, with_mass=True, context_chunk_size=chunk_size)
        for block in model.blocks:
            torch.nn.init.normal_(block.mass.project.weight)
        loss = model.train().loss(task)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for mine, theirs in zip(*results, strict=True):
        assert_close(mine, theirs, 1e-9)
    once, twice = (
        model.marginals(model.condition(task.xc.repeat(1, n, 1), task.yc.repeat(1, n, 1)), task.xt)
        for n in (1, 2)
    )
    assert (once.mean - twice.mean).abs().max() > 1e-6


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor made inside the block; `given` and views of it do not count."""

    def __init__(self, given: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.nbytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.given:
                    self.nbytes = max(self.nbytes, storage.nbytes())
        return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", ["chunk_size", "iterable"])
def test_the_largest_tensor_of_conditioning_does_not_grow_with_the_context(
    way: str, masked: bool
) -> None:
    model = small_cmanp()

    def largest(num_points: int) -> int:
        x, y = random_points(1, num_points)
        mask = torch.arange(num_points)[None] % 3 > 0 if masked else None
        windows = [slice(start, start + 500) for start in range(0, num_points, 500)]
        with torch.no_grad(), LargestTensor((x, y, mask) if masked else (x, y)) as peak:
            if way == "chunk_size":
                model.condition(x, y, mask, chunk_size=500)
            elif masked:
                model.condition((x[:, w], y[:, w], mask[:, w]) for w in windows)
            else:
                model.condition((x[:, w], y[:, w]) for w in windows)
        return peak.nbytes

    assert largest(20_000) == largest(2_000)


def test_the_largest_tensor_of_conditioning_at_once_does_grow() -> None:
    """So that the test above is known to look at the right thing."""
    model = small_cmanp()
    sizes = []
    for num_points in (2_000, 20_000):
        x, y = random_points(1, num_points)
        with torch.no_grad(), LargestTensor((x, y)) as peak:
            model.condition(x, y, chunk_size=num_points)
        sizes.append(peak.nbytes)
    assert sizes[1] == 10 * sizes[0]


def test_the_state_is_float32_under_autocast() -> None:
    model = small_cmanp()
    with torch.autocast("cpu", torch.bfloat16):
        state = model.condition(*random_points(2, 5))
        state = model.update(state, *random_points(2, 3))
    assert state.attention.lse.dtype == state.attention.out.dtype == torch.float32
