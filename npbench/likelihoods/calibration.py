"""Standard deviations that are corrected by the errors of predictions."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import InputError

# Where a fit begins: shares that noise has in the errors; and the least noise.
_NOISE_SHARES, _LEAST_NOISE = (0.01, 0.1, 0.7), 1e-6


class Calibration(nn.Module):
    r"""Standard deviations as observed errors have shown them: each σ of a model becomes

    $$\sqrt{\nu^2 + (\kappa \sigma)^2}$$

    with a scale κ, and noise ν where the model takes values to be surer than they are.

    Args:
        noise: ν of each output.
        scale: κ of each output.

    Example:
        >>> calibration = Calibration(torch.tensor([0.3]), torch.tensor([0.5]))
        >>> calibration(torch.tensor([[0.0], [0.8]])).flatten()
        tensor([0.3000, 0.5000])
    """

    noise: Tensor
    scale: Tensor

    def __init__(self, noise: Float[Tensor, "dim_y"], scale: Float[Tensor, "dim_y"]) -> None:
        super().__init__()
        self.register_buffer("noise", noise)
        self.register_buffer("scale", scale)

    def forward(self, std: Float[Tensor, "*batch dim_y"]) -> Float[Tensor, "*batch dim_y"]:
        return torch.hypot(self.noise.expand_as(std), self.scale * std)

    @classmethod
    def fit(
        cls,
        errors: Float[Tensor, "values components dim_y"],
        std: Float[Tensor, "values components dim_y"],
        log_weight: Float[Tensor, "values components"],
        counts: Float[Tensor, "values"],
    ) -> "Calibration":
        """The one under which values are most likely, in float64.

        Args:
            errors: of the means of each normal of a mixture; of one normal, where that is all.
            std: their standard deviations.
            log_weight: logarithms of their weights.
            counts: how much each value counts.

        Raises:
            InputError: if a prediction is not finite.

        Example:
            >>> errors, std = torch.randn(1000, 1, 1), torch.full((1000, 1, 1), 0.5)
            >>> one = torch.zeros(1000, 1)  # normal with the weight 1
            >>> calibration = Calibration.fit(errors, std, one, torch.ones(1000))
            >>> bool(abs(calibration(std[0]) - 1) < 0.1)
            True
        """
        errors, std, log_weight = errors.double(), std.double(), log_weight.double()[..., None]
        share = (counts / counts.sum()).double()[:, None]

        def loss(parameters: Float[Tensor, "2 dim_y"]) -> Float[Tensor, ""]:
            sigma = cls(*parameters.exp())(std)
            log_density = log_weight - 0.5 * (errors / sigma).square() - sigma.log()
            return -(share * log_density.logsumexp(dim=1)).sum()

        best, least = None, math.inf
        for start in _NOISE_SHARES:  # there may be several optima
            noise = (start * errors.square().mean(dim=(0, 1)).sqrt()).clamp(min=_LEAST_NOISE).log()
            parameters = torch.stack([noise, torch.zeros_like(noise)]).requires_grad_()
            optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

            def closure(parameters: Tensor = parameters) -> Tensor:
                parameters.grad = None
                value = loss(parameters)
                value.backward()
                return value

            with torch.enable_grad():
                optimizer.step(closure)
            reached = float(loss(parameters.detach()))
            if reached < least:
                best, least = parameters.detach().exp(), reached
        if best is None:
            raise InputError("predictions to calibrate by must be finite")
        return cls(*best)


class Deviations(nn.Module):
    """The standard deviations of a model's predictions, to which a `calibration` may be given;
    weights with one bring it along."""

    def __init__(self) -> None:
        super().__init__()
        self.calibration: Calibration | None = None
        self.register_load_state_dict_pre_hook(_take_calibration)

    def forward(self, std: Float[Tensor, "*batch dim_y"]) -> Float[Tensor, "*batch dim_y"]:
        """The same, corrected if there is a calibration."""
        return std if self.calibration is None else self.calibration(std)


def _take_calibration(
    deviations: Deviations, weights: Mapping[str, Any], prefix: str, *_: Any
) -> None:
    """Make room for the calibration that weights to be loaded bring, if they bring one."""
    noise, scale = (weights.get(f"{prefix}calibration.{name}") for name in ("noise", "scale"))
    deviations.calibration = None
    if noise is not None and scale is not None:
        deviations.calibration = Calibration(torch.empty_like(noise), torch.empty_like(scale))
