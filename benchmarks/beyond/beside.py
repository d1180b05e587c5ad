"""Located latents beside second moments: both states are kept, and one network reads both.

A residual in the strict sense, y less what the moments predict there, is known only when all points
have been seen: it would take a second pass, or sums of products of all features with all places.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.beyond.recipe import Experiment
from npbench.likelihoods import NormalMixture
from npbench.models import LocatedCMANP, SecondMomentNP
from npbench.models.contracts.points import Points
from npbench.models.contracts.second_moment import SecondMomentState
from npbench.models.located import LocatedState


@dataclass(frozen=True, eq=False)
class BesideState(SecondMomentState):
    located: LocatedState


class _Embed(nn.Linear):
    """A linear layer that adds what it is told beside."""

    beside: Tensor

    def forward(self, features: Float[Tensor, "*batch dim_in"]) -> Float[Tensor, "*batch dim_out"]:
        return super().forward(features) + self.beside


class BesideNP(SecondMomentNP):
    """`SecondMomentNP` whose correcting network also sees what located latents say of a target.

    What it sees of them is multiplied by 0 at first, so that trained moments are not disturbed.

    Args:
        seen: what the latents keep: the "outputs", in one pass, or the "residuals" of what the
            moments predict at the points, in two.
    """

    def __init__(self, seen: Literal["outputs", "residuals"] = "outputs") -> None:
        super().__init__(1, 1, rate=30.0)
        self.seen = seen
        self.located = LocatedCMANP(1, 1, num_layers=2)
        del self.located.head
        embed = self.correct.embed
        self.correct.embed = _Embed(embed.in_features, embed.out_features)
        self.join = nn.Linear(64, 64)
        for parameter in self.join.parameters():
            nn.init.zeros_(parameter)

    def _condition(self, chunks: Iterator[Points]) -> BesideState:
        points = Points.concatenate(chunks)
        state = super()._condition(iter([points]))
        y = points.y
        if self.seen == "residuals":
            y = y - self._bayesian_mixture(state.posterior, points.x).moments[0]
        located = self.located._condition(iter([Points(points.x, y, points.mask)]))
        return BesideState(state.moments, state.posterior, located=located)

    def _predict(self, state: BesideState, xt: Tensor) -> NormalMixture:
        self.correct.embed.beside = self.join(self.located._encode_targets(state.located, xt))
        return super()._predict(state, xt)


EXPERIMENTS = {
    "moments": Experiment(
        "configs/gp/second-moment.yaml", partial(SecondMomentNP, 1, 1, rate=30.0)
    ),
    "moments-beside": Experiment("and located latents beside", BesideNP),
    "moments-residual": Experiment(
        "and located latents on residuals, in two passes", partial(BesideNP, "residuals")
    ),
}
