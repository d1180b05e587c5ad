r"""Filters between points and the latents that attend to them.

The first attention of a CMAB is the only layer that sees points: its queries q are those of fixed
latents, and each point j brings a key $k_j$ and a value $v_j$. A filter stands between them. It
changes q once, and each point by itself, so that the state stays a monoid: the block still knows
its points as a set, absorbs them in chunks, and merges with others exactly.

| filter | what it does | when to take it |
|---|---|---|
| `Temperature` | makes attention sharper or flatter | latents that all see the mean of the points |
| `PointGate` | weighs points before latents choose | points that tell nothing, such as outliers |
| `Bottleneck` | keeps few directions of keys and values | few points in training |
| `FeatureMap` | takes a trained kernel in place of the softmax's | scores that grow too sharp |

`PointGate` and `FeatureMap` add to the scores: with gradients, the scores of the points that are
absorbed at a time are then formed, latents × points; see `context_chunk_size` of `CMANP`.

Yorsh, Holeňa, Bojar and Herel, *On Difficulties of Attention Factorization through Shared Memory*,
ICLR 2024 Tiny Papers, filter sequences so, by convolutions along them; `CausalConvolution` in
`npbench.blocks.convolution` is the one that a stream of events allows.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbench.choices import Choice
from npbench.errors import InputError

# Least value of a positive feature, so that the logarithm of a kernel is finite.
_LEAST_FEATURE = 1e-6


class Filtered(NamedTuple):
    r"""What the scores $q \cdot k_j / \sqrt{d} + b_j$ and the values of attention are made of."""

    q: Float[Tensor, "*blocks #batch heads latents dim_head"]
    k: Float[Tensor, "*blocks batch heads points dim_head"]
    v: Float[Tensor, "*blocks batch heads points dim_head"]
    bias: Float[Tensor, "*blocks batch heads #latents points"] | None = None


def filtered(layer: "FilterLayer | None", q: Tensor, k: Tensor, v: Tensor) -> Filtered:
    """What a layer makes of q, k and v; without one, these."""
    return Filtered(q, k, v) if layer is None else layer(q, k, v)


class FilterLayer(nn.Module, ABC):
    """The trained part of a filter, one for each block."""

    @abstractmethod
    def forward(
        self,
        q: Float[Tensor, "#batch heads latents dim_head"],
        k: Float[Tensor, "batch heads points dim_head"],
        v: Float[Tensor, "batch heads points dim_head"],
    ) -> Filtered:
        """What attention gets in place of q, k and v.

        No point may change what is made of another, nor of the queries.
        """


class PointFilter(Choice, ABC):
    """What stands between the points and the latents of a block, as configurations say it.

    A kind is a frozen dataclass with a `build`. In a configuration of `CMANP` or `CMHP`:

        filter:
          class_path: npbench.blocks.PointGate
          init_args: {open: 0.9}
    """

    @abstractmethod
    def build(self, num_heads: int, dim_head: int) -> FilterLayer:
        """The layer of a block whose heads are so many and so wide.

        Raises:
            InputError: if an argument is not possible there.
        """


@dataclass(frozen=True)
class Temperature(PointFilter):
    r"""A learned temperature of each head: $s_j = \tau_h\, q \cdot k_j / \sqrt{d}$ with
    $\tau_h > 0$.

    Args:
        start: $\tau_h$ at first. 1 changes nothing at first; $\sqrt{d}$ gives scores that are not
            scaled at all, from which ConvLuna starts.

    Example:
        >>> layer = Temperature(start=2.0).build(num_heads=2, dim_head=8)
        >>> q, k, v = torch.randn(1, 2, 4, 8), *torch.randn(2, 3, 2, 100, 8)
        >>> torch.allclose(layer(q, k, v).q, 2 * q)
        True
    """

    start: float = 1.0

    def build(self, num_heads: int, dim_head: int) -> "TemperatureLayer":
        if not 0 < self.start < math.inf:
            raise InputError(f"filter.start={self.start} must be a number above 0")
        return TemperatureLayer(num_heads, self.start)


class TemperatureLayer(FilterLayer):
    """See `Temperature`."""

    def __init__(self, num_heads: int, start: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.full((num_heads, 1, 1), math.log(start)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Filtered:
        return Filtered(self.log_temperature.exp().to(q.dtype) * q, k, v)


@dataclass(frozen=True)
class PointGate(PointFilter):
    r"""A gate of each point and head, by which all latents weigh the point:

    $$\mathrm{out} = \frac{\sum_j g_j\, e^{s_j}\, v_j}{\sum_j g_j\, e^{s_j}}, \qquad
      g_j = \sigma(w_h \cdot [k_j, v_j] + b_h)$$

    At first w = 0: all points weigh the same, and attention is what it is without the gate.

    Args:
        open: g of every point at first, between 0 and 1.

    Example:
        >>> layer = PointGate(open=0.5).build(num_heads=2, dim_head=8)
        >>> q, k, v = torch.randn(1, 2, 4, 8), *torch.randn(2, 3, 2, 100, 8)
        >>> layer(q, k, v).bias.exp().unique()
        tensor([0.5000], grad_fn=<Unique2Backward0>)
    """

    open: float = 0.9

    def build(self, num_heads: int, dim_head: int) -> "PointGateLayer":
        if not 0 < self.open < 1:
            raise InputError(f"filter.open={self.open} must lie between 0 and 1")
        return PointGateLayer(num_heads, dim_head, self.open)


class PointGateLayer(FilterLayer):
    """See `PointGate`."""

    def __init__(self, num_heads: int, dim_head: int, open: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, 1, 2 * dim_head))
        self.bias = nn.Parameter(torch.full((num_heads, 1, 1), math.log(open / (1 - open))))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Filtered:
        features = torch.cat([k, v], dim=-1)
        logits = self.weight.to(k.dtype) @ features.mT + self.bias.to(k.dtype)
        return Filtered(q, k, v, F.logsigmoid(logits))


@dataclass(frozen=True)
class Bottleneck(PointFilter):
    r"""Few directions of keys and values: $k_j \leftarrow B_h A_h^\top k_j$ and
    $v_j \leftarrow B_h A_h^\top v_j$, with A and B of d × rank.

    Keys and values go through the same filter, as ConvLuna's do. At first A = B has orthonormal
    columns: a projection.

    Args:
        rank: number of directions that each head keeps, from 1 to its width d.

    Example:
        >>> layer = Bottleneck(rank=2).build(num_heads=2, dim_head=8)
        >>> q, k, v = torch.randn(1, 2, 4, 8), *torch.randn(2, 3, 2, 100, 8)
        >>> torch.linalg.matrix_rank(layer(q, k, v).k.detach()).unique()
        tensor([2])
    """

    rank: int = 4

    def build(self, num_heads: int, dim_head: int) -> "BottleneckLayer":
        if not 1 <= self.rank <= dim_head:
            raise InputError(
                f"filter.rank={self.rank} must be from 1 to {dim_head}, the width of a head"
            )
        return BottleneckLayer(num_heads, dim_head, self.rank)


class BottleneckLayer(FilterLayer):
    """See `Bottleneck`."""

    def __init__(self, num_heads: int, dim_head: int, rank: int) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(num_heads, dim_head, rank)).Q
        self.down, self.up = nn.Parameter(basis), nn.Parameter(basis.mT.clone())

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Filtered:
        down, up = self.down.to(k.dtype), self.up.to(k.dtype)
        return Filtered(q, k @ down @ up, v @ down @ up)


@dataclass(frozen=True)
class FeatureMap(PointFilter):
    r"""A trained kernel of positive features in place of the softmax's.

    $$\mathrm{out} = \frac{\sum_j \kappa(q, k_j)\, v_j}{\sum_j \kappa(q, k_j)}, \qquad
      \kappa(q, k) = \phi_h(q) \cdot \phi_h(k), \qquad
      \phi_h(z) = \mathrm{softplus}(a_h(z) \circ \sigma(g_h(z)))$$

    with linear maps a and g. It is attention with the scores $\log \kappa$, so that the state, and
    all that is done with it, is that of the softmax.

    Args:
        num_features: width of φ.

    Source: Yorsh and Kovalenko, *Linear Self-Attention Approximation via Trainable Feedforward
    Kernel*, 2022.

    Example:
        >>> layer = FeatureMap(num_features=16).build(num_heads=2, dim_head=8)
        >>> q, k, v = torch.randn(1, 2, 4, 8), *torch.randn(2, 3, 2, 100, 8)
        >>> layer(q, k, v).bias.shape
        torch.Size([3, 2, 4, 100])
    """

    num_features: int = 32

    def build(self, num_heads: int, dim_head: int) -> "FeatureMapLayer":
        if self.num_features < 1:
            raise InputError(f"filter.num_features={self.num_features} must be 1 or more")
        return FeatureMapLayer(num_heads, dim_head, self.num_features)


class FeatureMapLayer(FilterLayer):
    """See `FeatureMap`."""

    def __init__(self, num_heads: int, dim_head: int, num_features: int) -> None:
        super().__init__()
        weight = torch.randn(num_heads, dim_head, 2 * num_features) * dim_head**-0.5
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_heads, 1, 2 * num_features))

    def features(
        self, z: Float[Tensor, "batch heads tokens dim_head"]
    ) -> Float[Tensor, "batch heads tokens num_features"]:
        """φ of queries or keys."""
        linear, gate = (z @ self.weight.to(z.dtype) + self.bias.to(z.dtype)).chunk(2, dim=-1)
        return F.softplus(linear * gate.sigmoid()) + _LEAST_FEATURE

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Filtered:
        dtype = torch.promote_types(k.dtype, torch.float32)
        with torch.autocast(k.device.type, enabled=False):
            kernel = self.features(q.to(dtype)) @ self.features(k.to(dtype)).mT
            # The kernel is all of the score.
            return Filtered(torch.zeros_like(q), k, v, kernel.log())
