"""The scales on which latents with places look at inputs."""

import math
from dataclasses import dataclass

from npbench.attention.bias import REACH
from npbench.errors import InputError


@dataclass(frozen=True)
class Scales:
    """The scales on which a located model looks at its inputs, in their unit.

    Args:
        pack: initial length of each head that sees points.
        mix: of each head among latents.
        query: of each head from targets to latents.
        frequencies: lowest and highest of the rotary positions, in radians.
    """

    pack: tuple[float, ...]
    mix: tuple[float, ...]
    query: tuple[float, ...]
    frequencies: tuple[float, float] = (0.5, 16.0)

    @classmethod
    def of(cls, dim_x: int) -> "Scales":
        """Lengths for functions that vary over 0.1 to 1, seen in a box of side 4."""
        if dim_x == 1:
            return cls(
                (0.03, 0.03, 0.06, 0.06, 0.12, 0.3, 0.6, 1.2),
                (0.15, 0.3, 0.8, math.inf),
                (0.07, 0.15, 0.3, 0.8),
            )
        return cls(
            (0.13, 0.13, 0.13, 0.13, 0.25, 0.5, 1.0, 2.0),
            (0.68, 1.3, 3.4, math.inf),
            (0.31, 0.68, 1.3, 3.4),
        )

    @property
    def reach(self) -> float:
        """A distance beyond which no head sees anything, after training has doubled its length
        too; heads that see all distances alike are left out."""
        finite = [z for z in (*self.pack, *self.mix, *self.query) if z < math.inf]
        return 2 * REACH * max(finite, default=1.0)

    @property
    def margin(self) -> float:
        """The greatest length from targets to latents: farther outside, a target is far."""
        finite = [length for length in self.query if length < math.inf]
        return max(finite, default=1.0)

    def check(self, num_heads: int) -> None:
        """Refuse lengths that are not one a head.

        Raises:
            InputError: if so.
        """
        for name in ("mix", "query"):
            lengths = getattr(self, name)
            if len(lengths) != num_heads:
                raise InputError(
                    f"scales.{name}={list(lengths)} must hold a length for each of the model's "
                    f"num_heads={num_heads} heads"
                )
