r"""Softmax attention with a bias of positions, a chunk of pairs at a time.

$$\mathrm{out}_i = \sum_j \mathrm{softmax}_j\big(q_i \cdot k_j / \sqrt{d} + \beta(x_i, x_j)\big)\,
  v_j$$

No matrix of queries × keys is ever whole, neither of scores nor of biases: the state of each chunk
of queries, an `AttentionState`, absorbs one chunk of keys after another, and backward computes the
bias of each chunk again. Memory is that of one chunk; the operations are those of full attention.
"""

from collections.abc import Callable, Iterator
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from npbench.attention.backward import attention_backward
from npbench.attention.kernels import attend, attention_with_lse, score_bias
from npbench.attention.multihead import MultiheadAttention
from npbench.attention.pair_bias import SummedBias
from npbench.attention.state import AttentionState
from npbench.errors import InputError

# The scores of one chunk over all tasks and heads, and the most queries or points of it: so many as
# the caches of a CPU hold, or as keep a GPU busy.
_CHUNK_OF_A_CPU, _CHUNK_OF_A_GPU = (2**18, 512), (2**24, 4096)


def scan_attention(
    q: Float[Tensor, "batch heads queries dim_head"],
    k: Float[Tensor, "batch heads points dim_head"],
    v: Float[Tensor, "batch heads points dim_head"],
    bias: Any,
    x_queries: Float[Tensor, "batch queries dim_x"],
    x_points: Float[Tensor, "batch points dim_x"],
    mask: Bool[Tensor, "batch points"] | None = None,
    chunk: tuple[int, int] | None = None,
) -> Float[Tensor, "batch heads queries dim_head"]:
    """Softmax attention with the bias of positions, in bounded memory; in float32 at least.

    A query that sees no point gets 0. Gradients are exact: of q, k, v, of both positions and of the
    parameters of the bias. On CUDA, where positions and bias need no gradients, it is
    `flex_attention`, whose kernel computes each bias; there, those of a bias would take ten times
    as long as chunks do.

    Args:
        q: queries.
        k: keys of the points.
        v: values of the points.
        bias: of positions, as `SummedBias` is.
        x_queries: where the queries are.
        x_points: where the points are.
        mask: True where a point is real.
        chunk: how many queries and points make one chunk; by default as caches like it.

    Raises:
        InputError: if a chunk is empty.

    Source: Rabe and Staats, *Self-attention Does Not Need O(n²) Memory*, 2021; Dao et al.,
    *FlashAttention*, NeurIPS 2022, for the backward.

    Example:
        >>> from npbench.attention.bias_spec import Bias
        >>> from npbench.attention.pair_bias import SummedBias
        >>> q, k, v = torch.randn(3, 1, 4, 100, 16)
        >>> bias, x = SummedBias([Bias().build(num_heads=4, dim_x=2)]), torch.randn(1, 100, 2)
        >>> whole = scan_attention(q, k, v, bias, x, x)
        >>> torch.allclose(scan_attention(q, k, v, bias, x, x, chunk=(7, 32)), whole, atol=1e-5)
        True
    """
    if chunk is not None and min(chunk) < 1:
        raise InputError(
            f"chunk={chunk} must be two numbers of 1 or more: of queries and of points"
        )
    if chunk is None and _has_flex(q, k, x_queries, x_points, *bias.parameters()):
        return _compiled_flex_attention()(
            q, k, v, score_mod=score_mod(bias, x_queries, x_points, mask)
        )
    # An exported program takes any numbers of queries and points, and so cannot count chunks.
    is_whole = torch.compiler.is_exporting()
    if not is_whole:
        rows, columns = _chunk(q, k) if chunk is None else chunk
        is_whole = q.shape[-2] <= rows and k.shape[-2] <= columns
    if is_whole:
        return _absorb(q, k, v, mask, bias(x_queries, x_points), bias.hides).out
    names, parameters = zip(*bias.named_parameters())
    layout = _Layout(bias, names, (rows, columns))
    return _Scan.apply(layout, q, k, v, x_queries, x_points, mask, *parameters)


class ScanAttention(MultiheadAttention):
    r"""Multi-head attention whose scores get a bias of positions added: see `scan_attention`.

    Args:
        dim_model: width of queries, context and output.
        num_heads: number of heads.
        dim_head: width of each head's queries, keys and values.
        bias: of positions, or None.
    """

    def __init__(
        self, dim_model: int, num_heads: int, dim_head: int, bias: SummedBias | None
    ) -> None:
        super().__init__(dim_model, num_heads, bias=True, dim_head=dim_head)
        self.bias = bias

    def keep(
        self,
        context: Float[Tensor, "batch points dim_model"],
        x: Float[Tensor, "batch points dim_x"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> Float[Tensor, "batch points dim_model"]:
        """What `forward` needs of a context: all of it."""
        return context

    def forward(
        self,
        h: Float[Tensor, "batch queries dim_model"],
        x: Float[Tensor, "batch queries dim_x"],
        kept: Float[Tensor, "batch points dim_model"],
        x_points: Float[Tensor, "batch points dim_x"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        q, (k, v) = self.queries(h), self.keys_values(kept)
        if self.bias is None:
            return self.join(attend(q, k, v, None if mask is None else mask[:, None]))
        return self.join(scan_attention(q, k, v, self.bias, x, x_points, mask))


class _Layout(NamedTuple):
    """What of a scan is no tensor."""

    bias: Any
    names: tuple[str, ...]
    chunk: tuple[int, int]

    def bias_of(self, parameters: tuple[Tensor, ...], a: Tensor, b: Tensor) -> Tensor:
        return functional_call(self.bias, dict(zip(self.names, parameters)), (a, b))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: _Layout,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x_queries: Tensor,
        x_points: Tensor,
        mask: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        states: list[AttentionState] = []
        for rows in _windows(q.shape[-2], layout.chunk[0]):
            parts = (
                _absorb(
                    q[..., rows, :],
                    k[..., columns, :],
                    v[..., columns, :],
                    None if mask is None else mask[:, columns],
                    layout.bias_of(parameters, x_queries[:, rows], x_points[:, columns]),
                    layout.bias.hides,
                )
                for columns in _windows(k.shape[-2], layout.chunk[1])
            )
            states.append(reduce(AttentionState.merge, parts))
        lse = torch.cat([state.lse for state in states], dim=-1)
        out = torch.cat([state.out for state in states], dim=-2)
        ctx.layout = layout
        ctx.save_for_backward(q, k, v, x_queries, x_points, mask, lse, out, *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple:
        q, k, v, x_queries, x_points, mask, lse, out, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad
        of_bias = any(needed[4:])
        grads = [torch.zeros_like(z) for z in (q, k, v, x_queries, x_points, *parameters)]
        for rows in _windows(q.shape[-2], ctx.layout.chunk[0]):
            for columns in _windows(k.shape[-2], ctx.layout.chunk[1]):
                with torch.enable_grad():
                    sources = [
                        z.detach().requires_grad_(of_bias)
                        for z in (x_queries[:, rows], x_points[:, columns], *parameters)
                    ]
                    bias = ctx.layout.bias_of(tuple(sources[2:]), *sources[:2])
                real = None if mask is None else mask[:, columns]
                *of_qkv, grad_bias = attention_backward(
                    q[..., rows, :], k[..., columns, :], v[..., columns, :],
                    score_bias(real, bias.detach(), q.dtype), lse[..., rows], out[..., rows, :],
                    None, grad_out[..., rows, :], of_bias,
                )  # fmt: skip
                for total, window, part in zip(grads, (rows, columns, columns), of_qkv):
                    total[..., window, :] += part
                if grad_bias is not None:
                    of_x, of_points, *of_parameters = torch.autograd.grad(
                        bias, sources, grad_bias.to(bias.dtype), materialize_grads=True
                    )
                    grads[3][:, rows] += of_x
                    grads[4][:, columns] += of_points
                    for total, part in zip(grads[5:], of_parameters):
                        total += part
        of_mask = None
        results = (*grads[:5], of_mask, *grads[5:])
        return None, *(grad if need else None for grad, need in zip(results, needed[1:]))


def _absorb(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor, hides: bool
) -> AttentionState:
    """The state of one chunk of queries after one chunk of points."""
    if not hides:
        return AttentionState.from_chunk(q, k, v, mask, bias)
    # A fused kernel gives no log-sum-exp where a query sees no point at all.
    return AttentionState(*attention_with_lse(q, k, v, score_bias(mask, bias, q.dtype)))


def _windows(size: int, chunk: int) -> Iterator[slice]:
    """`range(size)` in pieces; one empty piece, if there is nothing."""
    for start in range(0, max(1, size), chunk):
        yield slice(start, start + chunk)


def _chunk(q: Tensor, k: Tensor) -> tuple[int, int]:
    """Numbers of queries and of points whose scores are those of the constants above."""
    scores, side = _CHUNK_OF_A_CPU if q.device.type == "cpu" else _CHUNK_OF_A_GPU
    num_keys = max(1, min(k.shape[-2], side))
    rows = scores // (q.shape[0] * q.shape[1] * num_keys)
    return max(32, min(side, rows)), num_keys


def score_mod(
    bias: Any,
    x_queries: Float[Tensor, "batch queries dim_x"],
    x_points: Float[Tensor, "batch points dim_x"],
    mask: Bool[Tensor, "batch points"] | None,
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What `flex_attention` does to the score of a pair: it adds the bias, or −∞ at padding."""
    dim_x = x_queries.shape[-1]
    real = x_points.new_ones(x_points.shape[:2], dtype=torch.bool) if mask is None else mask
    parts = bias.parts()
    # Where queries and points are the same tensor, another kernel would be compiled.
    x_points = x_points.clone()

    def modify(score: Tensor, task: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query = [x_queries[task, i, column] for column in range(dim_x)]
        point = [x_points[task, j, column] for column in range(dim_x)]
        score = score + bias.of_pairs(query, point, [part[head] for part in parts])
        return torch.where(real[task, j], score, -torch.inf)

    return modify


def _has_flex(q: Tensor, k: Tensor, *of_bias: Tensor) -> bool:
    """Whether `flex_attention` has a fast kernel for these: not where the bias has a gradient."""
    if not q.is_cuda or q.dtype == torch.float64 or k.shape[-2] == 0:
        return False
    return not (torch.is_grad_enabled() and any(z.requires_grad for z in of_bias))


@cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
