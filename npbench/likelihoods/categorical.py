"""From the encoding of a target to the probabilities of classes."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import OneHotCategorical

from npbench.attention.precision import at_least_float32
from npbench.errors import InputError
from npbench.likelihoods.gaussian import GaussianHead

Likelihood = Literal["gaussian", "categorical"]
"""What a model predicts of each target by itself: a Gaussian, or one of several classes."""


class CategoricalHead(nn.Module):
    r"""One of K classes at each target: $p = \mathrm{softmax}(\mathrm{MLP}(h))$.

    Classes are one-hot vectors, as outputs of points are. Returns a distribution with the batch
    shape of the targets and event shape [K]; its mean is p.

    Args:
        mlp: from h to K logits.

    Example:
        >>> head = CategoricalHead(torch.nn.Linear(8, 3))
        >>> dist = head(torch.randn(16, 10, 8))
        >>> dist.log_prob(dist.sample()).shape, dist.mean.shape
        (torch.Size([16, 10]), torch.Size([16, 10, 3]))
    """

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, encoding: Float[Tensor, "*batch target dim_in"]) -> OneHotCategorical:
        return self.distribution(*self.parts(encoding))

    def parts(
        self, encoding: Float[Tensor, "*batch target dim_in"]
    ) -> tuple[Float[Tensor, "*batch target classes"]]:
        """The logits."""
        return (at_least_float32(self.mlp(encoding)),)

    def distribution(self, logits: Float[Tensor, "*batch target classes"]) -> OneHotCategorical:
        """The distribution of these parts."""
        return OneHotCategorical(logits=logits, validate_args=False)


def target_head(
    likelihood: Likelihood,
    dim_y: int,
    network: Callable[[int], nn.Module],
    min_std: float | None = None,
) -> GaussianHead | CategoricalHead:
    """The head of a model that predicts each target by itself.

    Args:
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.
        dim_y: number of outputs.
        network: makes the network with so many outputs, from the encoding of a target.
        min_std: least standard deviation of the Gaussian, or None.

    Raises:
        InputError: on another likelihood, or on less than two classes.
    """
    if likelihood == "gaussian":
        return GaussianHead(network(2 * dim_y), min_std)
    if likelihood != "categorical":
        raise InputError(f'likelihood={likelihood!r} must be "gaussian" or "categorical"')
    if dim_y < 2:
        raise InputError(f"dim_y={dim_y} classes are none to choose from: give 2 or more")
    return CategoricalHead(network(dim_y))
