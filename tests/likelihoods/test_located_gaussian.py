"""LocatedJointGaussian: a covariance that knows how far targets are from each other."""

from math import inf

import pytest
import torch
from helpers import assert_close
from torch import Tensor

from npbench.blocks import LayerConfig, Scales
from npbench.likelihoods import LocatedJointGaussian

CONFIG = LayerConfig(dim_model=8, num_heads=2, dim_feedforward=16, norm_residual=False)
SCALES = Scales(pack=(1.0,), mix=(1.0, inf), query=(1.0, 1.0))


def head(covariance: str = "lowrank", num_std_layers: int = 0, dim_x: int = 1):
    made = LocatedJointGaussian(
        CONFIG, dim_x, 2, SCALES, covariance, dim_projection=6, num_std_layers=num_std_layers
    )
    return made.double().eval()


def targets(number: int = 5, dim_x: int = 1) -> tuple[Tensor, Tensor]:
    """Encodings, and where they are."""
    random = torch.randn(2, number, 8 + dim_x, dtype=torch.float64)
    return random[..., :8], random[..., 8:]


@pytest.mark.parametrize("covariance", ["cholesky", "lowrank"])
@pytest.mark.parametrize("num_std_layers", [0, 2])
def test_moving_all_targets_together_changes_nothing(covariance: str, num_std_layers: int) -> None:
    joint, (h, x) = head(covariance, num_std_layers, dim_x=2), targets(dim_x=2)
    here, there = joint(h, x), joint(h, x + 3.0)
    assert_close(there.mean, here.mean)
    assert_close(there.covariance_matrix, here.covariance_matrix, 1e-9)


def test_the_covariance_depends_on_the_distance_of_targets() -> None:
    joint, (h, x) = head(), targets(2)
    near, far = (joint(h, torch.cat([x[:, :1], x[:, :1] + d], dim=1)) for d in (0.01, 1.0))
    same = joint(h, x[:, :1].expand(-1, 2, -1))
    assert_close(near.variance, far.variance)
    assert not torch.allclose(near.covariance_matrix, far.covariance_matrix, rtol=1e-2)
    assert torch.allclose(near.covariance_matrix, same.covariance_matrix, rtol=0.2, atol=0.05)


def test_without_attention_among_them_some_targets_are_a_part_of_all() -> None:
    joint, (h, x) = head(), targets()
    some = [3, 0]
    rows = torch.tensor(some).mul(2)[:, None].add(torch.arange(2)).flatten()
    everything, part = joint(h, x), joint(h[:, some], x[:, some])
    assert_close(part.mean, everything.mean[:, rows])
    assert_close(part.covariance_matrix, everything.covariance_matrix[:, rows][:, :, rows])


@pytest.mark.parametrize("covariance", ["cholesky", "lowrank"])
def test_padding_is_not_seen(covariance: str) -> None:
    joint, (h, x) = head(covariance, num_std_layers=1), targets()
    mask = torch.tensor([[True, False, True, True, False]]).expand(2, -1)
    padded, plain = joint(h, x, mask), joint(h[:, mask[0]], x[:, mask[0]])
    rows = mask[0].repeat_interleave(2)
    assert_close(padded.mean[:, rows], plain.mean)
    assert_close(padded.covariance_matrix[:, rows][:, :, rows], plain.covariance_matrix)
