"""Conditional neural processes: the context as the mean of its points' encodings."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent

from npbench.blocks import MLP
from npbench.likelihoods import DiagonalGaussian
from npbench.models.base import NeuralProcess, State, records_arguments
from npbench.models.points import Points


@dataclass(frozen=True, eq=False)
class CNPState(State):
    """The running mean of the points' encodings, and their number: of constant size."""

    mean: Float[Tensor, "batch encoders dim_hidden"]
    count: Float[Tensor, "batch 1 1"]

    @property
    def batch_size(self) -> int:
        return len(self.mean)

    def merge(self, other: "CNPState") -> "CNPState":
        """The state of the union of two contexts.

        Raises:
            ValueError: if the two are states of different numbers of tasks.
        """
        if self.batch_size != other.batch_size:
            raise ValueError(
                f"states of {self.batch_size} and {other.batch_size} tasks do not merge"
            )
        count = self.count + other.count
        share = other.count / count.clamp(min=1.0)
        return CNPState(torch.lerp(self.mean, other.mean, share), count)


class CNP(NeuralProcess):
    r"""Conditional Neural Process.

    $$r = [\mathrm{post}_j(\mathrm{mean}_n\, \mathrm{pre}_j([x_n, y_n]))]_{j=1,2}, \qquad
      y_t \sim \mathcal{N}(\mu, \sigma^2), \quad [\mu, \sigma] = \mathrm{head}([r, x_t])$$

    Its memory is constant in the context, like CMANP's; but every point weighs the same for every
    target, which is why it underfits.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_hidden: width of all MLPs.
        pre_depth: linear layers before the mean.
        post_depth: linear layers after it.
        decoder_depth: linear layers of the head.

    Source: Garnelo et al., *Conditional Neural Processes*, ICML 2018; the variant with two encoders
    and the defaults are those of the paper's official code.

    Example:
        >>> model = CNP(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).mean.shape
        torch.Size([16, 10, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_hidden: int = 128,
        pre_depth: int = 4,
        post_depth: int = 2,
        decoder_depth: int = 3,
    ) -> None:
        super().__init__(dim_x, dim_y)
        self.pre = nn.ModuleList(
            MLP(dim_x + dim_y, dim_hidden, dim_hidden, pre_depth) for _ in range(2)
        )
        self.post = nn.ModuleList(
            MLP(dim_hidden, dim_hidden, dim_hidden, post_depth) for _ in range(2)
        )
        self.head = DiagonalGaussian(
            2 * dim_hidden + dim_x, dim_hidden, dim_y, depth=decoder_depth, min_std=0.1
        )

    def _condition(self, chunks: Iterator[Points]) -> CNPState:
        return reduce(CNPState.merge, map(self._absorb, chunks))

    def _update(self, state: CNPState, points: Points) -> CNPState:
        return state.merge(self._absorb(points))

    def _query(self, state: CNPState, xt: Tensor) -> Independent:
        context = torch.cat([post(state.mean[:, j]) for j, post in enumerate(self.post)], dim=-1)
        context = context[:, None].expand(-1, xt.shape[1], -1)
        return self.head(torch.cat([context, xt], dim=-1))

    def _absorb(self, points: Points) -> CNPState:
        xy = torch.cat([points.x, points.y], dim=-1)
        encodings = torch.stack([pre(xy) for pre in self.pre], dim=1)
        if points.mask is None:
            count = xy.new_full([len(xy), 1, 1], xy.shape[1])
        else:
            encodings = encodings * points.mask[:, None, :, None]
            count = points.mask.sum(-1)[:, None, None].to(xy.dtype)
        return CNPState(encodings.sum(dim=2) / count.clamp(min=1.0), count)
