"""One context over several processes: 2 and 4 of them, which all checks share.

Every process draws the same points and knows what one process makes of all of them.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import reduce
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import (
    assert_close,
    assert_same_prediction,
    assert_same_record,
    random_points,
    sharpened,
    small,
    small_cmanp,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npbench import Task
from npbench.attention import AttentionState
from npbench.distributed import all_merge
from npbench.models import CMANP, CMANPState

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float32, torch.float64)
CHECKS: list[Callable[[], None]] = []


def on_every_rank(check: Callable[[], None]) -> Callable:
    """A test that passes where the check does on each of 2, and of 4, ranks."""
    CHECKS.append(check)

    @pytest.mark.parametrize("world_size", [2, 4])
    def test(world_size: int, outcomes: Callable[[int], list[dict[str, str]]]) -> None:
        for rank, outcome in enumerate(outcomes(world_size)):
            failure = outcome.get(check.__name__, "did not run, as an earlier check failed")
            assert not failure, f"rank {rank}: {failure}"

    test.__doc__ = check.__doc__
    return test


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, str]]]:
    """What each rank reports of each check: nothing, or how it failed."""
    reports: dict[int, list[dict[str, str]]] = {}

    def run(world_size: int) -> list[dict[str, str]]:
        if world_size not in reports:
            folder = tmp_path_factory.mktemp(f"ranks-{world_size}")
            ranks = mp.start_processes(
                _all_checks, (world_size, folder), world_size, join=False, start_method="forkserver"
            )
            deadline = time.monotonic() + 60
            while not ranks.join(timeout=1) and time.monotonic() < deadline:
                pass
            for process in ranks.processes:
                process.kill()
            files = [folder / f"{rank}.pt" for rank in range(world_size)]
            reports[world_size] = [torch.load(file) if file.exists() else {} for file in files]
        return reports[world_size]

    mp.get_context("forkserver").set_forkserver_preload(["hypothesis", "torch._dynamo"])
    return run


def _all_checks(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size,
        timeout=timedelta(seconds=15),
    )  # fmt: skip
    outcomes = {}
    for check in CHECKS:
        torch.manual_seed(0)
        try:
            check()
        except Exception:
            outcomes[check.__name__] = traceback.format_exc()
            break
        outcomes[check.__name__] = ""
    torch.save(outcomes, folder / f"{rank}.pt")
    dist.destroy_process_group()


def shards(num_points: int, group: dist.ProcessGroup | None = None) -> Iterator[slice]:
    """This rank's: of equal ones, of unequal ones that may be empty, and of all on one rank."""
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    for weights in (
        [1] * world_size,
        [(3 * i) % 4 for i in range(1, world_size + 1)],
        [0] * (world_size - 1) + [1],
        [1] + [0] * (world_size - 1),
    ):
        cuts = [num_points * total // sum(weights) for total in accumulate(weights, initial=0)]
        yield slice(cuts[rank], cuts[rank + 1])


def model_of(dtype: torch.dtype, chunk_size: int | None = None) -> CMANP:
    """In float64, one whose predictions move with every point; float32 would round too much."""
    model = small_cmanp(2, 3, dtype, context_chunk_size=chunk_size)
    if dtype == torch.float64:
        sharpened(model, model.head.mlp[-1].weight[:3], 3.0)
    return model


def task_of(dtype: torch.dtype, context: int = 13, target: int = 8, batch: int = 3) -> Task:
    points = (random_points(batch, number, 2, 3, dtype) for number in (context, target))
    return Task(*(z for pair in points for z in pair))


def targets_of(task: Task, split: bool) -> slice:
    """This rank's share of the targets, or all of them."""
    size = task.xt.shape[1] // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size) if split else slice(None)


def merged_state(
    model: CMANP, task: Task, shard: slice, group: dist.ProcessGroup | None = None
) -> CMANPState:
    return model.all_merge(model.condition(task.xc[:, shard], task.yc[:, shard]), group)


def loss_at(model: CMANP, state: CMANPState, task: Task, targets: slice = slice(None)) -> Tensor:
    return -model.query(state, task.xt[:, targets]).log_prob(task.yt[:, targets]).mean()


def gradients_of(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(p.grad for p in model.parameters())


def mean_over_ranks(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    values = values.clone()
    dist.all_reduce(values, group=group)
    return values / dist.get_world_size(group)


class Collectives(TorchDispatchMode):
    """The name of each collective operation inside the block, and the bytes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.calls.append((function.__name__, sum(tensor.nbytes for tensor in tensors)))
        return function(*args, **(kwargs or {}))


@on_every_rank
def test_the_merged_state_predicts_as_one_process_with_all_points() -> None:
    """Batches of tasks, equal, unequal and empty shards, in float32 and float64."""
    for dtype, shard in product(DTYPES, shards(13)):
        model, task = model_of(dtype), task_of(dtype)
        at_once = model.condition(task.xc, task.yc)
        state = merged_state(model, task, shard)
        for mine, expected in zip(state.tensors(), at_once.tensors(), strict=True):
            assert_close(mine, expected)
        assert_same_prediction(model.query(state, task.xt), model.query(at_once, task.xt))
        assert_close(loss_at(model, state, task), model.loss(task))


@on_every_rank
def test_all_ranks_hold_the_same_state_to_the_last_bit() -> None:
    for shard in shards(13):
        model, task = model_of(torch.float32), task_of(torch.float32)
        for mine in merged_state(model, task, shard).tensors():
            first = mine.detach().clone()
            dist.broadcast(first, src=0)
            assert torch.equal(mine, first)


@on_every_rank
def test_padding_may_leave_a_task_without_points_on_a_rank() -> None:
    model, task = model_of(torch.float64), task_of(torch.float64)
    mask = torch.arange(13) < torch.tensor([[0], [4], [13]])
    for shard in shards(13):
        x, y = task.xc[:, shard], task.yc[:, shard]
        state = model.all_merge(model.condition(x, y, mask[:, shard]))
        expected = model(task.xc, task.yc, task.xt, mask)
        assert_same_prediction(model.query(state, task.xt), expected)


@on_every_rank
def test_empty_shards_alone_give_the_prior() -> None:
    """With finite gradients."""
    model, task = model_of(torch.float64), task_of(torch.float64, context=0)
    state = merged_state(model, task, slice(None))
    assert_same_prediction(model.query(state, task.xt), model(task.xc, task.yc, task.xt))
    loss_at(model, state, task).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@on_every_rank
def test_gradients_averaged_over_ranks_are_those_of_the_mean_loss() -> None:
    """With targets shared out or the same for all, chunk by chunk too."""
    for dtype, (split, chunk_size) in product(DTYPES, ((True, None), (False, 2))):
        model, task = model_of(dtype, chunk_size), task_of(dtype)
        whole = model_of(dtype)
        whole.load_state_dict(model.state_dict())
        expected_loss = whole.loss(task)
        expected_loss.backward()
        for shard in shards(13):
            model.zero_grad(set_to_none=False)
            loss = loss_at(model, merged_state(model, task, shard), task, targets_of(task, split))
            loss.backward()
            assert_close(mean_over_ranks(loss.detach()), expected_loss.detach())
            assert_close(mean_over_ranks(gradients_of(model)), gradients_of(whole))


@on_every_rank
def test_the_points_of_a_shard_get_the_gradient_of_the_sum_of_losses() -> None:
    model, task = model_of(torch.float64), task_of(torch.float64)
    x, y = (z.clone().requires_grad_() for z in (task.xc, task.yc))
    loss = loss_at(model, model.condition(x, y), task)
    expected = torch.autograd.grad(loss * dist.get_world_size(), [x, y])
    for shard in shards(13):
        mine = [z[:, shard].clone().requires_grad_() for z in (task.xc, task.yc)]
        state = model.all_merge(model.condition(*mine))
        loss = loss_at(model, state, task, targets_of(task, split=True))
        loss.backward()
        for z, of_all in zip(mine, expected, strict=True):
            assert_close(torch.zeros_like(z) if z.grad is None else z.grad, of_all[:, shard])


@on_every_rank
def test_both_parts_of_a_state_carry_gradients() -> None:
    """Those of a loss that differs by rank; where nothing was attended to, there are none."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    parts = torch.randn(world_size, 3, 4, 6, dtype=torch.float64)
    parts[0, :, 0, 0] = parts[-1, :, 1, 0] = parts[:, :, 2, 0] = -torch.inf
    parts[..., 1:].masked_fill_(parts[..., :1].isneginf(), 0.0)
    parts.requires_grad_()
    weights = torch.randn(world_size, 3, 4, 6, dtype=torch.float64)

    def loss(state: AttentionState, weight: Tensor) -> Tensor:
        lse = state.lse.masked_fill(state.lse.isneginf(), 0.0)
        return (weight[..., 0] * lse).sum() + (weight[..., 1:] * state.out).sum()

    states = [AttentionState(z[..., 0], z[..., 1:]) for z in parts]
    at_once = reduce(AttentionState.merge, states)
    (expected,) = torch.autograd.grad(loss(at_once, weights.sum(dim=0)), parts, retain_graph=True)
    merged = all_merge(states[rank])
    assert_same_record(merged, at_once)
    (mine,) = torch.autograd.grad(loss(merged, weights[rank]), parts)
    assert_close(mine[rank], expected[rank])


@on_every_rank
def test_a_rank_whose_state_needs_no_gradient_helps_the_others_to_theirs() -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    parts = torch.randn(world_size, 3, 4, 6, dtype=torch.float64).requires_grad_()
    at_once = reduce(AttentionState.merge, [AttentionState(z[..., 0], z[..., 1:]) for z in parts])
    (expected,) = torch.autograd.grad(at_once.out.square().sum() * world_size, parts)
    mine = parts[rank].detach().requires_grad_(rank > 0)
    all_merge(AttentionState(mine[..., 0], mine[..., 1:])).out.square().sum().backward()
    if rank > 0:
        assert_close(mine.grad, expected[rank])


@on_every_rank
def test_evaluation_records_no_gradients() -> None:
    model, task = model_of(torch.float64), task_of(torch.float64)
    expected = model(task.xc, task.yc, task.xt)
    for shard, without in product(shards(13), (torch.no_grad, torch.inference_mode)):
        with without():
            prediction = model.query(merged_state(model, task, shard), task.xt)
        assert not prediction.mean.requires_grad
        assert_same_prediction(prediction, expected)


class ShardedLoss(nn.Module):
    """What `DistributedDataParallel` wraps: from a shard to the loss at some targets, or none."""

    def __init__(self, model: CMANP) -> None:
        super().__init__()
        self.model = model

    def forward(self, task: Task, shard: slice, targets: slice) -> Tensor:
        state = merged_state(self.model, task, shard)
        if task.xt[:, targets].shape[1] == 0:
            return 0.0 * state.latents.sum()
        return loss_at(self.model, state, task, targets)


@on_every_rank
def test_steps_under_distributed_data_parallel_are_those_of_one_process() -> None:
    """Many buckets of gradients, whose collectives must not get in between; with targets shared
    out, or all of them on the last rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for split, shard in product((True, False), shards(13)):
        whole, model = model_of(torch.float64), model_of(torch.float64, chunk_size=2)
        whole.load_state_dict(model.state_dict())
        parallel = DistributedDataParallel(ShardedLoss(model), bucket_cap_mb=0.01)
        steps = [torch.optim.SGD(z.parameters(), lr=0.1) for z in (whole, model)]
        last = slice(None) if rank == world_size - 1 else slice(0)
        for _ in range(2):
            task = task_of(torch.float64)
            targets = targets_of(task, split=True) if split else last
            loss = parallel(task, shard, targets) * (1 if split else world_size)
            for loss_, step in zip((whole.loss(task), loss), steps):
                step.zero_grad()
                loss_.backward()
                step.step()
        for mine, expected in zip(model.parameters(), whole.parameters(), strict=True):
            assert_close(mine, expected)


@on_every_rank
def test_one_collective_each_way_whose_size_the_context_does_not_change() -> None:
    world_size = dist.get_world_size()
    for num_points in (0, 4, 400):
        model, task = model_of(torch.float32, chunk_size=50), task_of(torch.float32, num_points)
        shard = next(shards(num_points))
        with Collectives() as forward:
            state = merged_state(model, task, shard)
            loss = loss_at(model, state, task)
        with Collectives() as backward:
            loss.backward()
        layers, batch, heads, queries, width = 2, 3, 2, 4, 8
        nbytes = 4 * layers * batch * heads * queries * (1 + width)
        assert forward.calls == [("allgather_.default", nbytes * (1 + world_size))]
        assert backward.calls == [("allreduce_.default", nbytes)]


@on_every_rank
def test_groups_of_ranks_split_contexts_of_their_own() -> None:
    size = dist.get_world_size() // 2
    group, groups = dist.new_subgroups(size)
    half, model = dist.get_rank() // size, model_of(torch.float64)
    task = [task_of(torch.float64) for _ in groups][half]
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model.loss(task), parameters)
    for shard in shards(13, group):
        state = merged_state(model, task, shard, group)
        assert_same_prediction(model.query(state, task.xt), model(task.xc, task.yc, task.xt))
        model.zero_grad(set_to_none=False)
        loss_at(model, state, task).backward()
        mean = mean_over_ranks(gradients_of(model), group)
        assert_close(mean, nn.utils.parameters_to_vector(expected))
    with pytest.raises(ValueError, match=f"rank {dist.get_rank()} is not in the group"):
        model.all_merge(state, groups[1 - half])


@on_every_rank
def test_cmanp_and_predicts_jointly_from_all_shards() -> None:
    model, task = small("CMANPAND"), task_of(torch.float64)
    expected = model(task.xc, task.yc, task.xt)
    for shard in shards(13):
        prediction = model.query(merged_state(model, task, shard), task.xt)
        assert_close(prediction.mean, expected.mean)
        assert_close(prediction.covariance_matrix, expected.covariance_matrix)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_single_rank_keeps_its_state_and_gradients() -> None:
    model, task = model_of(torch.float32), task_of(torch.float32)
    state = model.condition(task.xc, task.yc)
    merged = model.all_merge(state)
    assert_same_record(merged, state)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(loss_at(model, z, task), parameters, retain_graph=True)
                 for z in (merged, state)]  # fmt: skip
    for mine, expected in zip(*gradients, strict=True):
        assert_close(mine, expected)


def test_without_a_process_group_there_is_a_clear_error() -> None:
    model = small_cmanp()
    state = model.condition(*random_points(2, 3))
    with pytest.raises(ValueError, match=r"torchrun .*init_process_group\(\) in each"):
        model.all_merge(state)


# States that are sums


@on_every_rank
def test_sums_of_all_ranks_are_summed() -> None:
    """Equal, unequal and empty shards; predictions, and gradients averaged over ranks."""
    task = task_of(torch.float64)
    for name, shard in product(("SecondMomentNP", "FourierMomentNP"), shards(13)):
        model = small(name)
        task = Task(task.xc[..., : model.dim_x], task.yc, task.xt[..., : model.dim_x], task.yt)
        at_once = model.condition(task.xc, task.yc)
        state = model.all_merge(model.condition(task.xc[:, shard], task.yc[:, shard]))
        for mine, expected in zip(state.moments.tensors(), at_once.moments.tensors(), strict=True):
            assert mine.dtype == expected.dtype
            assert_close(mine, expected, 1e-10)
        gradients = []
        for each in (state, at_once):
            model.zero_grad()
            (-model.query(each, task.xt).log_prob(task.yt).mean()).backward()
            gradients.append(gradients_of(model))
        assert_close(mean_over_ranks(gradients[0]), gradients[1], 1e-8)


@on_every_rank
def test_located_latents_of_all_ranks_merge() -> None:
    """Equal, unequal and empty shards; predictions, and gradients averaged over ranks."""
    task = task_of(torch.float64)
    for shard in shards(13):
        model = small("LocatedCMANP").train()
        at_once = model.condition(task.xc, task.yc)
        state = model.all_merge(model.condition(task.xc[:, shard], task.yc[:, shard]))
        assert state.places == at_once.places
        gradients = []
        for each in (state, at_once):
            model.zero_grad()
            (-model.query(each, task.xt).log_prob(task.yt).mean()).backward()
            gradients.append(gradients_of(model))
        assert_same_prediction(model.query(state, task.xt), model.query(at_once, task.xt), 1e-9)
        assert_close(mean_over_ranks(gradients[0]), gradients[1], 1e-8)


@on_every_rank
def test_a_sum_takes_one_collective_whose_size_the_context_does_not_change() -> None:
    model, calls = small("SecondMomentNP"), []
    for number in (13, 130):
        task = task_of(torch.float64, context=number)
        state = model.condition(task.xc, task.yc)
        with Collectives() as collectives:
            model.all_merge(state)
        calls.append(collectives.calls)
    assert len(calls[0]) == 1
    assert calls[0] == calls[1]
