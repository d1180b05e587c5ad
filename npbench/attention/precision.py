"""What keeps its precision under autocast, which computes products in bfloat16."""

import torch
from jaxtyping import Float
from torch import Tensor


def at_least_float32(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same numbers in float32, or in float64 if they are: for sums and densities.

    Example:
        >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return z.to(torch.promote_types(z.dtype, torch.float32))
