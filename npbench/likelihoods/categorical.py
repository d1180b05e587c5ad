"""From the encoding of a target to the probabilities of classes."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import OneHotCategorical


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
        return OneHotCategorical(logits=self.mlp(encoding), validate_args=False)
