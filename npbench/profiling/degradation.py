"""Measures of memory degradation: vectors of a memory that become alike, and attention that does.

Yorsh, Holeňa, Bojar and Herel, *On Difficulties of Attention Factorization through Shared Memory*,
ICLR 2024 Tiny Papers, show by heat maps that memory vectors collapse onto each other in training.
These are numbers for it, of our own.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from npbench.models.contracts.memory import MemoryView

MEASURES = (
    "cosine_packed", "cosine_latents", "rank_packed", "rank_latents", "entropy", "relative_entropy",
)  # fmt: skip
"""The columns of `degradation_of`."""


def cosine_similarity(
    vectors: Float[Tensor, "*batch latents dim_model"],
) -> Float[Tensor, "*batch"]:
    r"""The mean cosine of all pairs of m vectors: 1 where all have one direction.

    $$\frac{2}{m (m - 1)} \sum_{i < j} \hat z_i \cdot \hat z_j
      = \frac{|\sum_i \hat z_i|^2 - \sum_i |\hat z_i|^2}{m (m - 1)}, \qquad \hat z = z / |z|$$

    Of one vector, which has no pair, it is NaN.

    Example:
        >>> cosine_similarity(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
        tensor(0.3333)
    """
    units = F.normalize(vectors, dim=-1)
    number = vectors.shape[-2]
    together = units.sum(dim=-2).square().sum(dim=-1) - units.square().sum(dim=(-2, -1))
    return together / (number * (number - 1)) if number > 1 else together * torch.nan


def effective_rank(vectors: Float[Tensor, "*batch latents dim_model"]) -> Float[Tensor, "*batch"]:
    r"""How many directions m vectors of width D use: from 1 to min(m, D).

    $$\exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \sigma_i / \textstyle\sum_j \sigma_j$$

    with the singular values σ of the m × D matrix.

    Source: Roy and Vetterli, *The Effective Rank*, EUSIPCO 2007.

    Example:
        >>> effective_rank(torch.eye(5)), effective_rank(torch.ones(5, 3))
        (tensor(5.), tensor(1.0000))
    """
    singular = torch.linalg.svdvals(vectors)
    total = singular.sum(dim=-1, keepdim=True)
    shares = singular / total.clamp(min=torch.finfo(singular.dtype).tiny)
    return torch.special.entr(shares).sum(dim=-1).exp()


def attention_entropy(
    log_weights: Float[Tensor, "*batch latents points"],
) -> Float[Tensor, "*batch latents"]:
    r"""The entropy $-\sum_j p_j \log p_j$ of attention over points, in nats.

    It is 0 where one point has all of the attention, and log n where n points have the same; NaN
    where no point is seen.

    Example:
        >>> attention_entropy(torch.tensor([[0.25, 0.25, 0.5, 0.0]]).log())
        tensor([1.0397])
    """
    weights = log_weights.exp()
    entropy = torch.special.entr(weights).sum(dim=-1)
    return entropy.masked_fill(weights.sum(dim=-1) == 0, torch.nan)


def degradation_of(layers: Sequence[MemoryView]) -> list[dict[str, Any]]:
    r"""The measures of every layer, averaged over tasks, heads and latents.

    - `cosine_packed` and `rank_packed` are of what the memory's attention has brought from the
      points; with n points and H heads, its rank is nH + 1 at most;
    - `cosine_latents` and `rank_latents` are of what the layer makes of it;
    - `entropy` is that of the attention, in nats, and `relative_entropy` its share of log n.

    Tasks without points are left out, and of the relative entropy those with a single one. A
    measure of nothing is NaN.

    Returns:
        One row a layer, with its `layer` from 1 and the `MEASURES`.
    """
    rows = []
    for number, layer in enumerate(layers, start=1):
        seen = layer.log_weights.isfinite().any(dim=(1, 2)).sum(dim=-1)
        with_points = _precise(layer, seen > 0)
        values = {"layer": number} | dict.fromkeys(MEASURES, math.nan)
        vectors = {"packed": with_points.packed, "latents": with_points.latents}
        for name, z in vectors.items():
            if z is not None:
                values[f"cosine_{name}"] = float(cosine_similarity(z).nanmean())
                values[f"rank_{name}"] = float(effective_rank(z).nanmean())
        entropy, seen = attention_entropy(with_points.log_weights), seen[seen > 0]
        share = entropy[seen > 1] / seen[seen > 1].to(entropy.dtype).log()[:, None, None]
        values |= {"entropy": float(entropy.nanmean()), "relative_entropy": float(share.nanmean())}
        rows.append(values)
    return rows


def _precise(layer: MemoryView, rows: Bool[Tensor, "batch"]) -> MemoryView:
    """These rows of a batch, in float32 at least."""
    return layer.map(lambda z: z[rows].to(torch.promote_types(z.dtype, torch.float32)))
