"""The backward pass of attention, a chunk of points at a time."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from npbench.attention.kernels import fused_backward, fused_forward, has_fused_kernel


def fused_attention_with_lse(
    q: Float[Tensor, "batch heads queries dim_head"],
    k: Float[Tensor, "batch heads points dim_head"],
    v: Float[Tensor, "batch heads points dim_head"],
    bias: Float[Tensor, "#batch #heads #queries points"] | None = None,
) -> tuple[Float[Tensor, "batch heads queries"], Float[Tensor, "batch heads queries dim_head"]]:
    """(lse, out) as of `attention_with_lse`, from the fused kernel, with gradients of all four
    arguments. It takes one point or more, on a device that `has_fused_kernel` names."""
    return _FusedAttention.apply(q, k, v, bias)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple:
        lse, out = fused_forward(q, k, v, bias)
        ctx.save_for_backward(q, k, v, bias, lse, out)
        ctx.set_materialize_grads(False)
        return lse, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse: Tensor | None, grad_out: Tensor | None) -> tuple:
        q, k, v, bias, lse, out = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        return attention_backward(
            q, k, v, bias, lse, out, grad_lse, grad_out, of_bias=ctx.needs_input_grad[3]
        )


def attention_backward(
    q: Float[Tensor, "batch heads queries dim_head"],
    k: Float[Tensor, "batch heads points dim_head"],
    v: Float[Tensor, "batch heads points dim_head"],
    bias: Float[Tensor, "#batch #heads #queries points"] | None,
    lse: Float[Tensor, "batch heads queries"],
    out: Float[Tensor, "batch heads queries dim_head"],
    grad_lse: Float[Tensor, "batch heads queries"] | None,
    grad_out: Float[Tensor, "batch heads queries dim_head"],
    of_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    r"""The gradients of q, k, v and the bias that one chunk of points contributes to.

    With lse and out O of *all* points, and their gradients:

    $$P = e^{S - \mathrm{lse}}, \qquad
      \partial S = P \circ (\partial O\, V^\top - D + \partial\mathrm{lse}), \qquad
      D = \textstyle\sum \partial O \circ O, \qquad \partial V = P^\top \partial O$$

    so that chunks need nothing of each other: the identity of flash attention's backward. ∂S is
    also the gradient of the bias. Only where that one is asked for, or there is no fused kernel,
    the matrix of scores is formed, queries × points of the chunk.

    Args:
        of_bias: whether to return the gradient of the bias, in its shape; else None.
    """
    # Where nothing was attended to, P must be e^{−∞} = 0; −∞ − (−∞) would be NaN.
    lse = lse.masked_fill(torch.isneginf(lse), 0.0)
    if has_fused_kernel(q) and not of_bias:
        out, grad_out = out.to(q.dtype), grad_out.to(q.dtype)
        return *fused_backward(q, k, v, bias, lse, out, grad_lse, grad_out), None
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    q, k, v, out, grad_out = (z.to(lse.dtype) for z in (q, k, v, out, grad_out))
    scores = (q * scale) @ k.mT
    weights = (scores if bias is None else scores + bias).sub(lse[..., None]).exp()
    shift = (grad_out * out).sum(dim=-1).neg()
    shift = shift if grad_lse is None else shift + grad_lse
    grad_scores = weights * (grad_out @ v.mT + shift[..., None])
    grads = grad_scores @ k * scale, grad_scores.mT @ q * scale, weights.mT @ grad_out
    grad_bias = grad_scores.sum_to_size(bias.shape).to(bias.dtype) if of_bias else None
    return *(grad.to(dtype) for grad in grads), grad_bias
