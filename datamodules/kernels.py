"""GPyTorch kernels whose hyper-parameters have priors, from which each task draws its own."""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, RBFKernel, ScaleKernel
from gpytorch.priors import Prior, UniformPrior
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Beta, constraints


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


class LogUniformPrior(UniformPrior):
    """A variable whose logarithm is uniform, on [a, b) with a above 0."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__(math.log(a), math.log(b))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low.exp(), self.high.exp())

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return super().rsample(torch.Size(sample_shape)).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        inside = self.support.check(value)
        density = -value.log() - (self.high - self.low).log()
        return density.masked_fill(~inside, -math.inf)


class BetaPrior(Prior, Beta):
    """A variable between 0 and 1, with density proportional to $z^{a - 1} (1 - z)^{b - 1}$."""

    def __init__(self, a: float | Tensor, b: float | Tensor) -> None:
        nn.Module.__init__(self)
        Beta.__init__(self, a, b)
        self._transform = None

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "BetaPrior":
        shape = torch.Size(batch_shape)
        return BetaPrior(self.concentration1.expand(shape), self.concentration0.expand(shape))


class Product(ProductKernel):
    """The product of kernels, which come as one list, so that a YAML file can write them."""

    def __init__(self, kernels: list[Kernel]) -> None:
        super().__init__(*kernels)


class Sum(AdditiveKernel):
    """The sum of kernels, which come as one list."""

    def __init__(self, kernels: list[Kernel]) -> None:
        super().__init__(*kernels)


class Noise(Kernel):
    r"""$\sigma^2$ where two inputs are the same point, else 0: noise of a deviation with a prior.

    Each task then has noise of its own, beside the `noise_std` that all tasks share.

    Args:
        std_prior: of σ.
    """

    def __init__(self, std_prior: Prior) -> None:
        super().__init__()
        self.register_parameter("std", nn.Parameter(torch.ones(1)))
        self.register_prior("std_prior", std_prior, _std, _set_std)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        variance = self.std.square()
        if diag:
            return variance.expand(x1.shape[:-1])
        same = (x1[..., :, None, :] == x2[..., None, :, :]).all(dim=-1)
        return variance[..., None] * same


class OneOf(Kernel):
    """One of several kernels, which each task draws with equal chances.

    Args:
        kernels: any, each with its own priors.
    """

    def __init__(self, kernels: list[Kernel]) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(kernels)
        self.register_parameter("choice", nn.Parameter(torch.zeros(1)))
        self.register_prior(
            "choice_prior", UniformPrior(0.0, float(len(kernels))), _choice, _set_choice
        )

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        index = self.choice.floor().clamp(max=len(self.kernels) - 1)
        if not diag:
            index = index[..., None]
        total = torch.zeros(())
        for i, kernel in enumerate(self.kernels):
            values = kernel(x1, x2, diag=diag, **params)
            values = values if isinstance(values, Tensor) else values.to_dense()
            total = total + (index == i) * values
        return total


def _std(module: Noise) -> Tensor:
    return module.std


def _set_std(module: Noise, value: Tensor) -> None:
    module.initialize(std=value)


def _choice(module: OneOf) -> Tensor:
    return module.choice


def _set_choice(module: OneOf, value: Tensor) -> None:
    module.initialize(choice=value)


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
        return self._with(len(x), hyperparameters)(x).to_dense()

    def noise_variance(
        self, batch_size: int, hyperparameters: Sequence[Tensor]
    ) -> Float[Tensor, "batch"]:
        """The variance of the `Noise` that is a summand of the kernel; each task has its own."""
        total = torch.zeros(batch_size, dtype=torch.float64)
        for kernel in _summands(self._with(batch_size, hyperparameters)):
            if isinstance(kernel, Noise):
                total = total + kernel.std.detach().square().sum(dim=-1)
        return total

    @property
    def hides_noise(self) -> bool:
        """Whether it has `Noise` that is no summand, but part of a product or of a choice."""
        number = sum(isinstance(module, Noise) for module in self.kernel.modules())
        return number > sum(isinstance(kernel, Noise) for kernel in _summands(self.kernel))

    def _with(self, batch_size: int, hyperparameters: Sequence[Tensor]) -> Kernel:
        """The kernel of so many tasks with these hyper-parameters."""
        kernel = self._batch(batch_size)
        for (_, module, _, _, assign), value in zip(
            kernel.named_priors(), hyperparameters, strict=True
        ):
            assign(module, value)
        return kernel

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


def _summands(kernel: Kernel) -> list[Kernel]:
    """The kernels whose sum it is."""
    if not isinstance(kernel, AdditiveKernel):
        return [kernel]
    return [summand for part in kernel.kernels for summand in _summands(part)]
