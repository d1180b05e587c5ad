"""Means and covariances of what neural processes predict at several points."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from npbench.errors import InputError
from npbench.likelihoods import moments_in_units
from npbench.models import NeuralProcess
from npbench.models.contracts.joint import JointProcess
from npbench.models.contracts.mixture import MixtureProcess
from npbench.models.contracts.second_moment import FunctionMixture, SecondMomentProcess
from npbench.scaling import Scaling

# Of the random functions that some processes average over.
_SEED = 0


class Moments(NamedTuple):
    """The mean of m outputs at q points, and the covariance of all values, by point."""

    mean: Float[Tensor, "*batch q m"]
    covariance: Float[Tensor, "*batch values values"]

    @classmethod
    def independent(
        cls, mean: Float[Tensor, "*batch q m"], variance: Float[Tensor, "*batch q m"]
    ) -> "Moments":
        """Those of values that are independent of each other."""
        return cls(mean, torch.diag_embed(variance.flatten(-2)))

    @classmethod
    def joined(cls, parts: "Sequence[Moments]") -> "Moments":
        """Those of the outputs of all parts, of one output each, which are independent."""
        if len(parts) == 1:
            return parts[0]
        mean = torch.cat([part.mean for part in parts], dim=-1)
        # [*batch, q, q, m], whose last dimension becomes diagonal matrices.
        covariance = torch.stack([part.covariance for part in parts], dim=-1)
        covariance = torch.diag_embed(covariance).transpose(-3, -2)
        return cls(mean, covariance.flatten(-4, -3).flatten(-2, -1))

    def of_outputs(self, outputs: Sequence[int]) -> "Moments":
        """Those of some of the outputs.

        Raises:
            InputError: if there is no such output.
        """
        q, m = self.mean.shape[-2:]
        if not outputs or not all(-m <= output < m for output in outputs):
            raise InputError(f"output_indices={list(outputs)} must be among those of {m} output(s)")
        covariance = self.covariance.unflatten(-1, (q, m)).unflatten(-3, (q, m))
        covariance = covariance[..., outputs, :, :][..., outputs]
        return Moments(self.mean[..., outputs], covariance.flatten(-4, -3).flatten(-2, -1))

    def with_noise(self, variance: Float[Tensor, "*#noise q m"]) -> "Moments":
        """Those of values with independent noise of these variances, which broadcast."""
        noise = variance.to(self.mean).expand_as(self.mean).flatten(-2)
        return Moments(self.mean, self.covariance + torch.diag_embed(noise))


def knows_functions(process: NeuralProcess) -> bool:
    """Whether a process tells the function from the noise of observations."""
    return isinstance(process, SecondMomentProcess) and not process.is_corrected


def is_joint(process: NeuralProcess) -> bool:
    """Whether a process predicts the points of a batch jointly."""
    return knows_functions(process) or isinstance(process, JointProcess)


def moments_of(
    process: NeuralProcess, state: Any, x: Float[Tensor, "batch q d"], is_noisy: bool
) -> Moments:
    """Those of the prediction at q points of each task, in the units of the process.

    Args:
        process: the model.
        state: of the tasks.
        x: inputs.
        is_noisy: whether observations are predicted, where the process tells them from the
            function; other processes always predict observations.
    """
    if isinstance(process, SecondMomentProcess) and knows_functions(process):
        return moments_of_functions(process.functions(state, x), process.scaling, is_noisy)
    if not is_joint(process):
        return Moments.independent(*marginals_of(process, state, x))
    dist: Any = process.query(state, x)
    return Moments(dist.mean.reshape(*x.shape[:2], -1), dist.covariance_matrix)


def marginals_of(
    process: NeuralProcess, state: Any, x: Float[Tensor, "batch q d"]
) -> tuple[Float[Tensor, "batch q m"], Float[Tensor, "batch q m"]]:
    """Mean and variance of each output at each point by itself, of a process that is not joint."""
    with _always_the_same(process):
        dist: Any = process.query(state, x)
    return dist.mean, dist.variance


def moments_of_functions(
    functions: FunctionMixture, scaling: Scaling | None, is_noisy: bool
) -> Moments:
    """Those of the functions' values, or of observations if `is_noisy`, in these units."""
    q, dim_y = functions.mean.shape[2:]
    means = functions.mean.flatten(2)
    covariance = functions.noisy_covariance if is_noisy else functions.covariance
    # Outputs share the covariance, and are independent given the component.
    outputs = torch.eye(dim_y, dtype=means.dtype, device=means.device)
    covariance = torch.kron(covariance.contiguous(), outputs)
    if scaling is not None:
        means, covariance = moments_in_units(means, covariance, scaling)
    weight = functions.log_weight.exp()[..., None]
    mean = (weight * means).sum(dim=1)
    away = means - mean[:, None]
    covariance = (weight[..., None] * covariance).sum(dim=1) + (weight * away).mT @ away
    return Moments(mean.unflatten(-1, (q, dim_y)), covariance)


@contextmanager
def _always_the_same(process: NeuralProcess) -> Iterator[None]:
    """The random functions that some processes average over are the same in every call."""
    if not isinstance(process, MixtureProcess):
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield
