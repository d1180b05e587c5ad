"""Neural processes as models of BoTorch: exact, joint, differentiable, and in any batches."""

from dataclasses import replace

import pytest
import torch
from helpers import assert_close, small
from torch import Tensor

import npbench
from npbench.blocks import InferredNoise
from npbench.errors import InputError
from npbench.models import NeuralProcess, SecondMomentNP
from npbench.scaling import Column, Scaling

pytest.importorskip("botorch", reason="needs the extra bo")

from botorch.acquisition import (
    AcquisitionFunction,
    ExpectedImprovement,
    LogExpectedImprovement,
    UpperConfidenceBound,
    qKnowledgeGradient,
    qLogExpectedImprovement,
    qUpperConfidenceBound,
)
from botorch.acquisition.max_value_entropy_search import qMaxValueEntropy
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler

from npbench.interop.botorch import NeuralProcessModel

# In units of their own: the processes take inputs from −2 to 2, and outputs of about 1.
BOUNDS = torch.tensor([[10.0], [50.0]], dtype=torch.float64)
X_COLUMN, Y_COLUMN = Column("x", "min-max", 30.0, 10.0), Column("y", "standard", 20.0, 3.0)
JOINT = [
    "Bayesian",
    "SecondMomentJointNP",
    "LocatedCMANPAND",
    "CMANPAND-lowrank",
    "TNPND",
    "LBANPND",
]
BY_ITSELF = ["SecondMomentNP", "CMANP", "LocatedCMANP", "NP", "FourierMomentNP"]
EVERY_KIND = pytest.mark.parametrize("name", [*JOINT, *BY_ITSELF])
SOME_KINDS = pytest.mark.parametrize("name", ["Bayesian", "SecondMomentJointNP", "CMANP", "TNPND"])


def process_of(name: str, m: int = 1, kind: str = "standard") -> NeuralProcess:
    """With units."""
    if name == "Bayesian":  # as "gp-1d" is, but small
        heads = {"num_features": 8, "num_heads": 2, "lengths": (0.3, 2.0), "noise": InferredNoise()}
        process = SecondMomentNP(1, m, corrected=False, **heads).double().eval()
    else:
        process = small(name, dim_x=1, dim_y=m)
    column = replace(Y_COLUMN, kind=kind)
    if kind == "log":
        column = replace(column, shift=1.0, scale=0.3)
    columns = [replace(column, name=f"y{i}") for i in range(m)]
    return process.scaled(Scaling((X_COLUMN,), tuple(columns)))


def observations(number: int = 6, m: int = 1) -> tuple[Tensor, Tensor]:
    x = 10 + 40 * torch.rand(number, 1, dtype=torch.float64)
    return x, torch.cat([20 + 3 * (x / 5 + i).sin() for i in range(m)], dim=-1)


def model_of(name: str = "Bayesian", m: int = 1) -> NeuralProcessModel:
    return NeuralProcessModel(process_of(name, m), *observations(m=m))


def moments(model: NeuralProcessModel, x: Tensor, **arguments: object) -> tuple[Tensor, Tensor]:
    normal = model.posterior(x, **arguments).distribution
    return normal.mean, normal.covariance_matrix


def assert_same_posterior(
    mine: NeuralProcessModel, other: NeuralProcessModel, x: Tensor, tolerance: float = 1e-7
) -> None:
    for actual, expected in zip(moments(mine, x), moments(other, x), strict=True):
        assert_close(actual, expected, tolerance)


def inputs(*shape: int) -> Tensor:
    return 10 + 40 * torch.rand(*shape, 1, dtype=torch.float64)


@EVERY_KIND
def test_observations_condition_as_if_they_had_been_there(name: str) -> None:
    process, (x, y) = process_of(name), observations(8)
    model = NeuralProcessModel(process, x[:5], y[:5])
    before = moments(model, x)
    assert_same_posterior(
        model.condition_on_observations(x[5:], y[5:]), NeuralProcessModel(process, x, y), x
    )
    assert all(torch.equal(a, b) for a, b in zip(moments(model, x), before))


@pytest.mark.parametrize("name", [n for n in (*JOINT, *BY_ITSELF) if n != "NP"])  # it is random
def test_the_means_and_deviations_are_those_of_the_process_in_its_units(name: str) -> None:
    process, (x, y) = process_of(name).double(), observations()
    model, xt = NeuralProcessModel(process, x, y), inputs(1, 4)
    marginals = process.marginals(process.condition(x[None], y[None]), xt)
    posterior = model.posterior(xt, observation_noise=True)
    assert_close(posterior.mean, marginals.mean, 1e-8)
    if name not in ("CMANPAND-lowrank", "LocatedCMANPAND"):  # whose deviations are those of a block
        assert_close(posterior.variance.sqrt(), marginals.std, 1e-8)


@EVERY_KIND
def test_batches_are_predicted_as_one_by_one(name: str) -> None:
    model, x = model_of(name), inputs(2, 3, 4)
    mean, covariance = moments(model, x)
    assert mean.shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            alone = moments(model, x[i, j])
            assert_close(mean[i, j], alone[0], 1e-9)
            assert_close(covariance[i, j], alone[1], 1e-9)


@pytest.mark.parametrize(("name", "is_joint"), [(n, n in JOINT) for n in (*JOINT, *BY_ITSELF)])
def test_points_depend_on_each_other_where_the_process_is_joint(name: str, is_joint: bool) -> None:
    model = model_of(name)
    _, covariance = moments(model, torch.tensor([[20.0], [20.5]], dtype=torch.float64))
    assert model.is_joint is is_joint
    assert (covariance[0, 1].abs() > 1e-6) == is_joint


@SOME_KINDS
def test_joint_samples_have_the_covariance_of_the_posterior(name: str) -> None:
    posterior = model_of(name).posterior(inputs(3))
    samples = posterior.rsample(torch.Size([20_000]))[..., 0]
    covariance = posterior.distribution.covariance_matrix
    scale = covariance.diagonal().sqrt()
    error = (samples.T.cov() - covariance) / scale / scale[:, None]
    assert error.abs().max() < 5 * (2 / 20_000) ** 0.5


@EVERY_KIND
def test_gradients_with_respect_to_inputs_are_those_of_finite_differences(name: str) -> None:
    model = model_of(name)

    def value(x: Tensor) -> Tensor:
        mean, covariance = moments(model, x)
        return mean.sum() + covariance.sum()

    torch.autograd.gradcheck(value, inputs(2).requires_grad_(), eps=1e-5, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["Bayesian", "CMANP"])
def test_a_process_of_one_output_takes_each_output_by_itself(name: str) -> None:
    process, (x, y), xt = process_of(name).scaled(None), observations(m=2), inputs(2, 3)
    model = NeuralProcessModel(process, x, y, BOUNDS)
    assert model.num_outputs == 2
    posterior = model.posterior(xt)
    assert posterior.rsample(torch.Size([5])).shape == (5, 2, 3, 2)
    for output in (0, 1):
        alone = NeuralProcessModel(process, x, y[:, [output]], BOUNDS).posterior(xt)
        chosen = model.posterior(xt, output_indices=[output])
        for z in (chosen.mean, posterior.mean[..., [output]]):
            assert_close(z, alone.mean, 1e-10)
        assert_close(
            chosen.distribution.covariance_matrix, alone.distribution.covariance_matrix, 1e-10
        )
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    scalar = model.posterior(xt, posterior_transform=ScalarizedPosteriorTransform(weights))
    assert_close(scalar.mean, posterior.mean @ weights[:, None], 1e-10)


@pytest.mark.parametrize("name", ["SecondMomentJointNP", "TNPND", "CMANP"])
def test_a_process_of_several_outputs_takes_them_as_one_task(name: str) -> None:
    model, x = model_of(name, m=2), inputs(3)
    both = model.posterior(x)
    assert both.mean.shape == (3, 2)
    assert both.distribution.covariance_matrix.shape == (6, 6)
    second = model.posterior(x, output_indices=[1])
    assert_close(second.mean, both.mean[:, 1:], 1e-10)
    assert_close(second.variance, both.variance[:, 1:], 1e-10)
    more = model.condition_on_observations(*observations(2, m=2))
    assert more.posterior(x).mean.shape == (3, 2)


@SOME_KINDS
def test_fantasies_are_models_of_all_observations(name: str) -> None:
    process, (x, y) = process_of(name), observations()
    model, guessed, xt = NeuralProcessModel(process, x, y), inputs(2, 1), inputs(2, 3)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    fantasies = model.fantasize(guessed, sampler)
    assert fantasies.batch_shape == (4, 2)
    values = sampler(model.posterior(guessed, observation_noise=True))
    mean, covariance = moments(fantasies, xt)
    real = fantasies.condition_on_observations(x[:0], y[:0])
    assert_same_posterior(real, fantasies, xt, 1e-6)
    for i in range(4):
        for j in range(2):
            everything = torch.cat([x, guessed[j]]), torch.cat([y, values[i, j]])
            expected = moments(NeuralProcessModel(process, *everything), xt[j])
            assert_close(mean[i, j], expected[0], 1e-6)
            assert_close(covariance[i, j], expected[1], 1e-6)


def test_observation_noise_is_told_from_the_function() -> None:
    model, x = model_of(), inputs(3)
    mean, function = moments(model, x)
    noisy_mean, noisy = moments(model, x, observation_noise=True)
    assert_close(noisy_mean, mean, 1e-10)
    noise = (noisy - function).diagonal()
    assert (noise > 0).all()
    assert_close(noisy - function, noise.diag(), 1e-10)
    given = torch.full((1, 1), 4.0, dtype=torch.float64)
    _, with_given = moments(model, x, observation_noise=given)
    assert_close(with_given - function, 4 * torch.eye(3, dtype=torch.float64), 1e-10)


@SOME_KINDS
def test_outputs_in_logarithms_have_the_moments_of_their_values(name: str) -> None:
    process, (x, y) = process_of(name, kind="log"), observations()
    model, xt = NeuralProcessModel(process, x, y), inputs(3)
    marginals = process.double().marginals(process.condition(x[None], y[None]), xt)
    posterior = model.posterior(xt, observation_noise=True)
    if name != "TNPND":  # whose marginals are those of normal values
        assert_close(posterior.mean[None], marginals.mean, 1e-7)
    normals = posterior.distribution.covariance_matrix
    assert torch.linalg.eigvalsh(normals).min() > 0


def test_bounds_become_the_range_of_training() -> None:
    process, (x, y) = npbench.load("gp-1d"), observations()
    standard = Column.fit("y0", "standard", y.numpy()[:, 0])
    scaled = process.scaled(Scaling((replace(X_COLUMN, name="x0"),), (standard,)))
    of_bounds = NeuralProcessModel(process, x, y, BOUNDS)
    assert_same_posterior(of_bounds, NeuralProcessModel(scaled, x, y), inputs(3), tolerance=1e-4)


@SOME_KINDS
def test_a_state_takes_the_place_of_observations(name: str) -> None:
    process, (x, y) = process_of(name).double(), observations()
    model = NeuralProcessModel(process, state=process.condition(x[None], y[None]))
    assert_same_posterior(model, NeuralProcessModel(process, x, y), inputs(3), 1e-9)


def test_the_process_stays_as_it_was() -> None:
    process = npbench.load("gp-1d").train()
    NeuralProcessModel(process, *observations(), BOUNDS)
    assert process.training
    assert process.scaling is None
    assert {p.dtype for p in process.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in process.parameters())


def test_what_is_kept_does_not_grow_with_the_observations() -> None:
    model = model_of()
    more = model.condition_on_observations(*observations(500))
    assert [s.nbytes for s in more.states] == [s.nbytes for s in model.states]


def acquisitions(model: NeuralProcessModel, best: float) -> dict[str, AcquisitionFunction]:
    candidates = inputs(20)
    return {
        "EI": ExpectedImprovement(model, best),
        "LogEI": LogExpectedImprovement(model, best),
        "UCB": UpperConfidenceBound(model, beta=2.0),
        "qLogEI": qLogExpectedImprovement(model, best, SobolQMCNormalSampler(torch.Size([16]))),
        "qUCB": qUpperConfidenceBound(model, 2.0, SobolQMCNormalSampler(torch.Size([16]))),
        "qKG": qKnowledgeGradient(model, num_fantasies=2),
        "qMES": qMaxValueEntropy(model, candidates, num_mv_samples=4, num_y_samples=8),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("Bayesian", k) for k in ("EI", "LogEI", "UCB", "qLogEI", "qUCB", "qKG", "qMES")),
        ("LocatedCMANPAND", "qLogEI"),
        *(("CMANP", k) for k in ("LogEI", "qKG")),
    ],
)
def test_acquisition_functions_run_unchanged(name: str, kind: str) -> None:
    process, (x, y) = process_of(name), observations()
    acquisition = acquisitions(NeuralProcessModel(process, x, y), float(y.max()))[kind]
    q = 2 if kind in ("qLogEI", "qUCB") else 1
    chosen, value = optimize_acqf(
        acquisition, BOUNDS, q=q, num_restarts=2, raw_samples=4, options={"maxiter": 2}
    )
    assert chosen.shape == (q, 1)
    assert ((chosen >= BOUNDS[0]) & (chosen <= BOUNDS[1])).all()
    assert value.isfinite()


def test_the_maximum_of_a_function_is_found() -> None:
    x, y = observations(4)
    model, best = NeuralProcessModel(process_of("Bayesian"), x, y), y.max()
    for _ in range(6):
        acquisition = LogExpectedImprovement(model, best)
        chosen, _ = optimize_acqf(
            acquisition, BOUNDS, q=1, num_restarts=1, raw_samples=32, options={"maxiter": 10}
        )
        value = 20 + 3 * (chosen / 5).sin()
        model, best = model.condition_on_observations(chosen, value), max(best, value.max())
    assert best > 22.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give train_X and train_Y, or a state"),
        ((torch.zeros(3, 2), torch.zeros(3, 1)), "the process takes 1 input"),
        ((torch.zeros(3, 1), torch.zeros(2, 1)), "same number n of observations"),
        ((torch.zeros(3), torch.zeros(3)), r"expected \[..., n, d\]"),
        ((torch.zeros(0, 1), torch.zeros(0, 1)), "one observation or more"),
        ((torch.zeros(2, 3, 1), torch.zeros(3, 1)), "same batch shape"),
        ((torch.zeros(3, 1), torch.zeros(3, 1), BOUNDS.flip(0)), "lower ones below the upper"),
        ((torch.zeros(3, 1), torch.zeros(3, 1), BOUNDS.T), "lower and the upper bounds"),
        ((torch.tensor([[torch.nan]]), torch.zeros(1, 1), BOUNDS), "NaN"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("as_a_user")
def test_what_cannot_be_observed_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NeuralProcessModel(small("CMANP", dim_x=1, dim_y=1), *arguments)


@pytest.mark.usefixtures("as_a_user")
def test_what_cannot_be_asked_is_refused() -> None:
    model, (x, y) = model_of(), observations()
    with pytest.raises(InputError, match="takes a NeuralProcess, not Linear"):
        NeuralProcessModel(torch.nn.Linear(1, 1), x, y)
    with pytest.raises(InputError, match="units of its own"):
        NeuralProcessModel(process_of("Bayesian"), x, y, BOUNDS)
    with pytest.raises(InputError, match=r"the output\(s\) y0"):
        NeuralProcessModel(process_of("Bayesian"), x, y.repeat(1, 2))
    with pytest.raises(InputError, match="takes the place"):
        NeuralProcessModel(process_of("Bayesian"), x, y, state=model.states[0])
    with pytest.raises(InputError, match=r"expected \[..., q, 1\]"):
        model.posterior(torch.zeros(3, 2))
    with pytest.raises(InputError, match=r"2 output\(s\), and the model 1 and 1"):
        model.condition_on_observations(x, y.repeat(1, 2))
    with pytest.raises(InputError, match="infers the noise"):
        model.condition_on_observations(x, y, noise=y)
    with pytest.raises(InputError, match="output_indices"):
        model.posterior(x, output_indices=[1])
