"""MetaRegression trains, measures and reloads any neural process."""

import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from datamodules import GPDataModule
from npbench import Task
from npbench.errors import DataWarning
from npbench.models import CMANP, CNP, NeuralProcess
from npbench.training import MetaRegression


def small_model() -> CMANP:
    return CMANP(1, 1, dim_model=16, num_layers=1, num_latents=4, num_block_latents=4)


def trainer(path: Path, **options: object) -> L.Trainer:
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(accelerator="cpu", default_root_dir=path, **(quiet | options))


def small_data(**options: object) -> GPDataModule:
    sizes = {"batch_size": 4, "steps_per_epoch": 10, "num_val_tasks": 8, "num_test_tasks": 8}
    return GPDataModule(**(sizes | options))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    data = small_data(steps_per_epoch=150, batch_size=16)
    module = MetaRegression(
        CNP(1, 1, dim_hidden=32), optimizer=lambda params: torch.optim.Adam(params, lr=5e-3)
    )
    before = module.model.log_likelihood(data.evaluation_batch(range(64))).mean()
    trainer(tmp_path, max_steps=150, enable_checkpointing=False).fit(module, data)
    after = module.model.log_likelihood(data.evaluation_batch(range(64))).mean()
    assert after > before + 0.1


def test_validation_logs_log_likelihood_error_calibration_and_gap(tmp_path: Path) -> None:
    data, module = small_data(), MetaRegression(small_model())
    run = trainer(tmp_path, max_steps=3, enable_checkpointing=False, log_every_n_steps=1)
    run.fit(module, data)
    logged = run.callback_metrics
    for stage in ("train", "val"):
        for name in ("log_likelihood", "log_likelihood_stderr", "rmse", "coverage_95"):
            assert torch.isfinite(logged[f"{stage}/{name}"])
    module.eval()
    with torch.no_grad():
        (batch,) = list(data.val_dataloader())
        evaluation = module.model.evaluate(batch)
    torch.testing.assert_close(logged["val/log_likelihood"], evaluation.log_likelihood.mean())
    gap = (batch.exact.log_likelihood - evaluation.log_likelihood).mean()
    torch.testing.assert_close(logged["val/gap"], gap)
    errors = (evaluation.mean - batch.yt)[batch.target_mask]
    torch.testing.assert_close(logged["val/rmse"], errors.square().mean().sqrt())


def test_measuring_in_training_leaves_a_frozen_layer_frozen(tmp_path: Path) -> None:
    module = MetaRegression(small_model())
    module.model.blocks.eval()
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0, log_every_n_steps=1)
    run.fit(module, small_data())
    assert module.model.training
    assert not module.model.blocks.training


def test_results_do_not_depend_on_the_evaluation_batch_size(tmp_path: Path) -> None:
    module, run = MetaRegression(small_model()), trainer(tmp_path)
    results = [run.test(module, small_data(eval_batch_size=n), verbose=False) for n in (1, 3, 8)]
    for other in results[1:]:
        assert other[0] == pytest.approx(results[0][0], rel=1e-5)


def test_a_module_may_be_validated_before_and_after_it_is_trained(tmp_path: Path) -> None:
    module, data = MetaRegression(small_model()), small_data()
    run = trainer(tmp_path, max_steps=2, enable_checkpointing=False)
    (before,) = run.validate(module, data, verbose=False)
    run.fit(module, data)
    (after,) = run.validate(module, data, verbose=False)
    assert before["val/log_likelihood"] != after["val/log_likelihood"]


def test_padding_with_masks_trains_the_same(tmp_path: Path) -> None:
    losses = []
    for pad in (False, True):
        torch.manual_seed(0)
        module = MetaRegression(small_model())
        run = trainer(tmp_path, max_steps=5, limit_val_batches=0, enable_checkpointing=False)
        run.fit(module, small_data(pad=pad))
        losses.append(run.callback_metrics["train/loss"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_from_python_needs_nothing_else(tmp_path: Path) -> None:
    module = MetaRegression(small_model())
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(module, small_data())
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = MetaRegression.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.model.hparams == module.model.hparams
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            CNP(1, 1, dim_hidden=8),
            r"it holds npbench.models.CNP, this is npbench.models.CMANP",
        ),
        (CMANP(1, 1, dim_model=16, num_layers=2), "num_layers is 2 there and 1 here"),
    ],
    ids=["class", "size"],
)
def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, other: NeuralProcess, message: str
) -> None:
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(MetaRegression(other), small_data())
    run.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=f"the checkpoint is of another model: .*{message}"):
        run.test(MetaRegression(small_model()), small_data(), ckpt_path=tmp_path / "other.ckpt")


def schedule(module: MetaRegression, path: Path, steps: int) -> list[float]:
    """The learning rate at each training step."""
    rates = []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    options = {"limit_val_batches": 0, "enable_checkpointing": False, "callbacks": [Record()]}
    trainer(path, max_steps=steps, **options).fit(module, small_data())
    return rates


def test_the_default_is_adam_and_a_cosine_to_zero(tmp_path: Path) -> None:
    rates = schedule(MetaRegression(small_model()), tmp_path, steps=20)
    steps = torch.arange(20)
    expected = 5e-4 * 0.5 * (1 + torch.cos(torch.pi * steps / 20))
    torch.testing.assert_close(torch.tensor(rates), expected)


def test_parts_may_learn_more_slowly(tmp_path: Path) -> None:
    model = small_model()
    module = MetaRegression(model, lr_factors={"embed_points": 0.0}, decay="linear")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(tmp_path, max_steps=2).fit(module, small_data())
    changed = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert "head" in changed
    assert "embed_points" not in changed
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    loaded = MetaRegression.load_from_checkpoint(checkpoint)
    assert loaded.lr_factors == {"embed_points": 0.0}


def test_a_linear_decay_ends_at_zero(tmp_path: Path) -> None:
    rates = schedule(MetaRegression(small_model(), decay="linear"), tmp_path, steps=20)
    torch.testing.assert_close(torch.tensor(rates), 5e-4 * (1 - torch.arange(20) / 20))


@pytest.mark.usefixtures("as_a_user")
def test_an_unknown_decay_is_an_error() -> None:
    with pytest.raises(ValueError, match="decay='square' must be"):
        MetaRegression(small_model(), decay="square")


def test_warmup_rises_linearly_and_the_cosine_follows(tmp_path: Path) -> None:
    rates = schedule(MetaRegression(small_model(), warmup_steps=5), tmp_path, steps=20)
    rising = 5e-4 * torch.linspace(0.2, 1.0, 6)
    torch.testing.assert_close(torch.tensor(rates[:6]), rising)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 1e-5


def test_another_scheduler_steps_at_every_step(tmp_path: Path) -> None:
    module = MetaRegression(
        small_model(), lr_scheduler=lambda optimizer: StepLR(optimizer, step_size=2, gamma=0.1)
    )
    assert schedule(module, tmp_path, steps=4) == pytest.approx([5e-4, 5e-4, 5e-5, 5e-5])


def test_warmup_with_a_plateau_schedule_is_an_error(tmp_path: Path) -> None:
    module = MetaRegression(
        small_model(),
        lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, monitor="train/loss"),
        warmup_steps=5,
    )
    with pytest.raises(ValueError, match="takes no warmup_steps"):
        trainer(tmp_path, max_steps=2).fit(module, small_data())


def test_negative_warmup_is_an_error() -> None:
    with pytest.raises(ValueError, match="warmup_steps=-1"):
        MetaRegression(small_model(), warmup_steps=-1)


class NaNData(GPDataModule):
    """One bad value, in the third batch."""

    def training_batch(self, index: int, rank: int = 0) -> Task:
        task = super().training_batch(index, rank)
        if index == 2:
            task.yc[1, 2, 0] = torch.nan
        return task


def test_nan_in_the_data_stops_training_with_its_place(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=5, limit_val_batches=0, enable_checkpointing=False)
    data = NaNData(batch_size=4, steps_per_epoch=10)
    with pytest.raises(
        ValueError, match=r"yc holds 1 NaN or infinite .* task 1, point 2, column 0"
    ):
        run.fit(MetaRegression(small_model()), data)


@pytest.mark.parametrize("model", [small_model(), CNP(1, 1, dim_hidden=16)], ids=["CMANP", "CNP"])
def test_prediction_needs_no_true_values(model: NeuralProcess) -> None:
    task = Task(torch.randn(2, 3, 1), torch.randn(2, 3, 1), torch.randn(2, 4, 1))
    assert MetaRegression(model).predict_step(task, 0).mean.shape == (2, 4, 1)


class _Batches(L.LightningDataModule):
    def __init__(self, batches: list[Task]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


def _batch(seed: int, scale: float = 1.0) -> Task:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 2, 9, 1, generator=generator)
    mask = torch.arange(9).expand(2, -1) < torch.tensor([[4], [2]])
    return Task(50 + x[:, :4], scale * y[:, :4], 50 + x[:, 4:], scale * y[:, 4:], mask[:, :4])


def test_the_ranges_of_training_are_those_of_all_points_that_were_trained_on(
    tmp_path: Path,
) -> None:
    """Through checkpoints and a resume, and without padding or a batch that was skipped."""
    batches = [_batch(i) for i in range(4)]
    points = torch.cat([
        torch.cat([torch.cat([b.xc, b.yc], -1)[b.context_mask],
                   torch.cat([b.xt, b.yt], -1).flatten(0, 1)])
        for b in batches
    ]).double()  # fmt: skip
    path, options = tmp_path / "last.ckpt", {"max_epochs": 1, "enable_checkpointing": False}
    first = MetaRegression(small_model())
    run = trainer(tmp_path, **options)
    data = _Batches([batches[0], _batch(9, scale=1e30), batches[1]])
    with pytest.warns(DataWarning, match="gradients of step 1 are not finite"):
        run.fit(first, data)
    run.save_checkpoint(path)
    second = MetaRegression(small_model())
    trainer(tmp_path, **options | {"max_epochs": 2}).fit(
        second, _Batches(batches[2:]), ckpt_path=path, weights_only=True
    )
    ranges = second.model.watch.ranges
    assert float(ranges.count) == len(points)
    assert torch.equal(ranges.low, points.amin(0))
    assert torch.equal(ranges.high, points.amax(0))
    torch.testing.assert_close(ranges.mean, points.mean(0))
    torch.testing.assert_close(ranges.std, points.std(0, correction=0))
    loaded = MetaRegression.load_from_checkpoint(path, weights_only=True).model.watch.ranges
    assert float(loaded.count) == len(points) / 2


def test_the_ranges_of_a_part_of_the_training_are_not_taken_for_those_of_all(
    tmp_path: Path,
) -> None:
    """A checkpoint of release 0.1.0 tells none: those of the steps after it would mislead."""
    path, options = tmp_path / "last.ckpt", {"max_epochs": 1, "enable_checkpointing": False}
    run = trainer(tmp_path, **options)
    run.fit(MetaRegression(small_model()), _Batches([_batch(0)]))
    run.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    del content["training_ranges"]
    torch.save(content, path)
    module = MetaRegression(small_model())
    resumed = trainer(tmp_path, **options | {"max_epochs": 2})
    resumed.fit(module, _Batches([_batch(1)]), ckpt_path=path, weights_only=True)
    assert resumed.global_step == 2
    assert module.model.watch.ranges is None
