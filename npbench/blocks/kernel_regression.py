"""The block of TNP-KR: context and targets pass it by the same parameters."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import InputError

NORM_EPS = 1e-6
"""What the norms of TNP-KR add to the variance."""


class GELUMLP(nn.Module):
    """Linear, GELU, …, Linear, with GELU by its tanh form.

    Args:
        widths: of the input, of every hidden layer, and of the output.
        dropout: rate after each GELU.
    """

    def __init__(self, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise InputError(
                f"the widths {list(widths)} of an MLP must be two or more, all above 0"
            )
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch dim_in"]) -> Float[Tensor, "*batch dim_out"]:
        for layer in self.layers[:-1]:
            x = self.dropout(F.gelu(layer(x), approximate="tanh"))
        return self.layers[-1](x)


class KernelRegressionBlock(nn.Module):
    r"""Pre-norm attention to a context, then feed-forward.

    $$q' = q + \mathrm{Attn}(\mathrm{LN}\, q \to \mathrm{LN}\, c), \qquad
      q'' = q' + \mathrm{FF}(\mathrm{LN}\, q')$$

    Targets pass it as q, and so does the context c itself, by the same parameters. What of the
    context both need, `keep` makes once.

    Args:
        attention: such as `ScanAttention`, `DeepKernelAttention` or `PerformerAttention`.
        dim_model: width of the tokens.
        dim_feedforward: hidden width of FF.
        dropout: rate on both branches, and in FF.

    Source: Jenson et al., *Transformer Neural Processes – Kernel Regression*, 2024.
    """

    def __init__(
        self, attention: nn.Module, dim_model: int, dim_feedforward: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim_model, NORM_EPS)
        self.attention: Any = attention
        self.norm_feedforward = nn.LayerNorm(dim_model, NORM_EPS)
        self.feedforward = GELUMLP([dim_model, dim_feedforward, dim_model], dropout)
        self.dropout = nn.Dropout(dropout)

    def keep(
        self,
        context: Float[Tensor, "batch points dim_model"],
        x: Float[Tensor, "batch points dim_x"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch *kept"]:
        """What `forward` needs of a context."""
        return self.attention.keep(self.norm_attention(context), x, mask)

    def forward(
        self,
        tokens: Float[Tensor, "batch queries dim_model"],
        x: Float[Tensor, "batch queries dim_x"],
        kept: Float[Tensor, "batch *kept"],
        x_points: Float[Tensor, "batch points dim_x"] | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        h = self.norm_attention(tokens)
        tokens = tokens + self.dropout(self.attention(h, x, kept, x_points, mask))
        return tokens + self.dropout(self.feedforward(self.norm_feedforward(tokens)))
