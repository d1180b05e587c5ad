"""Every model that predicts each target by itself can predict its class instead."""

import pytest
import torch
from helpers import SIZES, assert_close
from torch import Tensor

from npbench import Task, models
from npbench.likelihoods import CategoricalHead, GaussianHead, target_head
from npbench.metrics import ClassificationMetrics, ExpectedCalibrationError, metrics_of
from npbench.models import NeuralProcess

NAMES = [
    "CNP",
    "CANP",
    "CMANP",
    "LocatedCMANP",
    "LBANP",
    "EQTNP",
    "TNPD",
    "TNPA",
    "TNPKR",
    "ConvCNP",
]
every_model = pytest.mark.parametrize("name", NAMES)


def of_classes(name: str) -> NeuralProcess:
    model = getattr(models, name)(2, 3, **SIZES[name], likelihood="categorical")
    return model.double().eval()


def classes(batch: int, number: int) -> Tensor:
    return torch.eye(3).double()[torch.randint(3, (batch, number))]


def task(context: int = 7, target: int = 5) -> Task:
    x = torch.randn(2, context + target, 2).double()
    mask = torch.ones(2, target, dtype=torch.bool)
    mask[1, 3:] = False
    y = classes(2, context + target)
    return Task(
        x[:, :context], y[:, :context], x[:, context:], y[:, context:] * mask[..., None],
        target_mask=mask,
    )  # fmt: skip


@every_model
def test_a_model_of_classes_has_probabilities_that_learn(name: str) -> None:
    model, some = of_classes(name), task()
    assert model.predicts_classes
    evaluation = model.evaluate(some)
    assert_close(evaluation.mean.sum(dim=-1), torch.ones(2, 5).double(), 1e-12)
    if not model.scores_jointly:
        chosen = (evaluation.mean * some.yt).sum(dim=-1)
        expected = [chosen[i, some.target_mask[i]].log().mean() for i in range(2)]
        assert_close(evaluation.log_likelihood, torch.stack(expected), 1e-10)
    samples = model.sample(model.condition(some.xc, some.yc), some.xt, 4)
    assert (samples.sum(dim=-1) == 1).all()
    model.train().loss(some).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_model
def test_updating_equals_conditioning_on_the_union(name: str) -> None:
    model, some = of_classes(name), task()
    state = model.condition(some.xc[:, :3], some.yc[:, :3])
    state = model.update(state, some.xc[:, 3:], some.yc[:, 3:])
    expected = model.query(model.condition(some.xc, some.yc), some.xt)
    assert_close(model.query(state, some.xt).mean, expected.mean, 1e-9)


@pytest.mark.usefixtures("as_a_user")
def test_outputs_that_are_no_class_are_refused() -> None:
    model, some = of_classes("CNP"), task()
    wrong = some.yc.clone()
    wrong[1, 2] = torch.tensor([0.5, 0.5, 0.0])
    for call in (
        lambda: model.condition(some.xc, wrong),
        lambda: model.loss(Task(some.xc, wrong, some.xt, some.yt, target_mask=some.target_mask)),
    ):
        with pytest.raises(ValueError, match=r"yc holds \[0.5, 0.5, 0.0\] in task 1, point 2"):
            call()
    with pytest.raises(ValueError, match="yt holds"):
        model.loss(Task(some.xc, some.yc, some.xt, 2 * some.yt))


@pytest.mark.usefixtures("as_a_user")
def test_a_likelihood_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="likelihood='poisson' must be"):
        models.CNP(1, 2, likelihood="poisson")
    with pytest.raises(ValueError, match="dim_y=1 classes are none to choose from"):
        models.CNP(1, 1, likelihood="categorical")
    assert isinstance(target_head("gaussian", 1, lambda n: torch.nn.Linear(4, n)), GaussianHead)
    assert isinstance(
        target_head("categorical", 2, lambda n: torch.nn.Linear(4, n)), CategoricalHead
    )


def test_a_chunk_of_targets_at_a_time_is_at_once() -> None:
    model, some = of_classes("CMANP"), task()
    state = model.condition(some.xc, some.yc)
    whole = model.query(state, some.xt).mean
    model.targets_at_a_time = 2
    with torch.no_grad():
        assert_close(model.query(state, some.xt).mean, whole, 1e-12)


def test_accuracy_and_calibration_are_counted_over_real_targets() -> None:
    model, some = of_classes("CNP"), task()
    metrics = metrics_of(model)
    assert isinstance(metrics, ClassificationMetrics)
    evaluation = model.evaluate(some)
    measured = metrics.update(some, evaluation, model.scores_jointly)
    right = (evaluation.mean.argmax(-1) == some.yt.argmax(-1))[some.target_mask]
    assert_close(measured["accuracy"].compute().double(), right.double().mean(), 1e-6)
    assert_close(
        measured["log_likelihood"].compute().double(), evaluation.log_likelihood.mean(), 1e-6
    )


def test_calibrated_confidence_has_no_error() -> None:
    metric = ExpectedCalibrationError()
    confidence = torch.full((1000,), 0.75)
    metric.update(confidence, torch.arange(1000) % 4 > 0)
    assert metric.compute() < 1e-6
    metric.update(torch.full((1000,), 0.25), torch.ones(1000, dtype=torch.bool))
    assert_close(metric.compute(), torch.tensor(0.375), 1e-5)
