"""The score of draws of many values together."""

import torch
from jaxtyping import Float
from torch import Tensor

from npbench.metrics.means import CountedMean


class EnergyScore(CountedMean):
    """`energy_score`, a mean over tasks; less is better.

    Example:
        >>> metric = EnergyScore()
        >>> metric.update(torch.tensor([[[0.0, 0.0]], [[6.0, 8.0]]]), torch.zeros(1, 2))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = False

    def update(
        self, samples: Float[Tensor, "samples batch values"], y: Float[Tensor, "batch values"]
    ) -> None:
        self.total += energy_score(samples, y).sum()
        self.count += len(y)


def energy_score(
    samples: Float[Tensor, "samples batch values"], y: Float[Tensor, "batch values"]
) -> Float[Tensor, "batch"]:
    r"""The energy score of all values of a task together, estimated without bias from S draws.

    $$\mathbb{E} \lVert Y - y \rVert - \tfrac 12 \mathbb{E} \lVert Y - Y' \rVert
      \approx \frac 1 S \sum_i \lVert Y_i - y \rVert
      - \frac{1}{2 S (S - 1)} \sum_{i \ne j} \lVert Y_i - Y_j \rVert$$

    It is in the unit of the values, grows with the root of their number, and is the CRPS of one
    value. It is least in the mean for draws of the true joint distribution.

    Source: Gneiting and Raftery, *Strictly Proper Scoring Rules, Prediction, and Estimation*, 2007.

    Example:
        >>> energy_score(torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[0.0]]))  # 2 − 2 / 2
        tensor([1.])
    """
    number = len(samples)
    away = (samples - y).norm(dim=-1).mean(dim=0)
    of_tasks = samples.transpose(0, 1)
    apart = torch.cdist(of_tasks, of_tasks, compute_mode="donot_use_mm_for_euclid_dist")
    return away - apart.sum(dim=(1, 2)) / (2 * number * (number - 1))
