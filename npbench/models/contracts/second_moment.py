"""The base of the models whose state is the second moments of features, and of outputs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.distributions import Categorical

from npbench.blocks import BayesianHeads, FunctionPosterior, SecondMoments, WeightPosterior
from npbench.blocks.fourier import fourier_features
from npbench.errors import InputError
from npbench.likelihoods import NormalMixture
from npbench.models.contracts.inputs import check_batch
from npbench.models.contracts.points import Points
from npbench.models.contracts.sums import MixtureSumProcess, SumState
from npbench.scaling import Scaling
from npbench.structure import TensorRecord


@dataclass(frozen=True, eq=False)
class SecondMomentState(SumState):
    """Second moments, and the posterior of the weights that follows from them.

    In training mode with gradients it is a `FunctionPosterior` where there are fewer points than
    features.
    """

    moments: SecondMoments
    posterior: WeightPosterior | FunctionPosterior | None

    @classmethod
    def _from_file(
        cls, tensors: Mapping[str, Tensor], notes: Mapping[str, str]
    ) -> "SecondMomentState":
        names = "squares", "count", "products", "targets"
        return cls(SecondMoments(*(tensors[f"moments.{name}"] for name in names)), None)


@dataclass(frozen=True, eq=False)
class SampledFunctions(TensorRecord):
    r"""Functions $f(x) = w^\top \varphi(x)$ that a model has drawn, to be evaluated anywhere.

    Calls are consistent with each other: the functions are their weights, which are kept. A value
    costs a dot product of m numbers. `noise_std` is what an observation adds to the function, in
    the model's numbers. Inputs and values are in the units of the model, if it has any.
    """

    weights: Float[Tensor, "samples batch m dim_y"]
    frequencies: Float[Tensor, "features dim_x"]
    noise_std: Float[Tensor, "samples batch"]
    scaling: Scaling | None = None

    def __call__(
        self, x: Float[Tensor, "batch points dim_x"]
    ) -> Float[Tensor, "samples batch points dim_y"]:
        """The functions' values, each task's at its own inputs.

        Raises:
            InputError: if x has another number of tasks or inputs.
        """
        width = self.frequencies.shape[1] if self.scaling is None else len(self.scaling.x)
        if x.ndim != 3 or x.shape[::2] != (self.weights.shape[1], width):
            raise InputError(
                f"x has shape {list(x.shape)}; expected [{self.weights.shape[1]}, points, {width}]"
            )
        if self.scaling is None:
            return self.of_numbers(x)
        numbers = self.scaling.encode_x(x).to(self.frequencies)
        return self.scaling.decode_y(self.of_numbers(numbers))

    def of_numbers(
        self, x: Float[Tensor, "batch points dim_x"]
    ) -> Float[Tensor, "samples batch points dim_y"]:
        """The same in the model's own numbers."""
        return fourier_features(x, self.frequencies) @ self.weights


@dataclass(frozen=True, eq=False)
class FunctionMixture(TensorRecord):
    """What a state says of the functions' values at some targets, jointly: a mixture of normals.

    All is in the model's numbers. Outputs are independent given the component, and share its
    covariance. An observation adds noise of the standard deviation `noise_std`.
    """

    log_weight: Float[Tensor, "batch heads"]
    mean: Float[Tensor, "batch heads target dim_y"]
    covariance: Float[Tensor, "batch heads target target"]
    noise_std: Float[Tensor, "batch heads"]

    @property
    def noisy_covariance(self) -> Float[Tensor, "batch heads target target"]:
        """The covariance of observations."""
        variance = self.noise_std.square()[..., None].expand(self.mean.shape[:3])
        return self.covariance + torch.diag_embed(variance)


class SecondMomentProcess(MixtureSumProcess):
    """What the models of second moments share: the state, and the functions that it knows of.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        heads: the priors.
        likelihood: as of `MixtureSumProcess`.
    """

    state_class = SecondMomentState

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        heads: BayesianHeads,
        likelihood: Literal["mixture", "gaussian"] = "mixture",
    ) -> None:
        super().__init__(dim_x, dim_y, likelihood)
        self.heads = heads

    @property
    def is_corrected(self) -> bool:
        """Whether predictions are more than the Bayesian mixture, which `functions` is of."""
        return False

    def functions(
        self, state: SecondMomentState, xt: Real[Tensor, "*batch target dim_x"] | np.ndarray
    ) -> FunctionMixture:
        r"""The joint distribution of the functions' values at targets, without noise:

        $$\sum_h \pi_h\, \mathcal{N}(\Phi \bar w_h, \Phi R_h^\top R_h \Phi^\top)$$

        Args:
            state: of the context.
            xt: target inputs, in the units of the model; what is returned is in its numbers.

        Raises:
            InputError: as `query`.

        Example:
            >>> model = SecondMomentNP(dim_x=1, dim_y=1)
            >>> state = model.condition(*torch.randn(2, 1, 10, 1))
            >>> model.functions(state, torch.randn(1, 3, 1)).covariance.shape
            torch.Size([1, 12, 3, 3])
        """
        return self._functions(state, self._targets(state, xt).x)

    def functions_given(
        self,
        state: SecondMomentState,
        x: Real[Tensor, "*batch points dim_x"] | np.ndarray,
        y: Real[Tensor, "*batch points dim_y"] | np.ndarray,
        xt: Real[Tensor, "*batch target dim_x"] | np.ndarray,
    ) -> FunctionMixture:
        """What `functions` says after an `update` with a few points, without the update.

        It solves as many equations as there are points and targets, and none in the weights: for
        many guesses of what the next points may be, which share the state.

        Args:
            state: of the context.
            x: inputs of the points.
            y: their outputs.
            xt: target inputs.

        Raises:
            InputError: as `update` and `query`.
        """
        points, targets = self._inputs.points("x", x, "y", y, None), self._targets(state, xt)
        check_batch("x", points.x, state.batch_size)
        heads, num_points = self.heads, points.x.shape[1]
        posterior = self._solved(state).posterior
        features = heads.features(torch.cat([points.x, targets.x], dim=1))
        mean, noise_std = features[:, None] @ posterior.mean, heads.noise_std
        # Without the ratio of the task's noise to that of the head, which the points change.
        ratio = posterior.noise_std / noise_std
        covariance = posterior.covariance(features) / ratio[..., None, None].square()
        among, across = covariance[..., :num_points, :].split([num_points, xt.shape[-2]], dim=-1)
        noise = noise_std.square()[:, None, None] * torch.eye(num_points).to(among)
        factor = torch.linalg.cholesky(among + noise)
        away = points.y[:, None] - mean[..., :num_points, :]
        across, away = (
            torch.linalg.solve_triangular(factor, z, upper=False) for z in (across, away)
        )
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1) - num_points * noise_std.log()
        number = self.dim_y * state.moments.count[:, None]
        misfit = away.square().sum(dim=(-2, -1))
        ratio, evidence = heads.with_more(posterior, number, misfit, 2 * log_det, num_points)
        return FunctionMixture(
            heads.log_weights(replace(posterior, log_evidence=evidence)),
            mean[..., num_points:, :] + across.mT @ away,
            ratio[..., None, None].square()
            * (covariance[..., num_points:, num_points:] - across.mT @ across),
            ratio * noise_std,
        )

    def _functions(self, state: SecondMomentState, xt: Tensor) -> FunctionMixture:
        posterior = self._solved(state).posterior
        features = self.heads.features(xt)
        with torch.autocast(xt.device.type, enabled=False):
            return FunctionMixture(
                self.heads.log_weights(posterior),
                features[:, None] @ posterior.mean,
                posterior.covariance(features),
                posterior.noise_std,
            )

    def sample_functions(self, state: SecondMomentState, num_samples: int = 1) -> SampledFunctions:
        r"""Draw functions from the Bayesian mixture, to be evaluated anywhere and later.

        $$h \sim \pi, \qquad w \sim \mathcal{N}(\bar w_h, R_h^\top R_h), \qquad
          f(x) = w^\top \varphi(x)$$

        Without gradient, from torch's random state. For Thompson sampling, and for maps whose
        values fit together.

        Args:
            state: of the context.
            num_samples: functions drawn for each task.

        Raises:
            InputError: if `num_samples` is not 1 or more.

        Example:
            >>> model = SecondMomentNP(dim_x=1, dim_y=1)
            >>> state = model.condition(*torch.randn(2, 1, 10, 1))
            >>> functions = model.sample_functions(state, num_samples=3)
            >>> functions(torch.linspace(-2, 2, 100).reshape(1, -1, 1)).shape
            torch.Size([3, 1, 100, 1])
        """
        if num_samples < 1:
            raise InputError(f"num_samples={num_samples} must be 1 or more")
        with torch.no_grad():
            posterior = self._solved(state).posterior
            head = Categorical(logits=self.heads.log_weights(posterior)).sample((num_samples,))
            task = torch.arange(head.shape[1], device=head.device)
            mean, root = posterior.mean[task, head], posterior.root[task, head]
            weights = mean + root.mT @ torch.randn_like(mean)
            frequencies = self.heads.features.frequencies()
            noise_std = posterior.noise_std[task, head]
            return SampledFunctions(weights, frequencies, noise_std, self.scaling)

    def _condition(self, chunks: Iterator[Points]) -> SecondMomentState:
        if not (self.training and torch.is_grad_enabled()):
            return super()._condition(chunks)
        points = Points.concatenate(chunks)
        features = self.heads.features(points.x)
        moments = SecondMoments.of(features, points.y, points.mask)
        if points.x.shape[1] >= features.shape[-1]:
            return self._state(moments)
        posterior = self.heads.solve_by_points(features, points.y, points.mask)
        return SecondMomentState(moments, posterior)

    def _absorb(self, points: Points) -> SecondMoments:
        return SecondMoments.of(self.heads.features(points.x), points.y, points.mask)

    def _state(self, moments: SecondMoments) -> SecondMomentState:
        return SecondMomentState(moments, self.heads.solve(moments))

    def _solved(self, state: SecondMomentState) -> SecondMomentState:
        return state if isinstance(state.posterior, WeightPosterior) else self._state(state.moments)

    def _bayesian_mixture(
        self, posterior: WeightPosterior | FunctionPosterior, xt: Tensor
    ) -> NormalMixture:
        """At each target by itself: what the heads say, weighed by their evidence."""
        mean, std = self.heads.predict(posterior, xt)
        log_weight = self.heads.log_weights(posterior)[:, None].expand(mean.shape[:3])
        return NormalMixture(log_weight, mean, std[..., None].expand_as(mean))
