"""Softmax attention on fused kernels, with and without the log-sum-exp of its scores.

Here is the one private operator of npbench: torch's fused attention on a CPU, which returns the
log-sum-exp that the public function keeps to itself. `attention_with_lse` is the same from public
operations, for every other device and for a torch without it; `python -m benchmarks.attention`
measures one against the other.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# It is private, so that a release of torch may be without it.
_HAS_FUSED_KERNEL = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def attention_with_lse(
    q: Float[Tensor, "batch heads queries dim_head"],
    k: Float[Tensor, "batch heads points dim_head"],
    v: Float[Tensor, "batch heads points dim_head"],
    bias: Float[Tensor, "#batch #heads #queries points"] | None = None,
) -> tuple[Float[Tensor, "batch heads queries"], Float[Tensor, "batch heads queries dim_head"]]:
    """(lse, out) from public operations, on any device; it forms the score matrix.

    Where every score is −∞, lse is −∞, out 0, and the gradients are 0.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).mT
        if bias is not None:
            scores = scores + bias.to(dtype)
        empty = torch.isneginf(scores).all(dim=-1, keepdim=True)
        scores = scores.masked_fill(empty, 0.0)
        lse = scores.logsumexp(dim=-1).masked_fill(empty[..., 0], -torch.inf)
        weights = scores.softmax(dim=-1).masked_fill(empty, 0.0)
        return lse, weights @ v.to(dtype)


def attention_log_weights(
    q: Float[Tensor, "*batch queries dim_head"],
    k: Float[Tensor, "*batch points dim_head"],
    bias: Tensor | None = None,
    mask: Bool[Tensor, "#batch_size #queries points"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch queries points"]:
    """The logarithms of the softmax's weights, for those who look at attention; it forms the score
    matrix. Where every score is −∞, so are they. `mask` and `scale` are as of `attend`."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    return log_normalised(scores if bias is None else scores + bias)


def log_normalised(scores: Float[Tensor, "*batch points"]) -> Float[Tensor, "*batch points"]:
    """The log-softmax over points; −∞ where every score is −∞."""
    lse = scores.logsumexp(dim=-1, keepdim=True)
    return scores - lse.masked_fill(lse.isneginf(), 0.0)


def attend(
    q: Float[Tensor, "batch heads queries dim_head"],
    k: Float[Tensor, "batch heads points dim_head"],
    v: Float[Tensor, "batch heads points dim_head"],
    mask: Bool[Tensor, "batch #queries points"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries dim_head"]:
    r"""$\mathrm{softmax}(q k^\top \cdot \mathrm{scale})\, v$ over the points that `mask` allows.

    A query that may look at no point at all gets 0. The scale is $1 / \sqrt{d}$ by default, and
    `dropout` is the rate at which weights are dropped.
    """
    if k.shape[-2] == 0:
        return torch.zeros_like(q)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    blind = ~mask.any(dim=-1, keepdim=True)
    # A softmax over nothing is NaN: blind queries look at everything, and are set to 0 afterwards.
    seen = (mask | blind)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, seen, dropout_p=dropout, scale=scale)
    return out.masked_fill(blind[:, None], 0.0)


def score_bias(
    mask: Bool[Tensor, "batch points"] | None,
    bias: Float[Tensor, "#batch heads #queries points"] | None,
    dtype: torch.dtype,
) -> Float[Tensor, "#batch #heads #queries points"] | None:
    """All that the scores get added: the bias, and −∞ at padding."""
    if bias is not None:
        bias = bias.to(dtype)
    if mask is None:
        return bias
    padding = ~mask[:, None, None, :]
    if bias is None:
        return torch.zeros_like(padding, dtype=dtype).masked_fill(padding, -torch.inf)
    return bias.masked_fill(padding, -torch.inf)


def has_fused_kernel(q: Tensor) -> bool:
    """Whether `fused_forward` and `fused_backward` take tensors of this device."""
    return _HAS_FUSED_KERNEL and q.device.type == "cpu"


def fused_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
) -> tuple[Float[Tensor, "batch heads queries"], Float[Tensor, "batch heads queries dim_head"]]:
    """(lse, out) from the fused kernel that `scaled_dot_product_attention` calls on a CPU; without
    gradients. It takes one point or more."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, attn_mask=bias, scale=q.shape[-1] ** -0.5
    )
    return lse, out


def fused_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    out: Tensor,
    grad_lse: Tensor | None,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The gradients of q, k and v from the fused kernel.

    The kernel's own backward knows the gradient of out alone. With a gradient of lse as well,
    $\partial S = P \circ (\partial O\, V^\top - D + \partial\mathrm{lse})$, where
    $D = \sum \partial O \circ O$: one more value column, 1 for every point, whose output counts as
    0 in D, adds exactly that term.
    """
    dim_head = q.shape[-1]
    if grad_lse is not None:
        q, k, out = (F.pad(tensor, (0, 1)) for tensor in (q, k, out))
        v = F.pad(v, (0, 1), value=1.0)
        grad_out = torch.cat([grad_out, grad_lse[..., None].to(grad_out.dtype)], dim=-1)
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=dim_head**-0.5
    )
    return tuple(gradient[..., :dim_head] for gradient in gradients)
