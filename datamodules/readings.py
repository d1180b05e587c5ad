"""Several noisy readings of each site of a task's context."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datamodules.sampling import ContextTargetSplit
from npbench.errors import InputError


@dataclass(frozen=True)
class Readings:
    r"""How often each context site of a task is read, and the white noise of its readings.

    n readings of a site with noise of variance $\sigma^2$ say of the function what their mean says,
    whose noise has the variance $\sigma^2 / n$. Given their mean $\bar y$, the readings are

    $$y_j = \bar y + \sigma\, (e_j - \bar e), \qquad e_j \sim N(0, 1), \quad j = 1, \dots, n$$

    so that a Gaussian process of the means alone draws them and answers them.
    """

    number: Int[Tensor, "batch"]
    white: Float[Tensor, "batch sites most dim_y"]

    @classmethod
    def stack(cls, readings: "list[Readings]") -> "Readings":
        """Join those of several draws, which have the same numbers of sites, into one."""
        return cls(*(torch.cat(z) for z in zip(*((r.number, r.white) for r in readings))))

    def __getitem__(self, tasks: slice) -> "Readings":
        """Those of some of the tasks."""
        return type(self)(self.number[tasks], self.white[tasks])

    def context(
        self,
        split: ContextTargetSplit,
        x: Float[Tensor, "batch points dim_x"],
        means: Float[Tensor, "batch points dim_y"],
        std: Float[Tensor, "batch"],
    ) -> tuple[
        ContextTargetSplit, Float[Tensor, "batch most dim_x"], Float[Tensor, "batch most dim_y"]
    ]:
        """The split in which readings are the context, and their inputs and values.

        All sites are read once before any is read again.

        Args:
            split: in which the sites are the context.
            x: sites and targets.
            means: of the readings of each site.
            std: standard deviation σ of a reading's noise.
        """
        counts = torch.arange(self.white.shape[2]) < self.number[:, None]
        counts = counts[:, None, :, None].to(self.white.dtype)
        mean = (self.white * counts).sum(dim=2, keepdim=True) / self.number.view(-1, 1, 1, 1)
        noise = (std.view(-1, 1, 1, 1) * (self.white - mean)).flatten(1, 2)
        of_readings = ContextTargetSplit(split.num_context * self.number, split.num_target)
        order = torch.arange(int(of_readings.num_context.max()))
        site = order % split.num_context[:, None]
        # Behind the readings of a smaller task is padding, which may be any of them.
        turn = torch.minimum(order // split.num_context[:, None], self.number[:, None] - 1)
        which = (site * self.white.shape[2] + turn)[..., None]
        inputs, values = (z.take_along_dim(site[..., None], dim=1) for z in (x, means))
        values = values + noise.take_along_dim(which, dim=1)
        return of_readings, of_readings.context(inputs), of_readings.context(values)


@dataclass(frozen=True)
class Repeats:
    """The law of the number of readings: log-uniform on the whole numbers from `low` to `high`.

    Raises:
        InputError: if there are no such numbers above 0.

    Example:
        >>> Repeats(3, 3).draw(num_tasks=2, num_sites=5, dim_y=1, together=True).number
        tensor([3, 3])
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise InputError(
                f"repeats={[self.low, self.high]} must go from 1 or more readings of a site to as "
                f"many or more"
            )

    def draw(self, num_tasks: int, num_sites: int, dim_y: int, together: bool) -> Readings:
        """Draw readings from torch's generator.

        Args:
            num_tasks: number of tasks.
            num_sites: sites of the largest task.
            dim_y: number of outputs.
            together: whether all tasks have one number of readings.
        """
        level = torch.rand(1 if together else num_tasks, dtype=torch.float64)
        ratio = (self.high + 1) / self.low
        number = (self.low * (level * math.log(ratio)).exp()).long().clamp(self.low, self.high)
        white = torch.randn(num_tasks, num_sites, self.high, dim_y, dtype=torch.float64)
        return Readings(number.expand(num_tasks).clone(), white)
