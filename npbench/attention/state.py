"""What fixed queries keep of the points that they have attended to.

A fixed query that attends to a set of points needs two numbers of the past per head: the
log-sum-exp of its scores, and its output. Both of a union follow from both of the parts
(Feng et al., 2024; the same identity carries flash attention).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbench.attention.backward import fused_attention_with_lse
from npbench.attention.kernels import attention_with_lse, has_fused_kernel, score_bias
from npbench.errors import InputError
from npbench.structure import TensorRecord


@dataclass(frozen=True, eq=False)
class AttentionState(TensorRecord):
    r"""What fixed queries keep of all the points that they have attended to.

    With scores $s_j = q \cdot k_j / \sqrt{d}$, or these and a bias:

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
        bias: Float[Tensor, "#batch heads #queries points"] | None = None,
    ) -> "AttentionState":
        r"""The state after attending to one chunk of points.

        Args:
            q: queries.
            k: keys of the points.
            v: values of the points.
            mask: True where a point is real.
            bias: finite numbers that the scores get added, such as a kernel of distances:
                $s_j = q \cdot k_j / \sqrt{d} + b_j$. It may have gradients.
        """
        dtype = torch.promote_types(q.dtype, torch.float32)
        added = score_bias(mask, bias, q.dtype)
        fused = has_fused_kernel(q) and k.shape[-2]
        lse, out = (fused_attention_with_lse if fused else attention_with_lse)(q, k, v, added)
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
            InputError: if the two are states of different numbers of tasks or queries.
        """
        if self.lse.shape != other.lse.shape:
            raise InputError(
                f"states of shapes {list(self.lse.shape)} and {list(other.lse.shape)} do not "
                f"merge: they must be of the same tasks and queries"
            )
        # For two empty sets −∞ − (−∞) would be NaN, in the value and in the gradient.
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
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> "AttentionState":
        """The state after attending to one more chunk; arguments as in `from_chunk`."""
        return self.merge(self.from_chunk(q, k, v, mask, bias))

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
