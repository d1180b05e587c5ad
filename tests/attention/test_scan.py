"""Attention with a bias of positions, chunk by chunk, is attention with the whole bias."""

from itertools import product

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention.flex_attention import flex_attention

from npbench.attention import attention_with_lse
from npbench.attention.bias_spec import Bias
from npbench.attention.kernels import score_bias
from npbench.attention.pair_bias import SummedBias
from npbench.attention.scan import scan_attention, score_mod

BIASES = {
    "rbf": [Bias("rbf", num_basis=3)],
    "centred": [Bias("centred_rbf", num_basis=2, columns=(0, 1))],
    "scalar": [Bias("scalar")],
    "exponential": [Bias("exponential", num_basis=2, spread=2.0)],
    "periodic": [Bias("rbf", distance="periodic", period=1.3)],
    "great-circle": [Bias("exponential", (1, 2), "great_circle", length=60.0)],
    "space and time": [Bias("rbf", (0, 1)), Bias("scalar", (2,), "causal")],
}
every_bias = pytest.mark.parametrize("name", BIASES)


def module(name: str) -> SummedBias:
    bias = SummedBias([each.build(num_heads=2, dim_x=3) for each in BIASES[name]]).double()
    for parameter in bias.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return bias


def inputs(
    queries: int = 7, points: int = 9, gradients: bool = True, shared: int = 3
) -> list[Tensor]:
    """q, k, v and both positions, some of which are the same in both."""
    tensors = [torch.randn(2, 2, size, 4).double() for size in (queries, points, points)]
    tensors += [torch.randn(2, size, 3).double() for size in (queries, points)]
    shared = min(shared, queries, points)
    tensors[3][:, :shared] = tensors[4][:, :shared]
    return [z.requires_grad_(gradients) for z in tensors]


def naive(
    q: Tensor, k: Tensor, v: Tensor, bias: nn.Module, x: Tensor, points: Tensor, mask: Tensor | None
) -> Tensor:
    return attention_with_lse(q, k, v, score_bias(mask, bias(x, points), q.dtype))[1]


@every_bias
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [None, (1, 1), (3, 4), (4, 100), (100, 100)])
def test_chunks_equal_the_whole_in_values_and_in_all_gradients(
    name: str, masked: bool, chunk: tuple[int, int] | None
) -> None:
    bias, tensors = module(name), inputs()
    mask = None
    if masked:
        mask = torch.rand(2, 9) < 0.5
        mask[1] = False
    sources = [*tensors, *bias.parameters()]
    outs = [
        naive(*tensors[:3], bias, *tensors[3:], mask),
        scan_attention(*tensors[:3], bias, *tensors[3:], mask, chunk),
    ]
    weights = torch.randn_like(outs[0])
    expected, actual = (torch.autograd.grad((out * weights).sum(), sources) for out in outs)
    assert_close(outs[1], outs[0], 1e-10)
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.isfinite(theirs).all()
        assert_close(mine, theirs, 1e-9)


@every_bias
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    bias, tensors = module(name), inputs(3, 4, shared=0)
    names = [name for name, _ in bias.named_parameters()]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = bias

        def forward(self, *tensors: Tensor) -> Tensor:
            return scan_attention(*tensors[:3], self.bias, *tensors[3:], chunk=(2, 3))

    attention = Attention()

    def with_parameters(*tensors: Tensor) -> Tensor:
        values = {f"bias.{name}": value for name, value in zip(names, tensors[5:])}
        return functional_call(attention, values, tensors[:5])

    parameters = [parameter.detach().requires_grad_() for parameter in bias.parameters()]
    assert torch.autograd.gradcheck(with_parameters, (*tensors, *parameters))


@pytest.mark.parametrize(("queries", "points"), list(product([1, 5], [0, 1, 6])))
def test_any_number_of_queries_meets_any_number_of_points(queries: int, points: int) -> None:
    bias, tensors = module("rbf"), inputs(queries, points)
    out = scan_attention(*tensors[:3], bias, *tensors[3:], chunk=(2, 2))
    assert_close(out, naive(*tensors[:3], bias, *tensors[3:], None), 1e-10)
    assert points or (out == 0).all()
    out.sum().backward()
    assert all(torch.isfinite(z.grad).all() for z in tensors)


def test_a_query_before_all_points_sees_none() -> None:
    bias, tensors = module("space and time"), inputs(gradients=False)
    tensors[3][:, 0, 2] = tensors[4][..., 2].min() - 1
    tensors[3].requires_grad_()
    out = scan_attention(*tensors[:3], bias, *tensors[3:], chunk=(2, 2))
    assert (out[:, :, 0] == 0).all()
    out.sum().backward()
    assert torch.isfinite(tensors[3].grad).all()


def test_scores_far_below_zero_lose_nothing() -> None:
    """A maximum that started near 0, or a sum that starts above it, would shrink the output."""
    bias = SummedBias([Bias("scalar").build(num_heads=2, dim_x=3)])
    q, k, v, x, points = (z.float() for z in inputs(gradients=False))
    out = scan_attention(q, k, torch.ones_like(v), bias, x + 1000, points, chunk=(3, 2))
    assert_close(out, torch.ones_like(out), 1e-6)


def test_no_tensor_is_as_large_as_queries_times_points() -> None:
    bias, tensors = module("rbf"), inputs(300, 500)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            parts = out if isinstance(out, tuple | list) else [out]
            sizes.extend(z.numel() for z in parts if isinstance(z, Tensor))
            return out

    with Sizes():
        out = scan_attention(*tensors[:3], bias, *tensors[3:], chunk=(20, 50))
        out.sum().backward()
    assert max(sizes) == 2 * 2 * 500 * 4


def test_gradients_are_none_where_none_is_asked_for() -> None:
    bias, tensors = module("rbf").requires_grad_(False), inputs(gradients=False)
    tensors[0].requires_grad_()
    scan_attention(*tensors[:3], bias, *tensors[3:], chunk=(2, 2)).sum().backward()
    assert tensors[0].grad is not None
    assert all(z.grad is None for z in [*tensors[1:], *bias.parameters()])


@pytest.mark.usefixtures("as_a_user")
def test_an_empty_chunk_is_refused() -> None:
    bias, tensors = module("rbf"), inputs()
    with pytest.raises(ValueError, match="two numbers of 1 or more"):
        scan_attention(*tensors[:3], bias, *tensors[3:], chunk=(0, 4))


@every_bias
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("as_a_user")
def test_flex_attention_gets_the_same_scores(name: str, masked: bool) -> None:
    bias, (q, k, v, x, points) = module(name), inputs(gradients=False)
    mask = (torch.rand(2, 9) < 0.7) if masked else None
    with torch.no_grad():
        out = flex_attention(q, k, v, score_mod=score_mod(bias, x, points, mask))
    assert_close(out, naive(q, k, v, bias, x, points, mask), 1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["rbf", "scalar", "space and time"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.usefixtures("as_a_user")
def test_a_gpu_gives_what_a_cpu_does(name: str, learned: bool) -> None:
    """In values and gradients, to what float32 allows: by `flex_attention`, or in chunks where the
    bias learns."""
    torch.set_float32_matmul_precision("highest")
    bias = module(name).float().requires_grad_(learned)
    tensors = [torch.randn(2, 2, size, 16) for size in (150, 200, 200)]
    x, points = torch.randn(2, 150, 3), torch.randn(2, 200, 3)
    mask, weights = torch.rand(2, 200) < 0.7, torch.randn(2, 2, 150, 16)

    def gradients(device: str) -> list[Tensor]:
        here = bias.to(device)
        here.zero_grad()
        sources = [z.to(device).detach().requires_grad_() for z in tensors]
        positions = x.to(device), points.to(device), mask.to(device)
        out = scan_attention(*sources, here, *positions)
        (out * weights.to(device)).sum().backward()
        learners = [*sources, *(here.parameters() if learned else [])]
        return [z.cpu() for z in (out.detach(), *(z.grad for z in learners))]

    for mine, theirs in zip(gradients("cuda"), gradients("cpu"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
