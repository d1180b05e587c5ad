"""Prediction heads: from the encoding of a target to a distribution over its value."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from npbench.blocks import MLP


class DiagonalGaussian(nn.Module):
    r"""Each target on its own: $\mathcal{N}(\mu, \sigma^2)$ with $[\mu, r] = \mathrm{MLP}(h)$ and
    $\sigma = e^r$, or $\sigma = 0.05 + 0.95\,\mathrm{softplus}(r)$ when `bound_std`.

    Returns a distribution with batch shape [B, M] and event shape [dim_y].
    """

    def __init__(
        self, dim_model: int, dim_feedforward: int, dim_y: int, bound_std: bool = False
    ) -> None:
        super().__init__()
        self.bound_std = bound_std
        self.mlp = MLP(dim_model, dim_feedforward, 2 * dim_y, depth=2)

    def forward(self, encoding: Float[Tensor, "batch target dim_model"]) -> Independent:
        mean, raw_std = self.mlp(encoding).chunk(2, dim=-1)
        std = 0.05 + 0.95 * F.softplus(raw_std) if self.bound_std else raw_std.exp()
        return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)
