"""Places of latents in the space of inputs."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from npbench.errors import DataWarning, InputError

# Dimensions that a grid can fill; beyond, a Sobol sequence does.
_MOST_GRID_DIMS = 2


@dataclass(frozen=True)
class Places:
    """Where latents are: spread over a box of the inputs.

    For one or two inputs they are a grid, centred on the box and as far apart in both; for more a
    Sobol sequence fills the box, `spacing` then being the side of the volume that each has.

    Args:
        low: lower end of the box, one number for all inputs or one each.
        high: upper end.
        number: how many places there are, about: a grid takes what fills it.
        spacing: distance of neighbours; by default as `number` says, which it else overrules.
        learned: whether training moves them, from where they are at first.

    Example:
        >>> Places(-2.0, 2.0, number=5).positions(dim_x=1).flatten().tolist()
        [-2.0, -1.0, 0.0, 1.0, 2.0]
        >>> Places((0.0, 0.0), (2.0, 1.0), spacing=0.5).positions(dim_x=2).shape
        torch.Size([15, 2])
        >>> Places(0.0, 1.0, number=100).positions(dim_x=5).shape
        torch.Size([100, 5])
    """

    low: float | tuple[float, ...] = -2.0
    high: float | tuple[float, ...] = 2.0
    number: int = 64
    spacing: float | None = None
    learned: bool = False

    def box(
        self, dim_x: int
    ) -> tuple[Float[Tensor, "dim_x"], Float[Tensor, "dim_x"], Float[Tensor, "dim_x"]]:
        """The lower end, the upper end and the sides, in float64.

        Raises:
            InputError: if the box is none, or not one of so many inputs.
        """
        if self.number < 1:
            raise InputError(f"places.number={self.number} must be 1 or more")
        if self.spacing is not None and not 0 < self.spacing < math.inf:
            raise InputError(f"places.spacing={self.spacing} must be a positive number")
        ends = []
        for name, given in (("low", self.low), ("high", self.high)):
            end = torch.tensor(given, dtype=torch.float64).reshape(-1)
            if len(end) not in (1, dim_x):
                raise InputError(
                    f"places.{name}={given} must be one number, or one for each of {dim_x} inputs"
                )
            ends.append(end.expand(dim_x))
        low, high = ends
        if not (low.isfinite() & high.isfinite() & (low < high)).all():
            raise InputError(
                f"places.low={self.low} must be below places.high={self.high}, both finite"
            )
        return low, high, high - low

    def step(self, dim_x: int) -> float:
        """The distance of neighbours: `spacing`, or that at which `number` places fill the box."""
        _, _, sides = self.box(dim_x)
        if self.spacing is not None:
            return self.spacing
        volume, total = float(sides.prod()), float(sides.sum())
        if self.number == 1:
            return total / dim_x
        if dim_x == 1:
            return total / (self.number - 1)
        if dim_x == 2:  # from (side/s + 1) (side'/s + 1) = number
            root = math.sqrt(total**2 + 4 * volume * (self.number - 1))
            return 2 * volume / (root - total)
        return (volume / self.number) ** (1 / dim_x)

    def positions(self, dim_x: int) -> Float[Tensor, "places dim_x"]:
        """The places, in float64."""
        low, _, sides = self.box(dim_x)
        step = self.step(dim_x)
        if dim_x > _MOST_GRID_DIMS:
            number = self.number
            if self.spacing is not None:
                number = max(1, round(float((sides / step).prod())))
            return low + sides * _sobol(number, dim_x)
        return torch.cartesian_prod(*self.axes(dim_x)).reshape(-1, dim_x)

    def axes(self, dim_x: int) -> list[Float[Tensor, "places"]]:
        """The places along each input, whose product is the grid.

        Raises:
            InputError: if the places are no grid.
        """
        low, high, sides = self.box(dim_x)
        if dim_x > _MOST_GRID_DIMS:
            raise InputError(f"places for {dim_x} inputs are no grid; those for one or two are")
        step, single = self.step(dim_x), self.spacing is None and self.number == 1
        counts = [1 if single else math.ceil(float(side) / step - 1e-6) + 1 for side in sides]
        return [
            middle + step * (torch.arange(count, dtype=torch.float64) - (count - 1) / 2)
            for middle, count in zip((low + high) / 2, counts)
        ]

    def resolved(self, dim_x: int) -> "Places":
        """The same places with all fields written out, which are equal where the places are."""
        low, high, _ = self.box(dim_x)
        return replace(
            self,
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
            number=len(self.positions(dim_x)),
            spacing=self.step(dim_x),
        )

    def on(
        self, low: float | tuple[float, ...], high: float | tuple[float, ...], dim_x: int
    ) -> "Places":
        """The places of another box, as far apart as these."""
        return replace(self, low=low, high=high, spacing=self.step(dim_x)).resolved(dim_x)


def offsets(lengths: Sequence[float], step: float, dim_x: int) -> Float[Tensor, "heads dim_x"]:
    """How far from the places each head looks, in float64: heads of one length, if that is less
    than the places' distance, share out the cell between places; the others look from the places.
    """
    result = torch.zeros(len(lengths), dim_x, dtype=torch.float64)
    for length in set(lengths):
        heads = [head for head, other in enumerate(lengths) if other == length]
        if len(heads) > 1 and length < step:
            number = len(heads)
            if dim_x == 1:
                shares = (torch.arange(number, dtype=torch.float64)[:, None] + 0.5) / number
            else:
                shares = _sobol(number, dim_x)
                shares = shares - shares.mean(dim=0) + 0.5
            result[heads] = (shares - 0.5) * step
    return result


def _sobol(number: int, dim_x: int) -> Float[Tensor, "number dim_x"]:
    """The first points of the sequence after its corner."""
    return SobolEngine(dim_x).fast_forward(1).draw(number, dtype=torch.float64)


class Locations(nn.Module):
    r"""The places of a model's latents, and inputs as they are seen from their centre.

    All inputs are taken relative to the centre of the box, so that places far from 0 cost no
    digits. Learned places are kept as shifts, in one vector: no optimiser may take them for a
    matrix of weights.

    Args:
        places: where they are.
        dim_x: number of inputs.
        reach: distance beyond which no latent sees a point or a target.
        margin: distance from the box beyond which an input is far outside.
    """

    centre: Tensor
    half_sides: Tensor
    initial: Tensor

    def __init__(self, places: Places, dim_x: int, reach: float, margin: float) -> None:
        super().__init__()
        low, high, _ = places.box(dim_x)
        centre, positions = (low + high) / 2, places.positions(dim_x)
        self.step = places.step(dim_x)
        self.reach = reach
        self.margin = margin
        for name, values in {
            "centre": centre,
            "half_sides": (high - low) / 2,
            "initial": positions - centre,
        }.items():
            dtype = torch.get_default_dtype()
            self.register_buffer(name, values.to(dtype), persistent=False)
        self.shifts = nn.Parameter(torch.zeros(positions.numel())) if places.learned else None
        self._has_warned = False

    @property
    def positions(self) -> Float[Tensor, "places dim_x"]:
        """The places, from the centre."""
        if self.shifts is None:
            return self.initial
        return self.initial + self.step * self.shifts.view_as(self.initial)

    def seen(self, x: Float[Tensor, "*batch dim_x"]) -> Float[Tensor, "*batch dim_x"]:
        """Inputs from the centre; those out of reach of all places, where they just are."""
        bound = self.half_sides + self.reach
        return (x - self.centre).clamp(-bound, bound)

    def nearness(self, x: Float[Tensor, "*batch dim_x"]) -> Float[Tensor, "*batch"]:
        r"""1 for inputs in the box or one spacing beside it, and from there to 0 by
        $e^{-d^2 / (2 \ell^2)}$, where d is the distance and ℓ the margin."""
        outside = ((x - self.centre).abs() - self.half_sides - self.step).clamp(min=0.0)
        return (outside / self.margin).clamp(max=1e3).square().sum(dim=-1).mul(-0.5).exp()

    def warn_if_far(
        self,
        what: str,
        x: Float[Tensor, "*batch dim_x"],
        between: Callable[[Sequence[float], Sequence[float]], str],
    ) -> None:
        """Say once that inputs are far outside, and how to mend it.

        Args:
            what: the inputs are of, such as "targets".
            x: inputs.
            between: puts a range from its ends into words.
        """
        if self._has_warned or torch.compiler.is_compiling():
            return
        bound = self.half_sides + self.step + self.margin
        if not ((x - self.centre).abs() > bound).any():
            return
        self._has_warned = True
        low, high = ((self.centre + sign * self.half_sides).tolist() for sign in (-1, 1))
        warnings.warn(
            f"{what} are far outside the places of the latents ({between(low, high)}): points "
            f"there are hardly seen, and predictions there are those of no points. model.on(low, "
            f"high) has the same weights on another range (said once)",
            DataWarning,
            stacklevel=2,
        )
