"""GPyTorch kernels whose hyper-parameters have priors, from which each task draws its own."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from gpytorch.kernels import Kernel, ProductKernel, RBFKernel, ScaleKernel
from gpytorch.priors import UniformPrior
from jaxtyping import Float
from torch import Tensor


class SquaredUniformPrior(UniformPrior):
    """The square of a uniform variable on [a, b).

    It is for hyper-parameters that GPyTorch takes squared and whose root the papers draw: the
    output scale of `ScaleKernel` (a variance), and the length scale of `PeriodicKernel`.
    """

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return super().rsample(torch.Size(sample_shape)) ** 2

    def log_prob(self, value: Tensor) -> Tensor:
        root = value.sqrt()
        return super().log_prob(root) - (2 * root).log()


class Product(ProductKernel):
    """The product of kernels, which come as one list, so that a YAML file can write them."""

    def __init__(self, kernels: list[Kernel]) -> None:
        super().__init__(*kernels)


def released_rbf(length: tuple[float, float] = (0.1, 0.6)) -> Kernel:
    """The RBF kernel of the paper's released code: length ~ U[0.1, 0.6), scale ~ U[0.1, 1.0)."""
    return ScaleKernel(
        RBFKernel(lengthscale_prior=UniformPrior(*length)),
        outputscale_prior=SquaredUniformPrior(0.1, 1.0),
    )


class RandomKernel:
    """A kernel with priors. It draws hyper-parameters and makes batches of kernels from them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = deepcopy(kernel).double()
        self._batches: dict[int, Kernel] = {}

    def draw(self, batch_size: int) -> list[Tensor]:
        """Draw from each prior once for each task, from torch's generator."""
        draws = []
        for _, module, prior, closure, _ in self._batch(batch_size).named_priors():
            # A prior may itself have a range for each input dimension.
            own = len(prior.batch_shape + prior.event_shape)
            shape = closure(module).shape
            draws.append(prior.sample(shape[: len(shape) - own]).double())
        return draws

    def covariance(
        self, x: Float[Tensor, "batch points dim_x"], hyperparameters: Sequence[Tensor]
    ) -> Float[Tensor, "batch points points"]:
        """The covariance matrices at `x`; each task has its own hyper-parameters."""
        kernel = self._batch(len(x))
        for (_, module, _, _, assign), value in zip(
            kernel.named_priors(), hyperparameters, strict=True
        ):
            assign(module, value)
        return kernel(x).to_dense()

    def _batch(self, batch_size: int) -> Kernel:
        """The kernel with hyper-parameters for each task. It is kept, because a copy is slow."""
        if batch_size not in self._batches:
            batch = deepcopy(self.kernel)
            # `Kernel.expand_batch` would leave out the factors of a product.
            for module in batch.modules():
                if isinstance(module, Kernel):
                    module.batch_shape = torch.Size([batch_size])
                    for parameter in module.parameters(recurse=False):
                        parameter.data = parameter.data.repeat(batch_size, *[1] * parameter.ndim)
            self._batches[batch_size] = batch
        return self._batches[batch_size]
