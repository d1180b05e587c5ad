"""The base of the models that average over random functions."""

import math
from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily

from npbench.errors import InputError
from npbench.likelihoods import equal_mixture
from npbench.models.contracts.process import NeuralProcess, State


class MixtureProcess(NeuralProcess):
    """A model that predicts with the equal mixture of `num_samples` random components.

    `query` is the mixture, target by target: its log-density is the log-mean-exp of the
    components'. `sample` draws one component for all targets, which makes it a function. Both draw
    from torch's random state.

    Args:
        num_samples: components of a prediction, 50 in the paper.
        num_train_samples: components in training, 4 in the paper.
    """

    def __init__(self, dim_x: int, dim_y: int, num_samples: int, num_train_samples: int) -> None:
        super().__init__(dim_x, dim_y)
        if num_samples < 1 or num_train_samples < 1:
            raise InputError(
                f"num_samples={num_samples} and num_train_samples={num_train_samples} must be 1 or "
                f"more"
            )
        self.num_samples = num_samples
        self.num_train_samples = num_train_samples

    @abstractmethod
    def _components(self, state: State, xt: Tensor, num_samples: int) -> Independent:
        """So many random predictions, of batch shape [samples, B, M]."""

    def _query(self, state: State, xt: Tensor) -> MixtureSameFamily:
        return equal_mixture(self._components(state, xt, self.num_samples))

    def _sample(
        self, state: State, xt: Tensor, num_samples: int
    ) -> Float[Tensor, "samples batch target dim_y"]:
        return self._components(state, xt, num_samples).sample()


def log_mean_exp(values: Float[Tensor, "samples *batch"]) -> Float[Tensor, "*batch"]:
    return values.logsumexp(dim=0) - math.log(len(values))


def expand(values: Tensor, num_samples: int) -> Float[Tensor, "samples *batch"]:
    """The same values for every sample."""
    return values.expand(num_samples, *values.shape)
