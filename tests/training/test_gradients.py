"""No NaN reaches a weight: steps whose gradients are not finite are not taken."""

import warnings

import lightning as L
import pytest
import torch
from helpers import SIZES, small
from torch.utils.data import DataLoader

from npbench import Task
from npbench.errors import DataWarning, InputError
from npbench.training import MetaRegression

# The others are tested where time is not short.
_QUICK = {"CANP", "ANP", "BANP", "CNP", "TNPD", "SecondMomentNP", "FourierMomentNP"}
OPTIONS = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "enable_checkpointing": False, "max_epochs": 1,
    "log_every_n_steps": 1,
}  # fmt: skip


def task(seed: int, x: float = 1.0, y: float = 1.0, dim_x: int = 2) -> Task:
    generator = torch.Generator().manual_seed(seed)

    def draw(points: int, width: int) -> torch.Tensor:
        return torch.randn(2, points, width, generator=generator)

    return Task(x * draw(6, dim_x), y * draw(6, 3), x * draw(5, dim_x), y * draw(5, 3))


def fit(module: MetaRegression, batches: list[Task], **options: object) -> None:
    trainer = L.Trainer(**(OPTIONS | options))
    trainer.fit(module, DataLoader(batches, batch_size=None))


def module_of(name: str, **options: object) -> MetaRegression:
    torch.manual_seed(0)
    return MetaRegression(small(name).float(), **options)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    "name",
    [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SIZES],
)
def test_no_batch_writes_nan_into_weights(name: str) -> None:
    """Neither inputs of 1e6 nor outputs of 1e18, and training goes on after them."""
    module = module_of(name)
    dim_x = module.model.dim_x
    scales = [(1.0, 1.0), (1e6, 1.0), (1.0, 1e18), (1e18, 1e18)]
    batches = [task(i, x, y, dim_x) for i, (x, y) in enumerate(scales)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, batches)
        after = [parameter.clone() for parameter in module.parameters()]
        assert all(parameter.isfinite().all() for parameter in after)
        fit(module, [task(4, dim_x=dim_x)])
    assert any(not torch.equal(a, b) for a, b in zip(after, module.parameters()))


@pytest.mark.usefixtures("as_a_user")
def test_a_skipped_batch_leaves_weights_and_optimiser_as_they_were() -> None:
    """The training with it is bitwise the training without it, and one warning says so."""
    with_it, without = module_of("CNP"), module_of("CNP")
    bad = task(9, y=1e30)
    with pytest.warns(DataWarning, match="gradients of step 1 are not finite") as caught:
        fit(with_it, [task(0), bad, bad, task(1)])
    assert len([w for w in caught if w.category is DataWarning]) == 1
    # The schedule counts all steps, and two of them have no gradients.
    fit(without, [task(0), task(0), task(0), task(1)], callbacks=[_SkipMiddle()])
    for mine, theirs in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class _SkipMiddle(L.Callback):
    """Takes the gradients of the second and third step away."""

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step in (1, 2):
            optimizer.zero_grad()


@pytest.mark.usefixtures("as_a_user")
def test_a_batch_whose_gradients_are_not_finite_is_an_error_where_asked() -> None:
    module = module_of("CNP", on_nonfinite="raise")
    with pytest.raises(InputError, match="gradients of step 1 are not finite: values of that ba"):
        fit(module, [task(0), task(9, y=1e30)])
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    with pytest.raises(InputError, match='on_nonfinite=\'stop\' must be "skip" or "raise"'):
        module_of("CNP", on_nonfinite="stop")


def test_gradients_whose_squares_overflow_are_not_finite_either() -> None:
    """Adam's second moment would be infinite from then on, and the weight would never move."""
    module = module_of("CNP")
    weight = next(module.parameters())
    weight.grad = torch.full_like(weight, 1e20)
    with pytest.warns(DataWarning, match="not finite"):
        assert not module._gradients.passes(module.parameters(), step=0)
    assert weight.grad is None
