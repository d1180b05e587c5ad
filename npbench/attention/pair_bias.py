"""Biases that the scores of attention get added, as functions of the distance of two points.

Several of them, of space and of time, add up. `npbench.attention.bias_spec.Bias` says which one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.attention.distances import Coordinates, Distance
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
        >>> from npbench.attention.distances import Euclidean
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
