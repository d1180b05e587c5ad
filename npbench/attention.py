"""Multi-head attention on fused kernels, and the streaming state of cross attention.

A fixed query that attends to a set of points needs two numbers of the past per head: the
log-sum-exp of its scores, and its output. Both of a union follow from both of the parts
(Feng et al., 2024; the same identity carries flash attention).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.structure import TensorRecord

# Private, so that a release of torch may be without it.
_HAS_FUSED_KERNEL = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


@dataclass(frozen=True, eq=False)
class AttentionState(TensorRecord):
    r"""What fixed queries keep of all the points that they have attended to.

    With scores $s_j = q \cdot k_j / \sqrt{d}$:

    $$\mathrm{lse} = \log \sum_j e^{s_j}, \qquad
      \mathrm{out} = \sum_j e^{s_j - \mathrm{lse}}\, v_j$$

    States form a commutative monoid under `merge`, with identity $(-\infty, 0)$, the state of no
    points. They are held in float32 at least, under autocast too. In float32, lse of millions of
    points no longer grows by a single one: absorb so many in chunks, or in float64.

    Example:
        >>> q, k, v = torch.randn(1, 4, 8, 16), *torch.randn(2, 1, 4, 100, 16)
        >>> whole = AttentionState.from_chunk(q, k, v)
        >>> half = AttentionState.from_chunk(q, k[..., :50, :], v[..., :50, :])
        >>> both = half.update(q, k[..., 50:, :], v[..., 50:, :])
        >>> torch.allclose(both.out, whole.out, atol=1e-6)
        True
    """

    lse: Float[Tensor, "*batch queries"]
    out: Float[Tensor, "*batch queries dim_head"]

    @classmethod
    def from_chunk(
        cls,
        q: Float[Tensor, "batch heads queries dim_head"],
        k: Float[Tensor, "batch heads points dim_head"],
        v: Float[Tensor, "batch heads points dim_head"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> "AttentionState":
        """The state after attending to one chunk of points, of which `mask` marks the real ones."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        bias = _bias(mask, q.dtype)
        if _HAS_FUSED_KERNEL and q.device.type == "cpu" and k.shape[-2]:
            lse, out = _FusedAttention.apply(q, k, v, bias)
        else:
            lse, out = attention_with_lse(q, k, v, bias)
        lse, out = lse.to(dtype), out.to(dtype)
        if mask is not None:
            empty = ~mask.any(dim=-1)[:, None, None]
            lse = lse.masked_fill(empty, -torch.inf)
            out = out.masked_fill(empty[..., None], 0.0)
        return cls(lse, out)

    def merge(self, other: "AttentionState") -> "AttentionState":
        r"""The state of the union of both sets of points.

        $$\mathrm{lse}^* = \mathrm{logaddexp}(\mathrm{lse}, \mathrm{lse}'), \qquad
          \mathrm{out}^* = e^{\mathrm{lse} - \mathrm{lse}^*} \mathrm{out}
                         + e^{\mathrm{lse}' - \mathrm{lse}^*} \mathrm{out}'$$

        computed as $\mathrm{out} + w\,(\mathrm{out}' - \mathrm{out})$ with
        $w = \mathrm{sigmoid}(\mathrm{lse}' - \mathrm{lse})$: shares that sum to 1 whatever the
        rounding of lse, so that it does not grow with the number of merges.

        Raises:
            ValueError: if the two are states of different numbers of tasks or queries.
        """
        if self.lse.shape != other.lse.shape:
            raise ValueError(
                f"states of shapes {list(self.lse.shape)} and {list(other.lse.shape)} do not "
                f"merge: they must be of the same tasks and queries"
            )
        # Two empty sets: −∞ − (−∞) would be NaN, in the value and in the gradient.
        both_empty = torch.isneginf(torch.maximum(self.lse, other.lse))
        mine = self.lse.masked_fill(both_empty, 0.0)
        theirs = other.lse.masked_fill(both_empty, 0.0)
        lse = torch.logaddexp(mine, theirs).masked_fill(both_empty, -torch.inf)
        share = (theirs - mine).sigmoid()[..., None]
        return type(self)(lse, torch.lerp(self.out, other.out, share))

    def remove(
        self, other: "AttentionState"
    ) -> tuple["AttentionState", Float[Tensor, "*batch queries"]]:
        r"""The state without the points of `other`, computed in float64: the inverse of `merge`.

        $$\mathrm{lse}^* = \log(e^{\mathrm{lse}} - e^{\mathrm{lse}'}), \qquad
          \mathrm{out}^* = e^{\mathrm{lse} - \mathrm{lse}^*} \mathrm{out}
                         - e^{\mathrm{lse}' - \mathrm{lse}^*} \mathrm{out}'$$

        Returns:
            The state, and the share $e^{\mathrm{lse}^* - \mathrm{lse}}$ of the attention that is
            left. The smaller it is, the more of the rounding of both states remains: their relative
            error is divided by it. It is not positive where `other` holds more than the state.
        """
        dtype = self.lse.dtype
        lse, out, lse_other, out_other = (
            z.double() for z in (self.lse, self.out, other.lse, other.out)
        )
        empty = torch.isneginf(lse)
        share_other = (lse_other - lse.masked_fill(empty, 0.0)).exp()
        share = (1 - share_other).masked_fill(empty, -torch.inf)
        share = share.masked_fill(torch.isneginf(lse_other), 1.0)
        left = (out - share_other[..., None] * out_other) / share[..., None]
        return type(self)((lse + share.log()).to(dtype), left.to(dtype)), share

    def update(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
    ) -> "AttentionState":
        """The state after attending to one more chunk; arguments as in `from_chunk`."""
        return self.merge(self.from_chunk(q, k, v, mask))

    @classmethod
    def stack(cls, states: Sequence["AttentionState"]) -> "AttentionState":
        """Several states of one shape as one, along a new first dimension."""
        return cls(
            torch.stack([state.lse for state in states]),
            torch.stack([state.out for state in states]),
        )

    def __getitem__(self, index: int) -> "AttentionState":
        """The state at `index` of the first dimension."""
        return type(self)(self.lse[index], self.out[index])


def attention_with_lse(
    q: Float[Tensor, "batch heads queries dim_head"],
    k: Float[Tensor, "batch heads points dim_head"],
    v: Float[Tensor, "batch heads points dim_head"],
    bias: Float[Tensor, "batch 1 1 points"] | None = None,
) -> tuple[Float[Tensor, "batch heads queries"], Float[Tensor, "batch heads queries dim_head"]]:
    """(lse, out) from public operations, on any device; forms the score matrix.

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


class _FusedAttention(torch.autograd.Function):
    r"""(lse, out) from the fused CPU kernel that `scaled_dot_product_attention` itself calls.

    The public function does not return lse. This is the one private operator of npbench; measured
    on 2 cores against `attention_with_lse` (`python -m benchmarks.attention`).

    The kernel's own backward knows the gradient of out alone. With a gradient of lse as well,
    $\partial S = P \circ (\partial O\, V^\top - D + \partial\mathrm{lse})$, where
    $D = \sum \partial O \circ O$: one more value column, 1 for every point, whose output counts as
    0 in D, adds exactly that term.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=bias, scale=q.shape[-1] ** -0.5
        )
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.set_materialize_grads(False)
        return lse, out

    @staticmethod
    def backward(ctx: Any, grad_lse: Tensor | None, grad_out: Tensor | None) -> tuple:
        q, k, v, bias, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        return *_fused_backward(q, k, v, bias, lse, out, grad_lse, grad_out), None


def _fused_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    out: Tensor,
    grad_lse: Tensor | None,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dim_head = q.shape[-1]
    if grad_lse is not None:
        q, k, out = (F.pad(tensor, (0, 1)) for tensor in (q, k, out))
        v = F.pad(v, (0, 1), value=1.0)
        grad_out = torch.cat([grad_out, grad_lse[..., None].to(grad_out.dtype)], dim=-1)
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=dim_head**-0.5
    )
    return tuple(gradient[..., :dim_head] for gradient in gradients)


def attention_backward(
    q: Float[Tensor, "batch heads queries dim_head"],
    k: Float[Tensor, "batch heads points dim_head"],
    v: Float[Tensor, "batch heads points dim_head"],
    mask: Bool[Tensor, "batch points"] | None,
    state: AttentionState,
    grad: AttentionState,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The gradients of q, k and v that one chunk of points contributes to.

    With the state of *all* points, whose gradient is $(\partial\mathrm{lse}, \partial O)$:

    $$P = e^{S - \mathrm{lse}}, \qquad
      \partial S = P \circ (\partial O\, V^\top - D + \partial\mathrm{lse}), \qquad
      D = \textstyle\sum \partial O \circ O, \qquad \partial V = P^\top \partial O$$

    so that chunks need nothing of each other: the identity of flash attention's backward.
    """
    # Nothing attended to: P = e^{−∞} = 0, where −∞ − (−∞) would be NaN.
    lse = state.lse.masked_fill(torch.isneginf(state.lse), 0.0)
    bias = _bias(mask, q.dtype)
    if _HAS_FUSED_KERNEL and q.device.type == "cpu":
        out, grad_out = state.out.to(q.dtype), grad.out.to(q.dtype)
        return _fused_backward(q, k, v, bias, lse, out, grad.lse, grad_out)
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    q, k, v = (z.to(lse.dtype) for z in (q, k, v))
    scores = (q * scale) @ k.mT
    weights = (scores if bias is None else scores + bias).sub(lse[..., None]).exp()
    shift = grad.lse - (grad.out * state.out).sum(dim=-1)
    grad_scores = weights * (grad.out @ v.mT + shift[..., None])
    grads = grad_scores @ k * scale, grad_scores.mT @ q * scale, weights.mT @ grad.out
    return tuple(grad.to(dtype) for grad in grads)


def _bias(
    mask: Bool[Tensor, "batch points"] | None, dtype: torch.dtype
) -> Float[Tensor, "batch 1 1 points"] | None:
    """What the scores of the points get added: −∞ at padding."""
    if mask is None:
        return None
    zeros = torch.zeros_like(mask, dtype=dtype)
    return zeros.masked_fill(~mask, -torch.inf)[:, None, None, :]


def attend(
    q: Float[Tensor, "batch heads queries dim_head"],
    k: Float[Tensor, "batch heads points dim_head"],
    v: Float[Tensor, "batch heads points dim_head"],
    mask: Bool[Tensor, "batch #queries points"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries dim_head"]:
    r"""$\mathrm{softmax}(q k^\top \cdot \mathrm{scale})\, v$ over the points that `mask` allows.

    A query that may look at no point at all gets 0. The scale is $1 / \sqrt{d}$ by default.
    """
    if k.shape[-2] == 0:
        return torch.zeros_like(q)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    blind = ~mask.any(dim=-1, keepdim=True)
    # Blind queries look at everything, and are set to 0 after: a softmax over nothing is NaN.
    out = F.scaled_dot_product_attention(q, k, v, (mask | blind)[:, None], scale=scale)
    return out.masked_fill(blind[:, None], 0.0)


class MultiheadAttention(nn.Module):
    r"""Attention of `x` to `context`, with a bias on the output.

    $$\mathrm{Attn}(x \to c)
      = W_o\, [\mathrm{softmax}(q_h k_h^\top / \sqrt{d})\, v_h]_{h=1}^H + b_o$$

    Args:
        dim_model: width of `x`, `context` and the output.
        num_heads: number of heads, which split the width.
        qk_norm: divide q and k of each head by their root mean square and multiply the scores by a
            learned temperature per head, initially 1 (Henry et al., 2020; Dehghani et al., 2023).
        bias: whether q, k and v have a bias too.
    """

    def __init__(
        self, dim_model: int, num_heads: int, qk_norm: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        if dim_model % num_heads:
            raise ValueError(f"dim_model={dim_model} does not split into num_heads={num_heads}")
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim_model, dim_model, bias=bias)
        self.to_kv = nn.Linear(dim_model, 2 * dim_model, bias=bias)
        self.to_out = nn.Linear(dim_model, dim_model)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1)) if qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        k, v = self.keys_values(context)
        return self._join_heads(attend(self.queries(x), k, v, mask))

    def absorb(
        self,
        x: Float[Tensor, "queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> AttentionState:
        """The state of queries that are the same for every task, computed once for all of them."""
        k, v = self.keys_values(context)
        q = self.queries(x[None]).expand(len(context), -1, -1, -1)
        return AttentionState.from_chunk(q, k, v, mask)

    def readout(self, state: AttentionState) -> Float[Tensor, "batch queries dim_model"]:
        """The attention's output from the state of all its points."""
        return self._join_heads(state.out)

    def queries(self, x: Tensor) -> Float[Tensor, "batch heads queries dim_head"]:
        q = split_heads(self.to_q(x), self.num_heads)
        if self.temperature is None:
            return q
        return self.temperature.to(q.dtype) * F.rms_norm(q, q.shape[-1:])

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.split_keys_values(self.to_kv(context))

    def split_keys_values(
        self, projected: Float[Tensor, "*batch points two_dim_model"]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, [*batch, heads, points, dim_head] each, from both side by side."""
        k, v = (split_heads(z, self.num_heads) for z in projected.chunk(2, dim=-1))
        return (k if self.temperature is None else F.rms_norm(k, k.shape[-1:])), v

    def _join_heads(self, out: Tensor) -> Float[Tensor, "batch queries dim_model"]:
        return self.to_out(join_heads(out).to(self.to_out.weight.dtype))


def split_heads(
    x: Float[Tensor, "*batch points dim_model"], num_heads: int
) -> Float[Tensor, "*batch heads points dim_head"]:
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def join_heads(
    x: Float[Tensor, "batch heads points dim_head"],
) -> Float[Tensor, "batch points dim_model"]:
    return x.transpose(1, 2).flatten(-2)
