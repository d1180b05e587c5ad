"""Standard deviations that are corrected by the errors of predictions."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import InputError

# Where a fit begins: shares that noise has in the errors; the least noise; and the least share by
# which a prediction from no data exceeds what it is at least.
_NOISE_SHARES, _LEAST_NOISE, _MORE = (0.01, 0.1, 0.7), 1e-6, 0.1
_LARGEST_POWER = 4.0
# The parts of a calibration among weights.
_PARTS = "noise", "scale", "power", "unknown"


class Calibration(nn.Module):
    r"""Standard deviations as observed errors have shown them: each σ of a model becomes

    $$\sqrt{\nu^2 + \kappa^2 (\sigma / \sigma_0)^{2 \alpha}}$$

    with noise ν, where the model takes values to be surer than they are, a power α, and the scale κ
    at the standard deviation $\sigma_0$ of predictions from no data.

    Args:
        noise: ν of each output.
        scale: κ of each output.
        power: α of each output.
        unknown: $\sigma_0$ of each output.

    Example:
        >>> calibration = Calibration(*torch.tensor([[0.3], [1.0], [1.0], [2.0]]))
        >>> calibration(torch.tensor([[0.0], [0.8]])).flatten()
        tensor([0.3000, 0.5000])
    """

    noise: Tensor
    scale: Tensor
    power: Tensor
    unknown: Tensor

    def __init__(
        self,
        noise: Float[Tensor, "dim_y"],
        scale: Float[Tensor, "dim_y"],
        power: Float[Tensor, "dim_y"],
        unknown: Float[Tensor, "dim_y"],
    ) -> None:
        super().__init__()
        for name, values in zip(_PARTS, (noise, scale, power, unknown), strict=True):
            self.register_buffer(name, values)

    def forward(self, std: Float[Tensor, "*batch dim_y"]) -> Float[Tensor, "*batch dim_y"]:
        return torch.hypot(
            self.noise.expand_as(std), self.scale * (std / self.unknown) ** self.power
        )

    @classmethod
    def fit(
        cls,
        errors: Float[Tensor, "values components dim_y"],
        std: Float[Tensor, "values components dim_y"],
        log_weight: Float[Tensor, "values components"],
        counts: Float[Tensor, "values"],
        unknown: Float[Tensor, "dim_y"],
        least: Float[Tensor, "dim_y"],
    ) -> "Calibration":
        r"""The one under which values are most likely, in float64.

        There are no errors where nothing is known, far from all data. There the calibrated σ is not
        below `least`: $\nu^2 + \kappa^2 \ge \mathrm{least}^2$. The power is between 1/4 and 4.

        Args:
            errors: of the means of each normal of a mixture; of one normal, where that is all.
            std: their standard deviations.
            log_weight: logarithms of their weights.
            counts: how much each value counts.
            unknown: the standard deviation $\sigma_0$ of a prediction from no data.
            least: what it is at least when it is calibrated.

        Raises:
            InputError: if a prediction is not finite.

        Example:
            >>> errors, std = 0.5 * torch.randn(1000, 1, 1), torch.full((1000, 1, 1), 0.2)
            >>> one = torch.zeros(1000, 1)  # normal with the weight 1
            >>> calibration = Calibration.fit(errors, std, one, torch.ones(1000), *torch.ones(2, 1))
            >>> bool(abs(calibration(std[0]) - 0.5) < 0.1)
            True
        """
        errors, std, log_weight = errors.double(), std.double(), log_weight.double()[..., None]
        share = (counts / counts.sum()).double()[:, None]
        unknown, least = unknown.double(), least.double()

        def of(parameters: Float[Tensor, "3 dim_y"]) -> "Calibration":
            noise, more = parameters[:2].exp()
            noise = noise + _LEAST_NOISE  # also of outputs that are predicted exactly
            scale = ((least.square() - noise.square()).clamp(min=0.0) + more.square()).sqrt()
            return cls(noise, scale, _LARGEST_POWER ** parameters[2].tanh(), unknown)

        def loss(parameters: Float[Tensor, "3 dim_y"]) -> Float[Tensor, ""]:
            sigma = of(parameters)(std)
            log_density = log_weight - 0.5 * (errors / sigma).square() - sigma.log()
            return -(share * log_density.logsumexp(dim=1)).sum()

        more = (unknown.square() - least.square()).clamp(min=0.0).sqrt().maximum(_MORE * least)
        best, reached = None, math.inf
        for start in _NOISE_SHARES:  # there may be several optima
            noise = (start * errors.square().mean(dim=(0, 1)).sqrt()).clamp(min=_LEAST_NOISE)
            start_at = torch.stack([noise.log(), more.log(), torch.zeros_like(noise)])
            parameters = start_at.requires_grad_()
            optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

            def closure(parameters: Tensor = parameters) -> Tensor:
                parameters.grad = None
                value = loss(parameters)
                value.backward()
                return value

            with torch.enable_grad():
                optimizer.step(closure)
            with torch.no_grad():
                value = float(loss(parameters))
                if value < reached:
                    best, reached = of(parameters), value
        if best is None:
            raise InputError("predictions to calibrate by must be finite")
        return best


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
    names = [f"{prefix}calibration.{name}" for name in _PARTS]
    deviations.calibration = None
    if all(name in weights for name in names):
        parts = (torch.zeros_like(weights[name]) for name in names)
        deviations.calibration = Calibration(*parts)
