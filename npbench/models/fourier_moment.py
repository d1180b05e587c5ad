"""FourierMomentNP: Bayesian regression from the Fourier transform of the context."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from npbench.blocks import BayesianHeads, FunctionPosterior, InferredNoise, WeightPosterior
from npbench.blocks.fourier import spaced_lengths
from npbench.blocks.fourier_moments import FourierMoments
from npbench.blocks.frequency_grid import FrequencyGrid
from npbench.blocks.periodic import PeriodicHeads, PeriodicPosterior
from npbench.errors import InputError
from npbench.likelihoods import NormalMixture
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import records_arguments
from npbench.models.contracts.sums import MixtureSumProcess, SumState
from npbench.structure import TensorRecord

# Of Matérn kernels, with which half of the smooth heads begin.
_NU = 2.5


@dataclass(frozen=True, eq=False)
class FourierPosterior(TensorRecord):
    """The posteriors of the smooth heads, and those of the periodic experts."""

    smooth: WeightPosterior | FunctionPosterior
    periodic: PeriodicPosterior


@dataclass(frozen=True, eq=False)
class FourierMomentState(SumState):
    """The transform of the context, and the `FourierPosterior` that follows from it."""

    moments: FourierMoments

    def merge(self, other: "FourierMomentState") -> "FourierMomentState":
        """The state of the union of two contexts: a sum, exact in any order and tree of merges.

        Raises:
            InputError: if the two are states of different numbers of tasks, or on other grids.
        """
        if self.moments.grid != other.moments.grid:
            raise InputError(
                f"a state on {other.moments.grid} does not merge with one on {self.moments.grid}"
            )
        return super().merge(other)

    def _notes(self) -> dict[str, str]:
        return {"grid": json.dumps(asdict(self.moments.grid))}

    @classmethod
    def _from_file(
        cls, tensors: Mapping[str, Tensor], notes: Mapping[str, str]
    ) -> "FourierMomentState":
        names = "squares", "count", "points", "outputs"
        sums = {name: tensors[f"moments.{name}"] for name in names}
        return cls(FourierMoments(**sums, grid=FrequencyGrid(**json.loads(notes["grid"]))), None)


class FourierMomentNP(MixtureSumProcess):
    r"""Constant memory for smooth and for periodic functions of one input, by one state.

    $$C(w) = \sum_n e^{i w x_n}, \qquad B(w) = \sum_n y_n e^{i w x_n}, \qquad
      c = \sum_n y_n^2$$
    $$p(y_t) = \sum_h \pi_h\, \mathcal{N}(y_t; \mu_h(x_t), \sigma_h^2(x_t))
      + \sum_e \pi_e\, \mathcal{N}(y_t; \mu_e(x_t), \sigma_e^2(x_t))$$

    The state is the Fourier transform of the context on a grid of frequencies (`FourierMoments`),
    from which the second moments of any Fourier features follow, whatever frequencies are chosen
    after the points were seen. One mixture weighs two families by their evidence: smooth heads,
    those of `SecondMomentNP` (`BayesianHeads`), and experts that say which period the functions
    have (`PeriodicHeads`). Sums merge, and forget by subtraction. The equations are solved once a
    state, in float64; which cells of periods are searched may change with rounding where two have
    the same evidence.

    It has one input. The context lies within `x_range`, and targets may lie anywhere. The size of
    the state is proportional to the width of that range and to the highest frequency.

    Args:
        dim_x: number of inputs of a point, which must be 1.
        dim_y: number of outputs of a point.
        num_features: number of frequencies of the smooth heads.
        num_heads: number of smooth heads, of which half begin as RBF kernels and the others as
            Matérn-5/2 kernels.
        x_range: the ends between which the context lies.
        lengths: shortest and longest length of the smooth heads, between which they are spaced
            evenly in the logarithm; by default 1/40 and 1/4 of the width of `x_range`.
        periods: shortest and longest period that is searched.
        num_periodic_heads: number of spectra of periodic functions.
        num_harmonics: number of harmonics of a period.
        num_cells: number of intervals of frequencies that the search begins with.
        num_experts: how many pairs of a period and a spectrum are the best, and how many are drawn
            from the rest.
        prior_std: initial standard deviation of the functions.
        noise_std: initial standard deviation of the noise.
        rate: of the smooth heads, relative to the learning rate of vectors; see `Offset`.
        periodic_rate: the same of the periodic heads.
        likelihood: what is predicted and trained: the "mixture", or the "gaussian" with its mean
            and standard deviation.
        noise: that is inferred task by task, where it differs from one to the next; each length and
            each spectrum then has a head for each of its ratios.

    Source: as of `SecondMomentNP`; Lomb, *Least-Squares Frequency Analysis of Unequally Spaced
    Data*, Astrophysics and Space Science, 1976, for periods of scattered points by evidence.

    Example:
        >>> model = FourierMomentNP(dim_x=1, dim_y=1, num_harmonics=4).eval()
        >>> x, y = torch.linspace(-2, 2, 100).reshape(1, -1, 1), torch.randn(1, 100, 1)
        >>> state = model.condition(x, y)
        >>> state = model.forget(state, x[:, :50], y[:, :50])
        >>> model.query(state, x).mean.shape
        torch.Size([1, 100, 1])
    """

    state_class = FourierMomentState
    # Each target has features of its own for every expert.
    targets_at_a_time = 512

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        num_features: int = 45,
        num_heads: int = 24,
        x_range: tuple[float, float] = (-2.0, 2.0),
        lengths: tuple[float, float] | None = None,
        periods: tuple[float, float] = (0.1, 0.5),
        num_periodic_heads: int = 5,
        num_harmonics: int = 16,
        num_cells: int = 256,
        num_experts: tuple[int, int] = (64, 32),
        prior_std: float = 0.5,
        noise_std: float = 0.1,
        rate: float = 20.0,
        periodic_rate: float = 10.0,
        likelihood: Literal["mixture", "gaussian"] = "mixture",
        noise: InferredNoise | None = None,
    ) -> None:
        super().__init__(dim_x, dim_y, likelihood)
        if dim_x != 1:
            raise InputError(f"dim_x={dim_x} must be 1: FourierMomentNP takes one input")
        # Of inputs there is a range of its own.
        self.watch.watched = range(dim_x, dim_x + dim_y)
        half = (num_heads + 1) // 2
        spaced = spaced_lengths(half, x_range, lengths)
        smoothness = [math.inf] * half + [_NU] * (num_heads - half)
        shapes, stds, count = (spaced + spaced)[:num_heads], [prior_std] * num_heads, None
        if noise is not None:
            shapes, stds = noise.heads(shapes, noise_std)
            smoothness = [nu for nu in smoothness for _ in noise.ratios]
            count = noise.count
        self.heads = BayesianHeads(
            dim_x, num_features, shapes, stds, noise_std, rate, count, smoothness
        )
        self.periodic = PeriodicHeads(
            periods, x_range[1] - x_range[0], num_periodic_heads, num_harmonics, num_cells,
            num_experts, prior_std, noise_std / 2, periodic_rate, noise,
        )  # fmt: skip
        # Smooth frequencies may double in training.
        top = 2 * float(self.heads.features.frequencies.initial.abs().max())
        self.grid = FrequencyGrid(*x_range, max(top, self.periodic.top))

    def _condition(self, chunks: Iterator[Points]) -> FourierMomentState:
        if not (self.training and torch.is_grad_enabled()):
            return super()._condition(chunks)
        points = Points.concatenate(chunks)
        features = self.heads.features(self._centred(points.x))
        moments = self._absorb(points)
        if points.x.shape[1] >= features.shape[-1]:
            return self._state(moments)
        smooth = self.heads.solve_by_points(features, points.y, points.mask)
        return FourierMomentState(moments, self._posterior(smooth, moments))

    def on(self, low: float, high: float) -> "FourierMomentNP":
        """The same model on another range of inputs.

        The search has more cells on a wider range, where more periods can be told apart. Parameters
        are shared: training one trains both. States do not go from one to the other.

        Args:
            low: lower end of the range, in the units of the model.
            high: upper end.

        Raises:
            InputError: if the range is none.
        """
        (low,), (high,) = self._own_range(low, high)
        before, x_range = self.hparams["x_range"], (low, high)
        width = before[1] - before[0]
        lengths = self.hparams["lengths"] or (width / 40, width / 4)
        num_cells = math.ceil(self.periodic.num_cells * (high - low) / width)
        changed = {"x_range": x_range, "lengths": lengths, "num_cells": max(1, num_cells)}
        model = type(self)(**self.hparams | changed)
        parameter = next(self.parameters())
        model.to(parameter.device, parameter.dtype).train(self.training)
        model.heads = self.heads
        for name, module in self.periodic.named_children():
            setattr(model.periodic, name, module)
        model.watch = self.watch
        return model

    def _absorb(self, points: Points) -> FourierMoments:
        if not torch.is_grad_enabled():
            real = points.x if points.mask is None else points.x[points.mask]
            self.grid.check(real, partial(self.watch.shown, 0))
        return FourierMoments.of(self.grid, points.x, points.y, points.mask)

    def _state(self, moments: FourierMoments) -> FourierMomentState:
        limit = self.grid.top
        frequency = self.heads.features.frequencies()[:, 0].clamp(-limit, limit)
        smooth = self.heads.solve(moments.second_moments(frequency))
        return FourierMomentState(moments, self._posterior(smooth, moments))

    def _posterior(
        self, smooth: WeightPosterior | FunctionPosterior, moments: FourierMoments
    ) -> FourierPosterior:
        temperature = self.heads.log_temperature().exp().double()
        return FourierPosterior(smooth, self.periodic.solve(moments, temperature))

    def _predict(self, state: FourierMomentState, xt: Tensor) -> NormalMixture:
        smooth, periodic = state.posterior.smooth, state.posterior.periodic
        xt = self._centred(xt)
        parts = self.heads.predict(smooth, xt), periodic.predict(xt[..., 0])
        mean, std = (torch.cat(pair, dim=2) for pair in zip(*parts))
        score = torch.cat([self.heads.scores(smooth), periodic.score], dim=-1)
        log_weight = score.log_softmax(dim=-1).to(mean.dtype)[:, None].expand(mean.shape[:3])
        return NormalMixture(log_weight, mean, std[..., None].expand_as(mean))

    def _centred(self, x: Tensor) -> Tensor:
        return self.grid.centred(x).to(x.dtype)
