"""Softmax attention by positive random features, whose memory of a context is one matrix a head."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from npbench.attention.multihead import MultiheadAttention
from npbench.attention.precision import at_least_float32

# Least denominator of an output.
_LEAST_MASS = 1e-6


class PerformerAttention(MultiheadAttention):
    r"""Multi-head attention by FAVOR+, an estimate of softmax attention.

    $$\varphi(z) = \frac{1}{\sqrt{m}}\, e^{W \tilde z - |\tilde z|^2 / 2}, \quad
      \tilde z = z\, d^{-1/4}, \qquad
      \mathrm{out} = \frac{\varphi(q)^\top \sum_j \varphi(k_j)\, v_j^\top}
                          {\varphi(q)^\top \sum_j \varphi(k_j)}$$

    The rows of W are drawn once, orthogonal in groups of d and of norm $\sqrt{d}$, and are saved
    with the model. N points cost N operations, and a query the same whatever N is. No maximum is
    taken out of the exponents, so that sums of different contexts add up: features overflow where
    queries or keys are very large.

    Args:
        dim_model: width of queries, context and output.
        num_heads: number of heads.
        dim_head: width d of each head's queries, keys and values.
        num_features: number m of random features.

    Source: Choromanski et al., *Rethinking Attention with Performers*, ICLR 2021.
    """

    projection: Tensor

    def __init__(self, dim_model: int, num_heads: int, dim_head: int, num_features: int) -> None:
        super().__init__(dim_model, num_heads, bias=True, dim_head=dim_head)
        self.register_buffer("projection", orthogonal_rows(num_features, dim_head))

    def keep(
        self,
        context: Float[Tensor, "batch points dim_model"],
        x: Tensor | None = None,
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> Float[Tensor, "batch heads features dim_head_and_1"]:
        """The sums over a context: of φ vᵀ and, in the last column, of φ."""
        k, v = map(at_least_float32, self.keys_values(context))
        with torch.autocast(k.device.type, enabled=False):
            features = self.features(k)
            if mask is not None:
                features = features.masked_fill(~mask[:, None, :, None], 0.0)
            return features.mT @ F.pad(v, (0, 1), value=1.0)

    def forward(
        self,
        h: Float[Tensor, "batch queries dim_model"],
        x: Tensor | None,
        kept: Float[Tensor, "batch heads features dim_head_and_1"],
        x_points: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        return self.join(self.heads(self.queries(h), kept))

    def heads(
        self,
        q: Float[Tensor, "batch heads queries dim_head"],
        kept: Float[Tensor, "batch heads features dim_head_and_1"],
    ) -> Float[Tensor, "batch heads queries dim_head"]:
        """The output of each head."""
        with torch.autocast(q.device.type, enabled=False):
            sums = self.features(at_least_float32(q)) @ kept
            return sums[..., :-1] / sums[..., -1:].clamp(min=_LEAST_MASS)

    def features(
        self, z: Float[Tensor, "batch heads points dim_head"]
    ) -> Float[Tensor, "batch heads points features"]:
        """φ of queries or keys."""
        z = z * z.shape[-1] ** -0.25
        exponents = z @ self.projection.to(z.dtype).mT - z.square().sum(-1, keepdim=True) / 2
        return exponents.exp() * len(self.projection) ** -0.5


def orthogonal_rows(number: int, width: int) -> Float[Tensor, "number width"]:
    """Random rows of norm √width, which are orthogonal in groups of `width`."""
    groups = -(-number // width)
    q, r = torch.linalg.qr(torch.randn(groups, width, width))
    # Householder's q is not uniform: the signs that make the diagonal of r positive make it so.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    return q.mT.reshape(-1, width)[:number] * width**0.5
