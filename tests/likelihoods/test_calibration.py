"""Deviations are corrected as errors show them, and the correction travels with the weights."""

import copy
import pickle

import pytest
import torch

from npbench.errors import InputError
from npbench.likelihoods import Calibration, Deviations, DiagonalGaussian


def fitted(noise: float, scale: float, values: int = 20_000) -> tuple[Calibration, torch.Tensor]:
    """From errors whose deviations differ so from the predicted ones; and the predicted ones."""
    random = torch.Generator().manual_seed(0)
    std = torch.rand(values, 1, 1, generator=random).double() + 0.1
    errors = torch.hypot(torch.tensor(noise).double(), scale * std)
    errors = errors * torch.randn(std.shape, generator=random, dtype=torch.float64)
    far = torch.tensor([5.0]), torch.tensor([1e-3])  # nothing is asked of what is unknown
    return Calibration.fit(errors, std, torch.zeros(values, 1), torch.ones(values), *far), std


@pytest.mark.parametrize(("noise", "scale"), [(0.3, 1.0), (0.3, 0.2), (1e-3, 0.5), (1e-3, 2.0)])
def test_the_fit_finds_noise_and_scale(noise: float, scale: float) -> None:
    calibration, std = fitted(noise, scale)
    wanted = torch.hypot(torch.tensor(noise).double(), scale * std)
    torch.testing.assert_close(calibration(std), wanted, rtol=0.05, atol=0.0)


def test_errors_that_are_as_predicted_change_nothing() -> None:
    calibration, std = fitted(0.0, 1.0)
    torch.testing.assert_close(calibration(std), std, rtol=0.03, atol=0.0)


def test_each_output_has_its_own_and_counts_weigh_values() -> None:
    random = torch.Generator().manual_seed(0)
    errors = torch.randn(8000, 1, 2, generator=random) * torch.tensor([1.0, 0.1])
    errors[4000:] *= 100
    counts = torch.cat([torch.ones(4000), torch.zeros(4000)])
    std = torch.full_like(errors, 0.5)
    far = torch.full((2,), 5.0), torch.full((2,), 1e-3)
    calibration = Calibration.fit(errors, std, torch.zeros(8000, 1), counts, *far)
    wanted = torch.tensor([1.0, 0.1]).double()
    torch.testing.assert_close(calibration(std[0, 0].double()), wanted, rtol=0.05, atol=0.0)


def test_of_a_mixture_the_values_count_and_not_its_moments() -> None:
    """Two distant components of the right place: their distance is no error."""
    random = torch.Generator().manual_seed(0)
    side = torch.randint(0, 2, (8000, 1), generator=random) * 20.0 - 10.0
    value = side + 0.3 * torch.randn(8000, 1, generator=random)
    errors = (value - torch.tensor([-10.0, 10.0]))[..., None]
    log_weight = torch.full((8000, 2), 0.5).log()
    far = torch.tensor([5.0]), torch.tensor([1e-3])
    std, counts = torch.ones_like(errors), torch.ones(8000)
    calibration = Calibration.fit(errors, std, log_weight, counts, *far)
    assert abs(float(calibration(torch.ones(1).double())) - 0.3) < 0.02


def test_what_is_not_finite_is_refused() -> None:
    errors = torch.tensor([[[float("nan")]]])
    with pytest.raises(InputError, match="must be finite"):
        Calibration.fit(errors, errors, torch.zeros(1, 1), torch.ones(1), *torch.ones(2, 1))


def test_where_nothing_is_known_predictions_do_not_become_surer() -> None:
    """The errors at known values say that deviations are a tenth of what they are said to be."""
    random = torch.Generator().manual_seed(0)
    std = torch.rand(8000, 1, 1, generator=random).double() * 0.2 + 0.2
    errors = 0.1 * std * torch.randn(std.shape, generator=random, dtype=torch.float64)
    one, unknown = (torch.zeros(8000, 1), torch.ones(8000)), torch.tensor([2.0]).double()
    free = Calibration.fit(errors, std, *one, unknown, unknown / 1000)
    bound = Calibration.fit(errors, std, *one, unknown, unknown)
    assert float(free(unknown)) < 0.3
    assert float(bound(unknown)) > 1.999
    torch.testing.assert_close(bound(std), 0.1 * std, rtol=0.5, atol=0.0)


def test_the_calibration_travels_with_the_weights() -> None:
    head, other = DiagonalGaussian(4, 8, 2, depth=2), DiagonalGaussian(4, 8, 2, depth=2)
    plain, encoding = copy.deepcopy(head.state_dict()), torch.randn(3, 5, 4)
    before = head(encoding).stddev
    head.deviations.calibration = Calibration(
        *torch.tensor([[0.1, 3.0], [2.0, 0.5], [1.0, 2.0], [1.0, 2.0]])
    )
    std = head(encoding).stddev
    powers = torch.stack([2 * before[..., 0], 0.5 * (before[..., 1] / 2) ** 2], dim=-1)
    wanted = (torch.tensor([0.1, 3.0]) ** 2 + powers**2).sqrt()
    torch.testing.assert_close(std, wanted)
    other.load_state_dict(head.state_dict())
    for same in (other, copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(same(encoding).stddev, std)
    other.load_state_dict(plain)
    assert other.deviations.calibration is None
    assert torch.equal(other(encoding).stddev, before)


def test_without_a_calibration_deviations_are_what_they_are() -> None:
    std = torch.rand(3, 1)
    assert Deviations()(std) is std
    assert not Deviations().state_dict()
