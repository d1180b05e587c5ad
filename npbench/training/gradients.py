"""Steps whose gradients are not finite, which no optimiser may take."""

import warnings
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import DataWarning, InputError

OnNonFinite = Literal["skip", "raise"]


class GradientCheck:
    """Keeps steps whose gradients are NaN, infinite or too large to square from the weights.

    An optimiser would write NaN into the weights, or an infinite second moment into its own state,
    and the run would be lost. The norm of all gradients tells: it is finite where their squares
    are.

    Args:
        on_nonfinite: "skip" such a step and warn of the first, or "raise" an error.

    Raises:
        InputError: if it is neither.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.tensor([1.0, 2.0])
        >>> GradientCheck("raise").passes([weight], step=7)
        True
    """

    def __init__(self, on_nonfinite: OnNonFinite = "skip") -> None:
        if on_nonfinite not in get_args(OnNonFinite):
            raise InputError(f'on_nonfinite={on_nonfinite!r} must be "skip" or "raise"')
        self.on_nonfinite = on_nonfinite
        self._has_warned = False

    def passes(self, parameters: Iterable[nn.Parameter], step: int) -> bool:
        """Whether the optimiser may take the step; where it may not, there are no gradients left.

        Args:
            parameters: what is trained, with its gradients.
            step: the number of the step, for messages.

        Raises:
            InputError: if it may not, and that was asked to be an error.
        """
        trained = [p for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if norm.isfinite():
            return True
        problem = (
            f"the gradients of step {step} are not finite: values of that batch are too large for "
            f"the model, or its learning rate is"
        )
        if self.on_nonfinite == "raise":
            raise InputError(f"{problem}; scale the data, or set on_nonfinite to skip such steps")
        for parameter in trained:
            parameter.grad = None
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{problem}. Such steps are skipped (said once); set on_nonfinite to raise to end "
                f"the run instead",
                DataWarning,
                stacklevel=2,
            )
        return False


def unusable_loss(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    """A loss whose gradients are NaN, for a batch of which none can be computed.

    So that its step is skipped or raised as those of all other such batches: by all processes that
    train together, whichever of them has the batch.
    """
    return torch.nan * torch.stack([parameter.sum() for parameter in parameters]).sum()
