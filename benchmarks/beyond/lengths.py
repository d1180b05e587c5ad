"""Initial lengths and frequencies of second moments, on Matérn-5/2 tasks."""

from functools import partial

from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.priors import UniformPrior

from benchmarks.beyond.recipe import Experiment
from datamodules.kernels import SquaredUniformPrior
from npbench.models import SecondMomentNP

MATERN = ScaleKernel(
    MaternKernel(nu=2.5, lengthscale_prior=UniformPrior(0.1, 0.6)),
    outputscale_prior=SquaredUniformPrior(0.1, 1.0),
)
_FEATURES = {"45": (45, (0.1, 1.0)), "64": (64, (0.05, 1.0))}
EXPERIMENTS = {
    f"{kernel}-{name}": Experiment(
        f"{number} frequencies for lengths of {lengths[0]} to {lengths[1]}",
        partial(SecondMomentNP, 1, 1, num_features=number, lengths=lengths, rate=30.0),
        data,
    )
    for kernel, data in {"matern": {"kernel": MATERN}, "rbf": {}}.items()
    for name, (number, lengths) in _FEATURES.items()
}
