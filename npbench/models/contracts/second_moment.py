"""The base of the models whose state is the second moments of features, and of outputs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical

from npbench.blocks import BayesianHeads, FunctionPosterior, SecondMoments, WeightPosterior
from npbench.blocks.fourier import fourier_features
from npbench.errors import InputError
from npbench.likelihoods import NormalMixture
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
