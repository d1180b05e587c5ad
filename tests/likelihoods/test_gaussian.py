import math
import warnings

import pytest
import torch
from helpers import assert_close
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, Normal

from npbench.blocks import LayerConfig
from npbench.likelihoods import DiagonalGaussian, JointGaussian, equal_mixture
from npbench.likelihoods.gaussian import _LowRankNormal
from npbench.profiling import LiveTensors

CONFIG = LayerConfig(dim_model=8, num_heads=2, dim_feedforward=16)
COVARIANCES = pytest.mark.parametrize("covariance", ["cholesky", "lowrank"])


def joint(covariance: str, dim_y: int = 2, bound_std: bool = False) -> JointGaussian:
    head = JointGaussian(CONFIG, dim_y, covariance, dim_projection=3, num_std_layers=2,
                         projection_depth=2, bound_std=bound_std)  # fmt: skip
    return head.double().eval()


def encodings(batch: int = 2, targets: int = 4) -> Tensor:
    return torch.randn(batch, targets, 8, dtype=torch.float64)


def test_the_diagonal_standard_deviation_has_a_floor() -> None:
    head = DiagonalGaussian(8, 16, 2, depth=2, min_std=0.1).double()
    torch.nn.init.constant_(head.mlp[-1].bias, -100.0)
    assert_close(head(encodings()).stddev, torch.full((2, 4, 2), 0.1, dtype=torch.float64), 1e-9)


@COVARIANCES
@pytest.mark.parametrize("bound_std", [False, True])
def test_the_covariance_is_that_of_the_formula(covariance: str, bound_std: bool) -> None:
    head, h = joint(covariance, bound_std=bound_std), encodings()
    dist = head(h)
    mixed = h
    for layer in head.std_layers:
        mixed = layer(mixed, mixed)
    # Rows by target, then by output.
    factor = torch.stack([head.project(mixed)[:, m].reshape(2, 2, 3) for m in range(4)], dim=1)
    gram = torch.einsum("bmip,bnjp->bminj", factor, factor).reshape(2, 8, 8)
    if covariance == "cholesky":
        scale = gram.tril()
        if bound_std:
            diagonal = 0.05 + 0.95 * scale.diagonal(dim1=-2, dim2=-1).tanh()
            scale = scale.tril(-1) + torch.diag_embed(diagonal)
        expected = scale @ scale.mT
    else:
        expected = gram + torch.diag_embed(head.diagonal(mixed).reshape(2, 8).exp())
        assert isinstance(dist, LowRankMultivariateNormal)
    assert_close(dist.covariance_matrix, expected)
    assert_close(dist.mean, head.mean(h).reshape(2, 8))


@pytest.mark.usefixtures("as_a_user")
def test_an_unknown_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match='covariance=\'full\' must be "cholesky" or "lowrank"'):
        joint("full")


def test_lowrank_forms_no_matrix_of_targets_by_targets() -> None:
    """Nor does any other tensor grow with their square."""
    head, peaks = joint("lowrank", dim_y=1).float(), []
    head.std_layers = torch.nn.ModuleList()
    for targets in (1000, 2000):
        h, y = torch.randn(1, targets, 8), torch.randn(1, targets)
        with torch.no_grad(), LiveTensors() as live:
            head(h).log_prob(y)
        peaks.append(live.peak_bytes)
    assert peaks[1] < 2.1 * peaks[0]
    assert peaks[1] < 4 * 2000**2 / 10


@COVARIANCES
def test_padding_is_standard_normal_by_itself(covariance: str) -> None:
    head, h = joint(covariance), encodings(targets=5)
    mask = torch.tensor([[True, False, True, True, False]]).expand(2, -1)
    padded, plain = head(h, mask), head(h[:, mask[0]])
    rows = mask[0].repeat_interleave(2)
    assert_close(padded.mean[:, rows], plain.mean)
    assert_close(padded.covariance_matrix[:, rows][:, :, rows], plain.covariance_matrix)
    assert (padded.mean[:, ~rows] == 0).all()
    apart = padded.covariance_matrix[:, ~rows]
    assert torch.equal(apart[:, :, ~rows], torch.eye(4, dtype=torch.float64).expand(2, -1, -1))
    assert (apart[:, :, rows] == 0).all()


def test_a_scale_of_zero_gets_the_smallest_jitter_and_one_warning() -> None:
    head = joint("cholesky")
    for parameter in head.project[-1].parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.warns(UserWarning, match=r"not positive definite: added 1e-08 .* \(said once\)"):
        dist = head(encodings())
    assert_close(dist.scale_tril, 1e-8 * torch.eye(8, dtype=torch.float64).expand(2, -1, -1), 0)
    assert torch.isfinite(dist.log_prob(torch.zeros(2, 8, dtype=torch.float64))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head(encodings())


def underflowing(head: JointGaussian) -> None:
    """A diagonal of e^{-800}, which is 0."""
    torch.nn.init.zeros_(head.diagonal[-1].weight)
    torch.nn.init.constant_(head.diagonal[-1].bias, -800.0)


def test_a_diagonal_of_zero_gets_the_smallest_jitter_that_works() -> None:
    head = joint("lowrank")
    underflowing(head)
    with pytest.warns(UserWarning, match="not positive definite"):
        dist = head(encodings())
    assert_close(dist.cov_diag, torch.full((2, 8), 1e-8, dtype=torch.float64), 0)
    assert torch.isfinite(dist.log_prob(torch.zeros(2, 8, dtype=torch.float64))).all()
    (dist.log_prob(torch.zeros(2, 8, dtype=torch.float64)).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.project.parameters())


@pytest.mark.filterwarnings("ignore:a joint covariance was not positive definite")
def test_no_diagonal_is_too_small_for_the_cholesky_of_the_distribution() -> None:
    """Also where rounding alone decides what is positive definite: from e^0 down to e^{-25}."""
    head = joint("lowrank", dim_y=1).float()
    steps = torch.linspace(0, 25, 500)[:, None, None]
    head.diagonal[-1].register_forward_hook(lambda *args: args[-1] - steps)
    dist = head(encodings(500, targets=2).float())  # fewer targets than columns of P
    assert torch.isfinite(dist.log_prob(dist.mean)).all()


@pytest.mark.parametrize("exponent", [-2, -5, -7, -10])
def test_float32_scores_a_nearly_singular_covariance_as_float64_does(exponent: int) -> None:
    """Where the textbook's form of the density is wrong by hundreds of nats."""
    factor, diagonal = torch.randn(3, 40, 5), torch.full((3, 40), 10.0**exponent)
    y = (factor @ torch.randn(3, 5, 1))[..., 0] + diagonal.sqrt() * torch.randn(3, 40)
    log_prob = _LowRankNormal(torch.zeros(3, 40), factor, diagonal).log_prob(y)
    exact = LowRankMultivariateNormal(
        torch.zeros(3, 40).double(), factor.double(), diagonal.double()
    ).log_prob(y.double())
    assert_close(log_prob.double(), exact, 3e-3)


def test_only_the_broken_task_is_repaired() -> None:
    head, h = joint("lowrank"), encodings()
    expected = head(h)
    broken = torch.tensor([[-800.0], [0.0]], dtype=torch.float64)
    raw = head.diagonal[-1].register_forward_hook(lambda *args: args[-1] + broken[:, None])
    with pytest.warns(UserWarning, match="not positive definite"):
        dist = head(h)
    raw.remove()
    assert torch.equal(dist.cov_diag[1], expected.cov_diag[1])
    assert (dist.cov_diag[0] == 1e-8).all()


@COVARIANCES
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_stays_so_without_a_crash(covariance: str) -> None:
    head = joint(covariance)
    torch.nn.init.constant_(head.project[-1].bias, torch.nan)
    log_prob = head(encodings()).log_prob(torch.zeros(2, 8, dtype=torch.float64))
    assert torch.isnan(log_prob).all()


def test_an_equal_mixture_averages_densities() -> None:
    mean, std = torch.randn(5, 2, 3, 4), torch.rand(5, 2, 3, 4) + 0.1
    components, y = Independent(Normal(mean, std), 1), torch.randn(2, 3, 4)
    mixture = equal_mixture(components)
    assert mixture.batch_shape == (2, 3)
    assert mixture.event_shape == (4,)
    assert_close(mixture.log_prob(y), components.log_prob(y).logsumexp(0) - math.log(5))
    assert_close(mixture.mean, mean.mean(0))
    assert_close(mixture.variance, (std**2).mean(0) + mean.var(0, correction=0))
