"""The base of the models that predict all targets together."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from npbench.likelihoods import JointGaussian, NormalMixture
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import Evaluation, Marginals, NeuralProcess, State
from npbench.task import Task


class JointProcess(NeuralProcess):
    """A model whose head is a `JointGaussian`.

    Among the bases of a class it comes before the model whose encoder is used.

    With the "cholesky" covariance the prediction depends on the order of the targets, as tril cuts
    the covariance's factor along it; with "lowrank" a permutation of the targets permutes it.
    """

    scores_jointly = True
    head: JointGaussian

    def loss(self, task: Task) -> Float[Tensor, ""]:
        """The negative joint log-density of all targets at once (their sum, not their mean),
        averaged over tasks."""
        state, targets = self._conditioned(task)
        return -log_density(self._joint(state, targets), targets).mean()

    def _evaluate(self, state: State, targets: Points) -> Evaluation:
        dist = self._joint(state, targets)
        log_likelihood = log_density(dist, targets) / targets.count
        return Evaluation(log_likelihood, *_by_target(dist, targets))

    def _marginals(self, state: State, targets: Points) -> Marginals:
        return _by_target(self._joint(state, targets), targets)

    def _marginal_mixture(self, state: State, targets: Points) -> NormalMixture:
        return NormalMixture.of_moments(*self._marginals(state, targets))

    def _joint(self, state: State, targets: Points) -> Distribution:
        """The joint distribution of the targets; padding is left out of it."""
        return self.head(self._encode_targets(state, targets.x), targets.mask)


def _by_target(dist: Distribution, targets: Points) -> Marginals:
    return Marginals(*(z.reshape(targets.y.shape) for z in (dist.mean, dist.stddev)))


def log_density(dist: Distribution, targets: Points) -> Float[Tensor, "batch"]:
    """The log-density of all real targets at once, in nats; `dist` as of `JointGaussian`."""
    log_density = dist.log_prob(targets.y.flatten(start_dim=1))
    if targets.mask is None:
        return log_density
    # Padding has the value 0 and a standard normal distribution of its own.
    padding = (~targets.mask).sum(dim=-1).to(log_density.dtype) * targets.y.shape[-1]
    return log_density + 0.5 * math.log(2 * math.pi) * padding
