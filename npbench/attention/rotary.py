"""Rotary positions: vectors that are turned by where they are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import InputError


@dataclass(frozen=True)
class Rotation:
    r"""R(a): turns the pairs $(i, i + d/2)$ of a vector by angles $a_i$.

    $R(a)^{-1} = R(-a)$ and $R(a)\,q \cdot R(b)\,k = q \cdot R(b - a)\,k$: a product of two turned
    vectors depends on the difference of their angles alone.
    """

    cos: Float[Tensor, "*points pairs"]
    sin: Float[Tensor, "*points pairs"]

    def turn(self, v: Float[Tensor, "*batch dim_head"]) -> Float[Tensor, "*batch dim_head"]:
        """R(a) v."""
        first, second = v.chunk(2, dim=-1)
        return torch.cat(
            [
                torch.addcmul(first * self.cos, second, self.sin, value=-1),
                torch.addcmul(second * self.cos, first, self.sin),
            ],
            dim=-1,
        )

    def undo(self, v: Float[Tensor, "*batch dim_head"]) -> Float[Tensor, "*batch dim_head"]:
        """R(−a) v."""
        return Rotation(self.cos, -self.sin).turn(v)


class Rotary(nn.Module):
    r"""The rotations R(Ω x) at positions x, without parameters.

    Pair i turns with one of the inputs, $a_i = \omega_i\, x_{i \bmod d_x}$; the frequencies of each
    input are spread evenly on a logarithmic scale. Inputs beyond the number of pairs turn nothing.

    Args:
        dim_x: number of inputs.
        dim_head: width of the vectors, which is even.
        slowest: lowest frequency, in radians per unit of x.
        fastest: highest frequency.

    Source: Su et al., *RoFormer: enhanced Transformer with rotary position embedding*, 2021.

    Example:
        >>> rotary = Rotary(dim_x=1, dim_head=16, slowest=0.5, fastest=16.0)
        >>> q, k, shift = torch.randn(16), torch.randn(16), torch.tensor([3.0])
        >>> a, b = torch.randn(2, 1)
        >>> near = rotary(a).turn(q) @ rotary(b).turn(k)
        >>> far = rotary(a + shift).turn(q) @ rotary(b + shift).turn(k)
        >>> torch.allclose(near, far, atol=1e-4)
        True
    """

    frequencies: Tensor

    def __init__(self, dim_x: int, dim_head: int, slowest: float, fastest: float) -> None:
        super().__init__()
        if dim_head % 2:
            raise InputError(f"rotary positions turn pairs: a head's width {dim_head} must be even")
        if not 0 < slowest <= fastest:
            raise InputError(
                f"rotary frequencies go from one above 0 up to another, not {slowest} to {fastest}"
            )
        pairs = dim_head // 2
        frequencies = torch.zeros(dim_x, pairs, dtype=torch.float64)
        for axis in range(min(dim_x, pairs)):
            number = len(range(axis, pairs, dim_x))
            exponents = torch.linspace(0, 1, number, dtype=torch.float64)
            frequencies[axis, axis::dim_x] = slowest * (fastest / slowest) ** exponents
        self.register_buffer(
            "frequencies", frequencies.to(torch.get_default_dtype()), persistent=False
        )

    def forward(self, x: Float[Tensor, "*points dim_x"]) -> Rotation:
        angles = x @ self.frequencies
        return Rotation(angles.cos(), angles.sin())
