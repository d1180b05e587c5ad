"""A grid of frequencies, from which the transform of points is known at any frequency between."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Integer
from torch import Tensor

from npbench.errors import InputError

# The grid is so many times as fine as the range of the inputs demands, and so many of its
# frequencies take part in an interpolation: its error is then near the rounding of float64.
_OVERSAMPLING, _TAPS = 1.5, 16
_BETA = math.pi * math.sqrt((_TAPS / _OVERSAMPLING) ** 2 * (_OVERSAMPLING - 0.5) - 0.8)
# The window falls below the rounding of float64 before its end, where it has a pole.
_WINDOW_END = 1e-3
# Exponentials of the grid's frequencies are products of those of so many, and of multiples.
_ROW = 64


@dataclass(frozen=True)
class FrequencyGrid:
    r"""Frequencies $w_k = k \delta$ up to `top`, for inputs in [low, high].

    With the window $\psi$ of T = 20 grid steps and its transform,

    $$\psi(t) = \frac{e^{\beta (s - 1)}}{s}, \quad s = \sqrt{1 - (2t/T)^2}, \qquad
      \hat\psi(\xi) = \pi T e^{-\beta} I_0\Big(\sqrt{\beta^2 - (T \xi / 2)^2}\Big)$$

    and $\delta$ such that $\xi = \delta (x - \mathrm{centre})$ stays within ±π/1.5, each wave is a
    sum of its neighbours on the grid, with a relative error of about 1e-12:

    $$e^{i w (x - \mathrm{centre})}
      = \sum_k \psi(w / \delta - k) \frac{e^{i k \xi}}{\hat\psi(\xi)}$$

    Args:
        low: lower end of the inputs.
        high: upper end.
        top: the highest frequency that is asked for, in radians per unit of the inputs.

    Source: Fourmont, *Non-Equispaced Fast Fourier Transforms with Applications to Tomography*,
    J. Fourier Anal. Appl., 2003, for Kaiser–Bessel windows in fast transforms of scattered points.

    Example:
        >>> grid = FrequencyGrid(-2.0, 2.0, top=50.0)
        >>> x, weight = torch.tensor([[0.5, 1.0]]), torch.ones(1, 2, 1)
        >>> wave = grid.at(grid.transform(x, weight, grid.size), torch.tensor([[7.3]]))
        >>> torch.allclose(wave[0, :, 0].real, torch.tensor([7.3 * 0.5, 7.3]).double().cos().sum())
        True
    """

    low: float
    high: float
    top: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(
                f"x_range=({self.low}, {self.high}) must go from a number to a greater one"
            )

    @property
    def step(self) -> float:
        """δ."""
        return 2 * math.pi / (_OVERSAMPLING * (self.high - self.low))

    @property
    def size(self) -> int:
        """Number of frequencies that reach `top`."""
        return self.size_for(self.top)

    def size_for(self, top: float) -> int:
        """Number of frequencies that reach another top."""
        return _ROW * math.ceil((top / self.step + _TAPS / 2 + 2) / _ROW)

    def centred(self, x: Tensor) -> Tensor:
        """The inputs less the centre of the range, in float64."""
        return x.double() - (self.low + self.high) / 2

    def check(self, x: Tensor, shown: Callable[[float], float] = float) -> None:
        """Refuse inputs outside the range.

        Args:
            x: inputs.
            shown: makes of an end of the range what a message says.

        Raises:
            InputError: if there are any.
        """
        outside = (x < self.low) | (x > self.high)
        if outside.any():
            raise InputError(
                f"{int(outside.sum())} points lie outside [{shown(self.low):.10g}, "
                f"{shown(self.high):.10g}], the range of the model's inputs; give an x_range that "
                f"holds them all, or take model.on(low, high)"
            )

    def transform(
        self,
        x: Float[Tensor, "batch points"],
        weight: Float[Tensor, "batch points outputs"],
        size: int,
    ) -> Complex[Tensor, "batch outputs {size}"]:
        """The weighted sums over points of the waves at the first `size` frequencies.

        They are divided by the window's transform, as `at` expects.
        """
        angle = self.step * self.centred(x)
        radius = (_BETA**2 - (_TAPS / 2 * angle).square()).clamp(min=0.0).sqrt()
        window = math.pi * _TAPS * (radius - _BETA).exp() * torch.special.i0e(radius)
        fine = _waves(angle, torch.arange(_ROW, device=x.device))
        coarse = _waves(angle, torch.arange(0, size, _ROW, device=x.device))
        rows = (weight.double() / window[..., None])[..., None] * coarse[:, :, None]
        return (rows.flatten(2).mT @ fine).reshape(x.shape[0], weight.shape[-1], size)

    def at(
        self, transform: Complex[Tensor, "batch outputs size"], frequency: Float[Tensor, "tasks w"]
    ) -> Complex[Tensor, "batch outputs w"]:
        """The transform at other frequencies, which may be negative; of all tasks, or of each."""
        half = _TAPS // 2
        position = frequency.double().abs() / self.step
        first = position.detach().ceil().long() - half
        index = first[..., None] + torch.arange(_TAPS, device=first.device)
        away = (position[..., None] - index) * (2 / _TAPS)
        s = (1 - away.square()).clamp(min=_WINDOW_END).sqrt()
        window = (_BETA * (s - 1)).exp() / s
        mirrored = torch.cat([transform[..., 1 : half + 1].flip(-1).conj(), transform], dim=-1)
        found = _interpolated(mirrored, index + half, window)
        return torch.where(frequency[:, None] < 0, found.conj(), found)


def _waves(
    angle: Float[Tensor, "batch points"], multiple: Integer[Tensor, "waves"]
) -> Complex[Tensor, "batch points waves"]:
    angle = angle[..., None] * multiple
    return torch.complex(angle.cos(), angle.sin())


def _interpolated(
    values: Complex[Tensor, "batch outputs size"],
    index: Integer[Tensor, "tasks w taps"],
    window: Float[Tensor, "tasks w taps"],
) -> Complex[Tensor, "batch outputs w"]:
    if index.shape[0] == 1:
        return (values[..., index[0]] * window).sum(dim=-1)
    flat = index.flatten(1)[:, None].expand(-1, values.shape[1], -1)
    return (values.gather(-1, flat).unflatten(-1, index.shape[1:]) * window[:, None]).sum(dim=-1)
