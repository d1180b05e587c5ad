"""Values whose logarithms are normal have the moments of their samples."""

import torch
from torch.distributions import MultivariateNormal

from npbench.likelihoods import in_units, moments_in_units
from npbench.scaling import Column, Scaling

SCALING = Scaling((Column("x"),), (Column("a", "standard", 2.0, 3.0), Column("b", "log", 0.1, 0.2)))


def test_joint_moments_in_units_are_those_of_samples() -> None:
    mean, root = torch.randn(4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    covariance = root @ root.T
    values = in_units(MultivariateNormal(mean, covariance), SCALING)
    samples = values.sample(torch.Size([50_000]))
    expected_mean, expected = moments_in_units(mean, covariance, SCALING)
    torch.testing.assert_close(values.mean, expected_mean)
    torch.testing.assert_close(values.covariance_matrix, expected)
    torch.testing.assert_close(values.covariance_matrix.diagonal(), values.variance)
    scale = expected.diagonal().sqrt()
    assert ((samples.mean(0) - expected_mean) / scale).abs().max() < 0.03
    assert ((samples.T.cov() - expected) / scale / scale[:, None]).abs().max() < 0.15
