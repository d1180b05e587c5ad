"""What metrics that are means over many batches have in common."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CountedMean(Metric):
    """A sum over all that was measured, divided by the number of it.

    The `update` of a subclass adds to `total` and to `count`, which add up over devices.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return self.total / self.count
