"""Attention without a softmax, whose memory of a context is one matrix."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention.precision import at_least_float32


class DeepKernelAttention(nn.Module):
    r"""Linear attention whose kernel is a network's.

    $$S = \frac{1}{N \sqrt{D}} \sum_{j=1}^N \varphi(x_j, k_j)\, v(k_j)^\top, \qquad
      \mathrm{Attn}(q) = \mathrm{LN}\big(S^\top \varphi(x, q)\big)$$

    One network φ serves queries and keys; it sees positions beside tokens. Nothing is positive, and
    the factor matters to the ε of the norm alone. N points cost N operations, and a query the same
    whatever N is.

    Args:
        features: φ, of positions and tokens side by side.
        values: v.
        dim_model: width D of tokens, values and output.
        eps: of the norm.

    Source: Jenson et al., *Transformer Neural Processes – Kernel Regression*, 2024.
    """

    def __init__(
        self, features: nn.Module, values: nn.Module, dim_model: int, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.features = features
        self.values = values
        self.norm = nn.LayerNorm(dim_model, eps)

    def keep(
        self,
        context: Float[Tensor, "batch points dim_model"],
        x: Float[Tensor, "batch points dim_x"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> Float[Tensor, "batch features dim_model"]:
        """S of a context; 0 if it is empty."""
        features = at_least_float32(self.features(torch.cat([x, context], dim=-1)))
        values = at_least_float32(self.values(context)) * context.shape[-1] ** -0.5
        with torch.autocast(x.device.type, enabled=False):
            if mask is None:
                return features.mT @ values / max(1, context.shape[1])
            features = features.masked_fill(~mask[..., None], 0.0)
            return features.mT @ values / mask.sum(dim=-1).clamp(min=1)[:, None, None]

    def forward(
        self,
        h: Float[Tensor, "batch queries dim_model"],
        x: Float[Tensor, "batch queries dim_x"],
        kept: Float[Tensor, "batch features dim_model"],
        x_points: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        return self.norm(self.features(torch.cat([x, h], dim=-1)) @ kept)
