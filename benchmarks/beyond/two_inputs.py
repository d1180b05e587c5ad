"""Second moments with two inputs: one matrix for all heads, or a block of it for each."""

import math
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.beyond.recipe import Experiment
from npbench.blocks.bayesian_regression import inverse_and_log_det, plus_identity
from npbench.blocks.fourier import Offset, spaced_lengths
from npbench.likelihoods import MixtureCorrection, NormalMixture
from npbench.models import LocatedCMANP, SecondMomentNP
from npbench.models.contracts.points import Points
from npbench.models.contracts.stored_context import StoredContext, StoredContextProcess

_RATE = 30.0


class BlockMomentNP(StoredContextProcess):
    r"""`SecondMomentNP` whose heads have features, and moments, of their own.

    $A_h = \sum_n \varphi_h(x_n) \varphi_h(x_n)^\top$ for each head h: the blocks on the diagonal of
    the moments of all features. Here the equations are those of the points, which give the same.

    Args:
        num_features: frequencies of each head.
        num_heads: number of heads.
        frequencies: "isotropic", those of an RBF kernel, or "ridge", along one learned direction of
            each head, so that it sees a projection of the inputs on a line.
    """

    def __init__(
        self,
        num_features: int,
        num_heads: int,
        frequencies: Literal["isotropic", "ridge"] = "isotropic",
    ) -> None:
        super().__init__(dim_x=2, dim_y=1)
        if frequencies == "ridge":  # three lengths, each along four directions
            spread = 1 / torch.tensor(spaced_lengths(num_heads, (-2.0, 2.0), None)[::4])
            angle = math.pi * torch.arange(num_heads) / 4
            level = (torch.arange(num_features) + 0.5) / num_features
            normal = torch.special.ndtri(0.5 + level / 2)
            self.along = Offset(normal * spread.repeat_interleave(4)[:, None], _RATE)
            self.direction = Offset(torch.stack([angle.cos(), angle.sin()], dim=-1), _RATE)
        else:
            self.along = None
            spread = 1 / torch.tensor(spaced_lengths(num_heads, (-2.0, 2.0), None))
            uniform = torch.quasirandom.SobolEngine(2 * num_heads, scramble=True, seed=0)
            normal = torch.special.ndtri(uniform.draw(num_features).clamp(1e-6, 1 - 1e-6))
            normal = normal.view(num_features, num_heads, 2).transpose(0, 1)
            self.frequencies = Offset(normal * spread[:, None, None], _RATE)
        shape = num_heads, num_features
        self.log_prior_std = Offset(torch.full(shape, math.log(0.5 / num_features**0.5)), _RATE)
        self.log_noise_std = Offset(torch.full([num_heads], math.log(0.1)), _RATE)
        self.logit = Offset(torch.zeros(num_heads), _RATE)
        self.log_temperature = Offset(torch.zeros(()), _RATE)
        self.correct = MixtureCorrection(num_heads, 1, 64, 128)

    def _features(
        self, x: Float[Tensor, "batch points 2"]
    ) -> Float[Tensor, "batch heads points m"]:
        if self.along is None:
            frequencies = self.frequencies()
        else:
            frequencies = self.along()[..., None] * self.direction()[:, None]
        angle = x[:, None] @ frequencies.mT
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def _encode(self, points: Points) -> StoredContext:
        return StoredContext(points, points.y[:, None])

    def _query(self, state: StoredContext, xt: Tensor) -> Distribution:
        points = state.points
        noise = self.log_noise_std().exp()[:, None, None]
        std = self.log_prior_std().clamp(max=5.0).exp().repeat(1, 2)[:, None]
        features, at_targets = (self._features(x) * std for x in (points.x, xt))
        y = points.y[:, None]
        if points.mask is not None:
            real = points.mask[:, None, :, None]
            features, y = features * real, y * real
        inverse, log_det = inverse_and_log_det(plus_identity(features @ features.mT / noise**2))
        solved = inverse @ y / noise
        evidence = -0.5 * (
            points.count[:, None] * (math.log(2 * math.pi) + 2 * noise[:, 0, 0].log())
            + log_det + (y * solved).sum(dim=(-2, -1)) / noise[:, 0, 0]
        )  # fmt: skip
        cross = at_targets @ features.mT / noise
        mean = cross @ solved
        variance = at_targets.square().sum(-1) - ((cross @ inverse) * cross).sum(-1)
        deviation = (variance.clamp(min=0.0) + noise[..., 0].square()).sqrt()
        log_weight = (self.logit() + self.log_temperature().exp() * evidence).log_softmax(dim=-1)
        mixture = NormalMixture(
            log_weight[:, None].expand(-1, xt.shape[1], -1),
            mean.transpose(1, 2),
            deviation.transpose(1, 2)[..., None],
        )
        return self.correct(mixture, points.count, evidence.amax(dim=-1)).distribution


_DATA = {"dim_x": 2}
EXPERIMENTS = {
    **{
        f"2d-{num_features}x{num_heads}": Experiment(
            f"SecondMomentNP, {num_features} frequencies, {num_heads} heads",
            partial(SecondMomentNP, 2, 1, num_features, num_heads, rate=_RATE),
            _DATA,
        )
        for num_features in (64, 128, 256)
        for num_heads in (6, 12)
    },
    "2d-blocks-64": Experiment("6 heads, 64 each", partial(BlockMomentNP, 64, 6), _DATA),
    "2d-blocks-128": Experiment("6 heads, 128 each", partial(BlockMomentNP, 128, 6), _DATA),
    "2d-ridge-16": Experiment(
        "12 heads, each on a line", partial(BlockMomentNP, 16, 12, "ridge"), _DATA
    ),
    "2d-located": Experiment("LocatedCMANP, 64 places", partial(LocatedCMANP, 2, 1), _DATA),
}
