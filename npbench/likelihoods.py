"""Prediction heads: from the encoding of a target to a distribution over its value."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from npbench.blocks import MLP


class DiagonalGaussian(nn.Module):
    r"""Each target on its own: $\mathcal{N}(\mu, \sigma^2)$ with $[\mu, r] = \mathrm{MLP}(h)$.

    $\sigma = e^r$, or with a least value m: $\sigma = m + (1 - m)\,\mathrm{softplus}(r)$. Returns a
    distribution with batch shape [B, M] and event shape [dim_y].

    Args:
        dim_in: width of h.
        dim_hidden: width of the MLP.
        dim_y: number of outputs.
        depth: linear layers of the MLP.
        min_std: least standard deviation m, or None.
    """

    def __init__(
        self, dim_in: int, dim_hidden: int, dim_y: int, depth: int, min_std: float | None = None
    ) -> None:
        super().__init__()
        self.min_std = min_std
        self.mlp = MLP(dim_in, dim_hidden, 2 * dim_y, depth)

    def forward(self, encoding: Float[Tensor, "batch target dim_in"]) -> Independent:
        mean, raw = self.mlp(encoding).chunk(2, dim=-1)
        if self.min_std is None:
            std = raw.exp()
        else:
            std = self.min_std + (1 - self.min_std) * F.softplus(raw)
        return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)
