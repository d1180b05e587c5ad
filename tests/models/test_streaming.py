"""Training at constant memory: the gradients of ordinary autograd, a chunk at a time."""

import pytest
import torch
from helpers import assert_close, few_examples, random_points, random_task, small_cmanp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from npbench.attention import AttentionState, kernels
from npbench.models import CMANP
from npbench.models.contracts.points import Points
from npbench.models.streaming import PointReader
from npbench.profiling import LiveTensors
from npbench.task import Task


@pytest.fixture(params=["fused", "public"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "public":
        monkeypatch.setattr(kernels, "_HAS_FUSED_KERNEL", False)
    return request.param


def reader_of(model: CMANP) -> PointReader:
    return PointReader(model.embed_points, model.blocks)


def gradients(model: CMANP, state: AttentionState, points: Points) -> list[Tensor]:
    """Of a function in which every number of the state has a part."""
    torch.manual_seed(7)
    lse = state.lse.masked_fill(torch.isneginf(state.lse), 0.0)
    loss = (torch.randn_like(lse) * lse).sum() + (torch.randn_like(state.out) * state.out).sum()
    inputs = [points.x, points.y, *(p for p in model.parameters())]
    return [g for g in torch.autograd.grad(loss, inputs, allow_unused=True) if g is not None]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_it_reads_for_all_blocks_what_each_would_read_by_itself(
    qk_norm: bool, masked: bool
) -> None:
    model = small_cmanp(qk_norm=qk_norm, dtype=torch.float64)
    for block in model.blocks:  # norms as after training
        for parameter in block.attend_points.norm_context.parameters():
            nn.init.normal_(parameter)
    mask = torch.rand(3, 9) < 0.6 if masked else None
    points = Points(*random_points(3, 9, dtype=torch.float64), mask)
    embedding = model.embed_points(points.xy)
    state = reader_of(model).absorb(points)
    for i, block in enumerate(model.blocks):
        expected = block.absorb(embedding, mask)
        assert_close(state[i].lse, expected.lse)
        assert_close(state[i].out, expected.out)


@pytest.mark.usefixtures("kernel")
@given(
    chunk_size=st.integers(1, 12),
    number=st.integers(1, 12),
    masked=st.booleans(),
    qk_norm=st.booleans(),
    seed=st.integers(0, 1000),
)
@few_examples
def test_chunks_have_the_state_and_the_gradients_of_the_whole(
    chunk_size: int, number: int, masked: bool, qk_norm: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model = small_cmanp(qk_norm=qk_norm, dtype=torch.float64)
    x, y = (z.requires_grad_() for z in random_points(3, number, dtype=torch.float64))
    mask = None
    if masked:
        mask = torch.rand(3, number) < 0.6
        mask[0] = False  # a task without points
    points, reader = Points(x, y, mask), reader_of(model)
    whole, folded = reader.absorb(points), reader.fold(points, chunk_size)
    assert_close(folded.lse, whole.lse)
    assert_close(folded.out, whole.out)
    for mine, theirs in zip(
        gradients(model, folded, points), gradients(model, whole, points), strict=True
    ):
        assert_close(mine, theirs)


@pytest.mark.usefixtures("kernel")
def test_the_gradients_are_those_of_finite_differences() -> None:
    model = small_cmanp(
        dim_model=4, num_heads=1, num_layers=1, num_block_latents=2, dtype=torch.float64
    )
    x, y = (z.requires_grad_() for z in random_points(1, 3, dtype=torch.float64))
    embed = model.embed_points[0].weight

    def fold(x: Tensor, y: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        state = reader_of(model).fold(Points(x, y), 2)
        return state.lse, state.out

    assert torch.autograd.gradcheck(fold, (x, y, embed))


class KernelBias(nn.Module):
    """A kernel of the distance to places in input space, for each block, head and latent."""

    def __init__(self, model: CMANP) -> None:
        super().__init__()
        block = model.blocks[0]
        heads, latents = block.attend_points.attention.num_heads, len(block.latents)
        self.places = nn.Parameter(torch.randn(len(model.blocks), 1, heads, latents, 1))
        self.log_length = nn.Parameter(torch.randn(len(model.blocks), 1, heads, 1, 1))
        self.to(model.latents.dtype)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(x.shape[1])
        return -((x[None, :, None, None, :, 0] - self.places) / self.log_length.exp()).square()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_has_its_gradient_in_chunks_too(masked: bool) -> None:
    """The state, and the gradients of points, weights and bias, are those of naive attention."""
    model = small_cmanp(dtype=torch.float64)
    bias = KernelBias(model)
    reader = PointReader(model.embed_points, model.blocks, bias)
    x, y = (z.requires_grad_() for z in random_points(3, 11, dtype=torch.float64))
    mask = torch.rand(3, 11) < 0.6 if masked else None
    points = Points(x, y, mask)
    naive = []
    for block, added in zip(model.blocks, bias(x)):
        layer, padding = block.attend_points, 0.0 if mask is None else mask.log()[:, None, None]
        k, v = layer.keys_values_of(model.embed_points(points.xy))
        scores = layer.queries_of(block.latents) @ k.mT / k.shape[-1] ** 0.5 + added + padding
        naive.append(AttentionState(scores.logsumexp(-1), scores.softmax(-1) @ v))
    bias.sizes.clear()
    states = [AttentionState.stack(naive), reader.absorb(points), reader.fold(points, 4)]
    found = []
    for state in states:
        loss = state.lse.sin().sum() + state.out.cos().sum()
        found.append(torch.autograd.grad(loss, [x, y, *reader.parameters()]))
    for state, grads in zip(states[1:], found[1:]):
        assert_close(state.lse, states[0].lse)
        assert_close(state.out, states[0].out)
        for mine, theirs in zip(grads, found[0], strict=True):
            assert mine.any()
            assert_close(mine, theirs)
    # At once, then in chunks forward and in chunks backward: never for all points together.
    assert bias.sizes == [11, 4, 4, 3, 4, 4, 3]


@pytest.mark.usefixtures("kernel")
def test_a_fixed_bias_takes_no_gradient() -> None:
    model = small_cmanp(dtype=torch.float64)
    bias = KernelBias(model).requires_grad_(False)
    reader = PointReader(model.embed_points, model.blocks, bias)
    points = Points(*random_points(2, 9, dtype=torch.float64))
    trained = [p for p in reader.parameters() if p.requires_grad]
    whole, folded = (
        torch.autograd.grad(state.out.square().sum(), trained)
        for state in (reader.absorb(points), reader.fold(points, 4))
    )
    for mine, theirs in zip(folded, whole, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_in_chunks_is_training(dtype: torch.dtype) -> None:
    """Context and targets in chunks: the loss and every parameter's gradient."""
    plain = small_cmanp(dim_x=2, dim_y=3, dtype=dtype).train()
    chunked = small_cmanp(dim_x=2, dim_y=3, dtype=dtype, context_chunk_size=4).train()
    chunked.load_state_dict(plain.state_dict())
    task = random_task(3, 11, 10, dim_x=2, dim_y=3, dtype=dtype)
    losses = [model.loss(task) for model in (plain, chunked)]
    assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(chunked.parameters(), plain.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("trained", ["latents", "embed_points.0", "to_kv", "decoder"])
def test_what_is_frozen_stays_out_of_it(trained: str) -> None:
    plain, chunked = (
        small_cmanp(dtype=torch.float64, context_chunk_size=size).train() for size in (None, 4)
    )
    chunked.load_state_dict(plain.state_dict())
    task = random_task(2, 11, 5, dtype=torch.float64)
    for model in (plain, chunked):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
        model.loss(task).backward()
    for mine, theirs in zip(chunked.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            assert_close(mine.grad, theirs.grad)


def test_an_iterable_of_chunks_trains_too() -> None:
    model = small_cmanp(dtype=torch.float64, context_chunk_size=4)
    x, y = random_points(2, 9, dtype=torch.float64)
    whole, chunks = model.condition(x, y), [(x[:, :5], y[:, :5]), (x[:, 5:], y[:, 5:])]
    by_chunk = model.condition(iter(chunks))
    for mine, theirs in zip(by_chunk.tensors(), whole.tensors(), strict=True):
        assert_close(mine, theirs)
    assert by_chunk.latents.requires_grad


def test_updating_in_chunks_trains_too() -> None:
    model = small_cmanp(dtype=torch.float64, context_chunk_size=4)
    x, y = random_points(2, 15, dtype=torch.float64)
    updated = model.update(model.condition(x[:, :3], y[:, :3]), x[:, 3:], y[:, 3:])
    assert_close(updated.latents, model.condition(x, y).latents)


@pytest.mark.slow
def test_a_training_step_s_memory_does_not_grow_with_context_or_targets() -> None:
    model = small_cmanp(context_chunk_size=100).train()

    def peak(context: int, target: int) -> int:
        task = Task(*random_points(1, context), *random_points(1, target))
        model.zero_grad(set_to_none=True)
        with LiveTensors() as live:
            model.loss(task).backward()
        return live.peak_bytes

    peak(200, 200)
    raw = 2 * 4  # bytes of a target's moments, as often as they or their gradients are held
    assert peak(8000, 200) == peak(1000, 200)
    assert peak(200, 8000) - peak(200, 1000) <= 7000 * 4 * raw


@pytest.mark.parametrize("size", [None, 100])
@pytest.mark.parametrize("verb", ["update", "forget"])
def test_the_memory_of_new_points_does_not_grow_with_their_number(
    verb: str, size: int | None
) -> None:
    model = small_cmanp(context_chunk_size=size, dtype=torch.float64)

    def peak(number: int) -> int:
        x, y = random_points(1, number, dtype=torch.float64)
        with torch.no_grad():
            state = model.update(model.condition(x, y), *random_points(1, 90, dtype=torch.float64))
            with LiveTensors() as live:
                getattr(model, verb)(state, x[:, 50:], y[:, 50:])
        return live.peak_bytes

    assert peak(9000) == peak(3000)


@pytest.mark.parametrize(
    ("gradients", "size", "at_a_time"),
    [(False, None, 512), (False, 200, 200), (True, None, 1299), (True, 200, 200)],
)
def test_the_table_of_points_at_a_time_holds(
    gradients: bool, size: int | None, at_a_time: int
) -> None:
    """That of the docstring of CMANP."""
    x, y = random_points(1, 1300)
    model, seen = small_cmanp(context_chunk_size=size), []
    with torch.set_grad_enabled(gradients):
        state = model.condition(x[:, :1], y[:, :1])
        model.embed_points.register_forward_hook(lambda *args: seen.append(args[2].shape[1]))
        model.update(state, x[:, 1:], y[:, 1:])
    assert max(seen) == at_a_time
    assert sum(seen) == 1299


def test_autocast_is_the_same_in_backward() -> None:
    plain, chunked = small_cmanp().train(), small_cmanp(context_chunk_size=4).train()
    chunked.load_state_dict(plain.state_dict())
    task = random_task(2, 11, 5)
    for model in (plain, chunked):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(task)
        loss.backward()
    for mine, theirs in zip(chunked.parameters(), plain.parameters(), strict=True):
        # bfloat16 keeps 8 bits.
        assert (mine.grad - theirs.grad).norm() <= 0.05 * theirs.grad.norm() + 1e-3


@pytest.mark.usefixtures("as_a_user")
def test_a_chunk_holds_one_point_at_least() -> None:
    with pytest.raises(ValueError, match="context_chunk_size=0 must be 1 or more"):
        small_cmanp(context_chunk_size=0)
