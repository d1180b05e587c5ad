"""The short kernels stand for the nested ones of GPyTorch."""

import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from helpers import assert_close

from datamodules.kernels import LogUniformPrior, RandomKernel, SquaredUniformPrior
from datamodules.scaled_kernels import ScaledMatern, ScaledPeriodic
from npbench.errors import InputError

PERIOD, LENGTH, VARIANCE = (0.1, 2.0), (0.05, 1.0), (0.02, 4.0)


def scaled(base: Kernel) -> Kernel:
    return ScaleKernel(base, outputscale_prior=LogUniformPrior(*VARIANCE))


def matern(nu: float) -> Kernel:
    return scaled(MaternKernel(nu=nu, lengthscale_prior=LogUniformPrior(*LENGTH)))


def periodic() -> Kernel:
    priors = LogUniformPrior(*PERIOD), SquaredUniformPrior(*LENGTH)
    return scaled(
        PeriodicKernel(ard_num_dims=1, period_length_prior=priors[0], lengthscale_prior=priors[1])
    )


KERNELS = {
    "RBF": (
        ScaledMatern(LENGTH, VARIANCE),
        scaled(RBFKernel(lengthscale_prior=LogUniformPrior(*LENGTH))),
    ),
    **{f"Matérn {nu}": (ScaledMatern(LENGTH, VARIANCE, nu), matern(nu)) for nu in (0.5, 1.5, 2.5)},
    "periodic": (ScaledPeriodic(PERIOD, LENGTH, VARIANCE), periodic()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_tasks_are_those_of_the_nested_kernels(name: str) -> None:
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4, 1)
    found = []
    for kernel in map(RandomKernel, KERNELS[name]):
        torch.manual_seed(0)
        hyperparameters = kernel.draw(3)
        found.append([*hyperparameters, kernel.covariance(x, hyperparameters)])
    for short, nested in zip(*found, strict=True):
        assert_close(short, nested, 0.0)


def test_a_smoothness_without_a_closed_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"nu=2.0 must be 0.5, 1.5 or 2.5"):
        ScaledMatern(LENGTH, VARIANCE, nu=2.0)
