"""SecondMomentNP: Bayesian regression from sums over the context, corrected by a network."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

from npbench.blocks import BayesianHeads, InferredNoise
from npbench.blocks.fourier import spaced_lengths
from npbench.likelihoods import Deviations, MixtureCorrection, NormalMixture
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import (
    Evaluation,
    records_arguments,
)
from npbench.models.contracts.second_moment import SecondMomentProcess, SecondMomentState


class SecondMomentNP(SecondMomentProcess):
    r"""Second-Moment Neural Process: constant memory, and sums that forget as exactly as they add.

    $$A = \sum_n \varphi_n \varphi_n^\top, \qquad b = \sum_n \varphi_n y_n^\top, \qquad
      c = \sum_n y_n^2, \qquad \varphi(x) = [\cos W x, \sin W x]$$
    $$y_t \sim \mathrm{correct}\Big(\sum_{h=1}^H \pi_h\, \mathcal{N}(\bar w_h^\top \varphi_t,
      \lVert R_h \varphi_t \rVert^2 + \sigma_h^2)\Big)$$

    H priors of one Bayesian linear regression are answered by the same sums and weighed by their
    evidence (`BayesianHeads`); a network corrects the mixture target by target
    (`MixtureCorrection`), and at first leaves it as it is. The sums are kept in float64, and the
    equations are solved in it, once a state: a query solves none. In training with fewer context
    points than features the equations are those of the points, in the type of the model.

    Predictions move with the data where all inputs are shifted, as no layer sees an input but
    through the features. Lengths far below `lengths` over a range far above `x_range` are beyond
    m = 2F features; m³ operations and m²/2 numbers bound m itself.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        num_features: number F of frequencies.
        num_heads: number H of priors.
        x_range: where the inputs lie, in each dimension: sets `lengths`.
        lengths: shortest and longest length of the initial priors, between which they are spaced
            evenly in the logarithm; by default 1/40 and 1/4 of the width of `x_range`.
        prior_std: initial standard deviation of the functions.
        noise_std: initial standard deviation of the noise.
        rate: of the features and priors, relative to the learning rate of vectors; see `Offset`.
        dim_model: width of the correcting network.
        dim_feedforward: hidden width of its layers.
        likelihood: what is predicted and trained: the "mixture", or the "gaussian" with its mean
            and standard deviation.
        noise: for tasks whose noise differs; each length then has a head for each of the ratios,
            and `prior_std` is not used. By default every head has its own noise for all tasks.
        corrected: whether the network corrects the mixture. Without it, predictions from any number
            of points, and of any noise, are those of Bayesian regression itself.

    Source: Harrison, Sharma and Pavone, *Meta-Learning Priors for Efficient Online Bayesian
    Regression* (ALPaCA), WAFR 2018, for regression on learned features; Rahimi and Recht, *Random
    Features for Large-Scale Kernel Machines*, NeurIPS 2007, for the features.

    Example:
        >>> model = SecondMomentNP(dim_x=1, dim_y=1).eval()
        >>> x, y = torch.linspace(-2, 2, 100).reshape(1, -1, 1), torch.randn(1, 100, 1)
        >>> state = model.condition(x, y)
        >>> state = model.forget(state, x[:, :50], y[:, :50])
        >>> model.query(state, x).mean.shape
        torch.Size([1, 100, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        num_features: int = 45,
        num_heads: int = 12,
        x_range: tuple[float, float] = (-2.0, 2.0),
        lengths: tuple[float, float] | None = None,
        prior_std: float = 0.5,
        noise_std: float = 0.1,
        rate: float = 20.0,
        dim_model: int = 64,
        dim_feedforward: int = 128,
        likelihood: Literal["mixture", "gaussian"] = "mixture",
        noise: InferredNoise | None = None,
        corrected: bool = True,
    ) -> None:
        lengths = spaced_lengths(num_heads, x_range, lengths)
        heads = _heads(dim_x, num_features, lengths, prior_std, noise_std, rate, noise)
        super().__init__(dim_x, dim_y, heads, likelihood)
        self.correct = None
        if corrected:
            number = len(heads.noise_std)
            self.correct = MixtureCorrection(number, dim_y, dim_model, dim_feedforward)
        self.deviations = Deviations()

    @property
    def is_corrected(self) -> bool:
        return self.correct is not None

    def _predict(self, state: SecondMomentState, xt: Tensor) -> NormalMixture:
        mixture = self._bayesian_mixture(state.posterior, xt)
        if self.correct is not None:
            evidence = state.posterior.log_evidence.amax(dim=-1)
            mixture = self.correct(mixture, state.moments.count, evidence)
        return replace(mixture, std=self.deviations(mixture.std))


class SecondMomentJointNP(SecondMomentProcess):
    r"""Second moments that predict all targets jointly, in closed form.

    $$p(y_{1:M}) = \sum_h \pi_h\, \mathcal{N}(y_{1:M}; \Phi \bar w_h,
      \Phi R_h^\top R_h \Phi^\top + \sigma_h^2 I)
      = \sum_h \pi_h\, \frac{Z_h(\text{context} \cup \text{targets})}{Z_h(\text{context})}$$

    The second form, in which `log_likelihood` is computed, is that of `BayesianHeads.log_evidence`
    after and before the targets: its memory and its equations do not grow with their number M, and
    their order changes nothing. `query` gives the first form, with M × M matrices. The prediction
    is the Bayesian mixture itself, without `SecondMomentNP`'s correction; `sample` draws functions
    and adds noise. Arguments as of `SecondMomentNP`.

    Example:
        >>> model = SecondMomentJointNP(dim_x=1, dim_y=1).eval()
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model.query(model.condition(x, y), x).log_prob(y.flatten(1)).shape
        torch.Size([16])
    """

    scores_jointly = True

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        num_features: int = 45,
        num_heads: int = 12,
        x_range: tuple[float, float] = (-2.0, 2.0),
        lengths: tuple[float, float] | None = None,
        prior_std: float = 0.5,
        noise_std: float = 0.1,
        rate: float = 20.0,
        noise: InferredNoise | None = None,
    ) -> None:
        lengths = spaced_lengths(num_heads, x_range, lengths)
        heads = _heads(dim_x, num_features, lengths, prior_std, noise_std, rate, noise)
        super().__init__(dim_x, dim_y, heads)

    def _query(self, state: SecondMomentState, xt: Tensor) -> Distribution:
        functions = self._functions(state, xt)
        covariance = functions.noisy_covariance.contiguous()
        outputs = torch.eye(self.dim_y, dtype=xt.dtype, device=xt.device)
        normals = MultivariateNormal(
            functions.mean.flatten(2), torch.kron(covariance, outputs), validate_args=False
        )
        weights = Categorical(logits=functions.log_weight, validate_args=False)
        return MixtureSameFamily(weights, normals, validate_args=False)

    def _predict(self, state: SecondMomentState, xt: Tensor) -> NormalMixture:
        return self._bayesian_mixture(state.posterior, xt)

    def _log_likelihood(self, state: SecondMomentState, targets: Points) -> Float[Tensor, "batch"]:
        everything = state.moments.merge(self._absorb(targets))
        if self.heads.log_noise_count is None:
            gained = self.heads.log_evidence(everything) - state.posterior.log_evidence
        else:
            noise_std = state.posterior.noise_std.double()
            gained = self.heads.log_evidence(everything, noise_std)
            gained = gained - self.heads.log_evidence(state.moments, noise_std)
        log_density = (self.heads.log_weights(state.posterior) + gained).logsumexp(dim=-1)
        return (log_density / targets.count).to(targets.y.dtype)

    def _evaluate(self, state: SecondMomentState, targets: Points) -> Evaluation:
        log_likelihood = self._log_likelihood(state, targets)
        mixture = self._marginal_mixture(state, targets)
        return Evaluation(log_likelihood, *mixture.moments, mixture=mixture)

    def _sample(
        self, state: SecondMomentState, xt: Tensor, num_samples: int
    ) -> Float[Tensor, "samples batch target dim_y"]:
        functions = self.sample_functions(state, num_samples)
        values = functions.of_numbers(xt)
        return values + functions.noise_std[..., None, None] * torch.randn_like(values)


def _heads(
    dim_x: int,
    num_features: int,
    lengths: list[float],
    prior_std: float,
    noise_std: float,
    rate: float,
    noise: InferredNoise | None,
) -> BayesianHeads:
    """A head for each length; with inferred noise, for each length and ratio."""
    if noise is None:
        return BayesianHeads(dim_x, num_features, lengths, prior_std, noise_std, rate)
    lengths, stds = noise.heads(lengths, noise_std)
    return BayesianHeads(dim_x, num_features, lengths, stds, noise_std, rate, noise.count)
