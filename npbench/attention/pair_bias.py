"""Biases that the scores of attention get added, as functions of the distance of two points.

`Bias` says which one, as configurations do; `build` makes the module. Several of them, of space and
of time, add up.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.attention.distances import (
    Causal,
    Coordinates,
    Distance,
    Euclidean,
    GreatCircle,
    Periodic,
)
from npbench.errors import InputError


class PairBias(nn.Module, ABC):
    """What the scores of attention get added, as a function of the distance d of query and key.

    Args:
        num_heads: number of heads, each of which has its own parameters.
        distance: d.
        columns: the inputs that d is a distance of.
    """

    def __init__(self, num_heads: int, distance: Distance, columns: Sequence[int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.distance = distance
        self.columns = tuple(columns)

    @abstractmethod
    def parts(self) -> list[Float[Tensor, "heads"]]:
        """The parameters as vectors of one number a head, in the order of `of_pairs`."""

    @abstractmethod
    def of_pairs(self, a: Coordinates, b: Coordinates, parts: Sequence[Tensor]) -> Tensor:
        """The bias of all pairs that a, b and `parts`, of one head or of all, broadcast to; a and b
        have all coordinates of the points, `columns` or not."""

    @property
    def hides(self) -> bool:
        """Whether the bias may be −∞, which hides a key from a query."""
        return self.distance.hides

    def check(self, x: Float[Tensor, "*batch dim_x"]) -> None:
        """Refuse inputs that the distance is not defined for.

        Raises:
            InputError: which says where they are.
        """
        self.distance.check(x[..., list(self.columns)])

    def forward(
        self, a: Float[Tensor, "*#batch queries dim_x"], b: Float[Tensor, "*#batch keys dim_x"]
    ) -> Float[Tensor, "*batch heads queries keys"]:
        queries = a[..., None, :, None, :].unbind(dim=-1)
        keys = b[..., None, None, :, :].unbind(dim=-1)
        return self.of_pairs(queries, keys, [part[:, None, None] for part in self.parts()])

    def _chosen(self, a: Coordinates, b: Coordinates) -> tuple[Coordinates, Coordinates]:
        return [a[i] for i in self.columns], [b[i] for i in self.columns]

    def _hidden(self, bias: Tensor, distance: Tensor) -> Tensor:
        """The bias, and −∞ where the distance is infinite."""
        if not self.hides:
            return bias
        return torch.where(distance.isinf(), -torch.inf, bias)

    def _finite(self, distance: Tensor) -> Tensor:
        """The distance, and 0 where it is infinite, so that no gradient is NaN."""
        return torch.where(distance.isinf(), 0.0, distance) if self.hides else distance


class ScalarBias(PairBias):
    r"""$a_h\, d$, with $a_h = -1/\ell$ at first.

    Args:
        num_heads: as of `PairBias`.
        distance: as of `PairBias`.
        columns: as of `PairBias`.
        length: ℓ, in the unit of d.
    """

    def __init__(
        self, num_heads: int, distance: Distance, columns: Sequence[int], length: float = 1.0
    ) -> None:
        super().__init__(num_heads, distance, columns)
        self.a = nn.Parameter(torch.full([num_heads], -1 / length))

    def parts(self) -> list[Float[Tensor, "heads"]]:
        return [self.a]

    def of_pairs(self, a: Coordinates, b: Coordinates, parts: Sequence[Tensor]) -> Tensor:
        distance = self.distance.between(*self._chosen(a, b))
        return self._hidden(parts[0] * self._finite(distance), distance)


class _BasisBias(PairBias):
    """A sum of basis functions of the distance, of weights a and rates b."""

    power: ClassVar[int]

    def __init__(
        self,
        num_heads: int,
        distance: Distance,
        columns: Sequence[int],
        num_basis: int = 5,
        length: float = 1.0,
        spread: float = 4.0,
    ) -> None:
        super().__init__(num_heads, distance, columns)
        if num_basis < 1:
            raise InputError(f"num_basis={num_basis} must be 1 or more")
        exponents = torch.arange(num_basis) - (num_basis - 1) / 2
        rates = length**-self.power * spread**exponents
        self.num_basis = num_basis
        self.a = nn.Parameter(torch.ones(num_heads, num_basis))
        self.b = nn.Parameter(rates.repeat(num_heads, 1))

    def parts(self) -> list[Float[Tensor, "heads"]]:
        return [*self.a.unbind(dim=-1), *self.b.unbind(dim=-1)]

    def _terms(self, arguments: Iterable[Tensor], parts: Sequence[Tensor]) -> Tensor:
        """The sum of a e^{−b z} over the basis functions, whose z are the arguments."""
        weights, rates = parts[: self.num_basis], parts[self.num_basis :]
        return _sum(a * (-b * z).exp() for a, b, z in zip(weights, rates, arguments))


class RBFBias(_BasisBias):
    r"""A network of radial basis functions: $\sum_f a_{hf}\, e^{-b_{hf} d^2}$.

    At first all a are 1, and the b are spread around $1/\ell^2$, each `spread` times the one
    before: functions that start equal receive equal gradients, and stay equal for ever.

    Args:
        num_heads: as of `PairBias`.
        distance: as of `PairBias`.
        columns: as of `PairBias`.
        num_basis: number F of functions of each head.
        length: ℓ, in the unit of d.
        spread: ratio of one b to the one before.

    Example:
        >>> bias = RBFBias(num_heads=1, distance=Euclidean(), columns=[0], num_basis=1)
        >>> bias(torch.tensor([[0.0]]), torch.tensor([[0.0], [1.0]])).flatten()
        tensor([1.0000, 0.3679], grad_fn=<ViewBackward0>)
    """

    power = 2

    def of_pairs(self, a: Coordinates, b: Coordinates, parts: Sequence[Tensor]) -> Tensor:
        squared = self.distance.squared(*self._chosen(a, b))
        arguments = [self._finite(squared)] * self.num_basis
        return self._hidden(self._terms(arguments, parts), squared)


class CentredRBFBias(_BasisBias):
    r"""$\sum_f a_{hf}\, e^{-b_{hf} (d - c_{hf})^2}$, with c = 0 at first: functions that may have
    their maximum at any distance. The arguments are those of `RBFBias`."""

    power = 2

    def __init__(
        self,
        num_heads: int,
        distance: Distance,
        columns: Sequence[int],
        num_basis: int = 5,
        length: float = 1.0,
        spread: float = 4.0,
    ) -> None:
        super().__init__(num_heads, distance, columns, num_basis, length, spread)
        self.c = nn.Parameter(torch.zeros(num_heads, num_basis))

    def parts(self) -> list[Float[Tensor, "heads"]]:
        return [*super().parts(), *self.c.unbind(dim=-1)]

    def of_pairs(self, a: Coordinates, b: Coordinates, parts: Sequence[Tensor]) -> Tensor:
        distance = self.distance.between(*self._chosen(a, b))
        finite, centres = self._finite(distance), parts[2 * self.num_basis :]
        arguments = [(finite - centre).square() for centre in centres]
        return self._hidden(self._terms(arguments, parts), distance)


class ExponentialBias(_BasisBias):
    r"""$\sum_f a_{hf}\, e^{-b_{hf} d}$. The arguments are those of `RBFBias`."""

    power = 1

    def of_pairs(self, a: Coordinates, b: Coordinates, parts: Sequence[Tensor]) -> Tensor:
        distance = self.distance.between(*self._chosen(a, b))
        arguments = [self._finite(distance)] * self.num_basis
        return self._hidden(self._terms(arguments, parts), distance)


class SummedBias(nn.Module):
    """The sum of several biases, such as one of space and one of time.

    Args:
        biases: one or more, of the same number of heads.
    """

    def __init__(self, biases: Sequence[PairBias]) -> None:
        super().__init__()
        self.biases: Any = nn.ModuleList(biases)
        self._numbers = [len(bias.parts()) for bias in biases]

    @property
    def hides(self) -> bool:
        return any(bias.hides for bias in self.biases)

    def check(self, x: Float[Tensor, "*batch dim_x"]) -> None:
        for bias in self.biases:
            bias.check(x)

    def parts(self) -> list[Float[Tensor, "heads"]]:
        return [part for bias in self.biases for part in bias.parts()]

    def of_pairs(self, a: Coordinates, b: Coordinates, parts: Sequence[Tensor]) -> Tensor:
        terms, start = [], 0
        for bias, number in zip(self.biases, self._numbers):
            terms.append(bias.of_pairs(a, b, parts[start : start + number]))
            start += number
        return _sum(terms)

    def forward(
        self, a: Float[Tensor, "*#batch queries dim_x"], b: Float[Tensor, "*#batch keys dim_x"]
    ) -> Float[Tensor, "*batch heads queries keys"]:
        return _sum(bias(a, b) for bias in self.biases)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


@dataclass(frozen=True)
class Bias:
    """Which bias the scores of attention get added.

    Args:
        kernel: "rbf" (`RBFBias`), "centred_rbf" (`CentredRBFBias`), "scalar" (`ScalarBias`) or
            "exponential" (`ExponentialBias`).
        columns: which inputs the distance is of; None: all.
        distance: "euclidean", "periodic", "great_circle" (of longitude and latitude in degrees) or
            "causal" (of a time; a later key is hidden).
        num_basis: number of basis functions of a network.
        length: the distance at which the bias changes, at first.
        spread: ratio of the rates of neighbouring basis functions, at first; with 1 they start
            equal, and stay so.
        period: of the periodic distance.

    Source: Jenson et al., *Transformer Neural Processes – Kernel Regression*, 2024.

    Example:
        >>> bias = Bias(columns=(0, 1)).build(num_heads=4, dim_x=3)
        >>> bias(torch.randn(10, 3), torch.randn(20, 3)).shape
        torch.Size([4, 10, 20])
    """

    kernel: Literal["rbf", "centred_rbf", "scalar", "exponential"] = "rbf"
    columns: Sequence[int] | None = None
    distance: Literal["euclidean", "periodic", "great_circle", "causal"] = "euclidean"
    num_basis: int = 5
    length: float = 1.0
    spread: float = 4.0
    period: float = 1.0

    def chosen(self, dim_x: int) -> tuple[int, ...]:
        """The columns of so many inputs.

        Raises:
            InputError: if there is no such column, or one is named twice.
        """
        columns = tuple(range(dim_x)) if self.columns is None else tuple(self.columns)
        wrong = [column for column in columns if not 0 <= column < dim_x]
        if wrong:
            raise InputError(
                f"bias.columns={list(columns)} names column {wrong[0]}, which does not exist: "
                f"dim_x={dim_x} inputs are columns 0 to {dim_x - 1}"
            )
        if not columns or len(set(columns)) < len(columns):
            raise InputError(
                f"bias.columns={list(columns)} must name one input or more, each of them once"
            )
        return columns

    def build(self, num_heads: int, dim_x: int) -> PairBias:
        """The module.

        Raises:
            InputError: if the kernel, the distance or a column does not exist, or the distance is
                not one of so many columns.
        """
        if self.kernel not in _KERNELS:
            raise InputError(f"bias.kernel={self.kernel!r} must be one of {', '.join(_KERNELS)}")
        if self.distance not in _DISTANCES:
            raise InputError(
                f"bias.distance={self.distance!r} must be one of {', '.join(_DISTANCES)}"
            )
        if not (self.length > 0 and self.spread > 0):
            raise InputError(
                f"bias.length={self.length} and bias.spread={self.spread} must be positive numbers"
            )
        columns = self.chosen(dim_x)
        kind = _DISTANCES[self.distance]
        distance = kind(self.period) if kind is Periodic else kind()
        if distance.num_columns not in (None, len(columns)):
            raise InputError(
                f"the {self.distance} distance is one of {distance.num_columns} column(s), not of "
                f"bias.columns={list(columns)}"
            )
        if self.kernel == "scalar":
            return ScalarBias(num_heads, distance, columns, self.length)
        network = _KERNELS[self.kernel]
        return network(num_heads, distance, columns, self.num_basis, self.length, self.spread)


_KERNELS = {
    "rbf": RBFBias,
    "centred_rbf": CentredRBFBias,
    "scalar": ScalarBias,
    "exponential": ExponentialBias,
}
_DISTANCES = {
    "euclidean": Euclidean,
    "periodic": Periodic,
    "great_circle": GreatCircle,
    "causal": Causal,
}
