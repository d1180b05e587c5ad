"""Training of any neural process on tasks."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import Metric

from npbench.errors import InputError
from npbench.metrics import ClassificationMetrics, RegressionMetrics, metrics_of
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import NeuralProcess, evaluating
from npbench.models.contracts.ranges import Ranges
from npbench.offers import OffersScaling
from npbench.scaling import Scaling
from npbench.task import Task
from npbench.training.base import TrainingModule
from npbench.training.compiled import CompiledLoss
from npbench.training.gradients import OnNonFinite, unusable_loss
from npbench.training.sampling import joint_samples

# The first test tasks of which samples of joint models are scored, on each device, and how many.
_SAMPLED_TASKS, _NUM_SAMPLES = 64, 100


class Prediction(NamedTuple):
    """The mean and standard deviation of each target's value, and its quantiles if asked for."""

    mean: Float[Tensor, "batch target dim_y"]
    std: Float[Tensor, "batch target dim_y"]
    quantiles: Float[Tensor, "levels batch target dim_y"] | None = None


class MetaRegression(TrainingModule):
    """Train and evaluate a `NeuralProcess` on batches of `Task`.

    It logs, for each of `train`, `val` and `test`, the log-likelihood per target in nats (and its
    standard error over tasks), the root mean square error, the coverage of the central 50, 80 and
    95 % intervals, the CRPS, the interval score and the calibration (`RegressionMetrics`). Of a
    joint model `test` also logs the energy score of 100 joint samples, a mean over the first 64
    tasks (on each device), and `sampling_ms`, the milliseconds that they take. Where the tasks
    carry their exact answer, it logs the `gap` to it too: how many nats per target the model loses
    against whoever knows the process, who scores all targets together if the model does (joint and
    autoregressive ones), or else one by one. Where they carry the best answer that knows only the
    priors, `gap_bayes` is the same to that. Of a model of classes it logs the accuracy and the
    calibration error in place of these. Where the data module has a dictionary of test loaders,
    `test` logs each by its name, `test/log_likelihood/NAME`.

    It records the range and scale of all inputs and outputs that it trains on (with several
    processes, on the first), in `model.watch.ranges` and in checkpoints: a model warns of values
    far outside them.

    Where the data module offers the units of its columns, a new run gives them to the model
    (`model.scaling`): all that is logged, drawn and predicted is then in these units, and
    checkpoints keep them. A model that is evaluated keeps the units that it has. Where each output
    of the data is a function by itself (`Task.output`), every batch is taken, scored and predicted
    in the units of its output.

    Args:
        model: the neural process.
        optimizer: makes an optimiser of parameters; Adam by default.
        lr_scheduler: makes a scheduler of an optimiser; it steps at every training step, or after
            each validation if it is Lightning's `ReduceLROnPlateau`. By default `decay` says what
            the learning rate does.
        decay: how the learning rate falls to 0 over the run, "cosine" or "linear".
        warmup_steps: steps over which the learning rate rises linearly before either.
        on_nonfinite: what to do about a step whose gradients are not finite: "skip" it, with one
            warning, or "raise" an error. Weights are never made of it.
        compile: whether `torch.compile` makes one graph of the loss, in the first steps of each
            size; see `CompiledLoss`.
        lr_factors: what the learning rates of parts of the model are multiplied by, by their names,
            such as {"blocks": 0.1}: smaller ones for what a trained model has learned already.

    Example:
        >>> import lightning as L
        >>> from npbench.models import CMANP
        >>> module = MetaRegression(CMANP(dim_x=1, dim_y=1, num_layers=1))
        >>> trainer = L.Trainer(max_steps=1000)
        >>> trainer.fit(module, datamodule=GPDataModule())  # doctest: +SKIP
    """

    monitor: ClassVar[str] = "val/log_likelihood"
    monitor_mode: ClassVar[Literal["min", "max"]] = "max"
    metrics: ClassVar[type[RegressionMetrics]] = RegressionMetrics
    batch: ClassVar[type[Task]] = Task
    model: NeuralProcess

    def __init__(
        self,
        model: NeuralProcess,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        decay: Literal["cosine", "linear"] = "cosine",
        warmup_steps: int = 0,
        on_nonfinite: OnNonFinite = "skip",
        compile: bool = False,
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            model, optimizer, lr_scheduler, decay, warmup_steps, on_nonfinite, lr_factors
        )
        self._compiled_loss = CompiledLoss(model) if compile else None
        self.quantiles: Sequence[float] = ()
        self._records_ranges = True
        self._step_ranges: Ranges | None = None

    def forward(self, task: Task) -> torch.distributions.Distribution:
        return self.model(task.xc, task.yc, task.xt, task.context_mask)

    def setup(self, stage: str) -> None:
        if stage == "fit" and not any(module.training for module in self.model.modules()):
            self.model.train()  # `npbench.load` gives models in evaluation mode
        # A checkpoint is restored after this, and brings its own units.
        data = self._data
        if isinstance(data, OffersScaling) and (stage == "fit" or self.model.scaling is None):
            self.model.scaling = data.scaling
        each_output = self.model.scaling is not None and self.model.scaling.each_output
        if stage == "fit" and self._compiled_loss is not None and each_output:
            raise InputError(
                "compile=True makes one graph of the loss, and with each_output every output has "
                "units of its own: set one of the two to false"
            )

    def training_step(self, task: Task, batch_idx: int) -> Tensor:
        try:
            loss = (self._compiled_loss or self.model.loss)(task)
        except torch.linalg.LinAlgError:  # of values that are too large for its equations
            loss = unusable_loss(self.model.parameters())
        ranges = _ranges_of(task, self.model.of_task(task).scaling)
        self._step_ranges = _merged(self._step_ranges, ranges)
        self.log("train/loss", loss, prog_bar=True, batch_size=task.batch_size)
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0 and loss.isfinite():
            with evaluating(self.model):
                self._measure("train", task, self.train_metrics)
        return loss

    def test_step(self, task: Task, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().test_step(task, batch_idx, dataloader_idx)
        metrics, of = self._tested(dataloader_idx)
        if not (self.model.scores_jointly and isinstance(metrics, RegressionMetrics)):
            return
        more = min(task.batch_size, _SAMPLED_TASKS - int(metrics.energy_score.count))
        for row in range(more):
            drawn = joint_samples(self.model.of_task(task), task, row, _NUM_SAMPLES)
            self._log_metrics("test", metrics.update_samples(*drawn), batch_size=1, of=of)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if (ranges := self.model.watch.ranges) is not None:
            checkpoint |= ranges.to_checkpoint()
        if self.model.scaling is not None:
            checkpoint |= self.model.scaling.to_checkpoint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, and know what values this one was trained on, and
        in what units.

        Raises:
            InputError: as `TrainingModule`.
        """
        super().on_load_checkpoint(checkpoint)
        self.model.watch.ranges = Ranges.of_checkpoint(checkpoint)
        # Where they are not known, those of the steps that follow alone would mislead.
        self._records_ranges = self.model.watch.ranges is not None
        if (scaling := Scaling.of_checkpoint(checkpoint)) is not None:
            self.model.scaling = scaling

    def _end_step(self, taken: bool) -> None:
        ranges, self._step_ranges = self._step_ranges, None
        if taken and self._records_ranges and ranges is not None:
            self.model.watch.ranges = _merged(self.model.watch.ranges, ranges)

    def predict_step(self, task: Task, batch_idx: int) -> Prediction:
        model = self.model.of_task(task)
        state = model.condition(task.xc, task.yc, task.context_mask)
        marginals = model.marginals(state, task.xt, task.target_mask)
        if not self.quantiles:
            return Prediction(*marginals)
        return Prediction(*marginals, model.quantiles(state, task.xt, self.quantiles))

    def prediction_table(self, task: Task, prediction: Prediction) -> pa.Table:
        """One row for each real target.

        Its columns are `task`, `target` (the index in the task), the inputs `x0`, `x1`, …, the
        moments `mean0`, …, `std0`, …, quantiles `q0.05_0`, … if there are any, and the true values
        `y0`, … where they are known. A model with the units of data has their names: inputs and
        outputs NAME, moments NAME_mean and NAME_std, quantiles NAME_q0.05. Where each output is a
        function by itself, the column `output` has its name, and NAME is `value`.
        """
        shape = task.xt.shape[:2]
        mask = np.ones(shape, bool)
        if task.target_mask is not None:
            mask = task.target_mask.cpu().numpy()
        columns = {name: i[mask] for name, i in zip(("task", "target"), np.indices(shape))}
        model = self.model.of_task(task)
        scaling = model.scaling
        x_names, y_names = model.columns
        if task.output is not None:
            columns = {"task": columns.pop("task"), "output": [task.output] * mask.sum(), **columns}
            y_names = ["value"]
        answers = {"mean": prediction.mean, "std": prediction.std}
        if prediction.quantiles is not None:
            levels = (f"q{level:g}_" for level in self.quantiles)
            answers |= dict(zip(levels, prediction.quantiles, strict=True))
        for name, values in {"x": task.xt, **answers, "y": task.yt}.items():
            if values is None:
                continue
            names = [f"{name}{i}" for i in range(values.shape[-1])]
            if scaling is None:
                values = values.float()
            elif name in ("x", "y"):
                names = x_names if name == "x" else y_names
            else:
                names = [f"{output}_{name.removesuffix('_')}" for output in y_names]
            columns |= dict(zip(names, values.detach().cpu().numpy()[mask].T, strict=True))
        return pa.table(columns)

    def _new_metrics(self) -> RegressionMetrics | ClassificationMetrics:
        return metrics_of(self.model)

    def _update_metrics(
        self, task: Task, metrics: RegressionMetrics | ClassificationMetrics
    ) -> dict[str, Metric]:
        return metrics.update(task, self.model.evaluate(task), self.model.scores_jointly)


def _ranges_of(task: Task, scaling: Scaling | None) -> Ranges:
    """Those of the model's numbers of all points of a batch that are trained on."""
    parts = [(task.xc, task.yc, task.context_mask), (task.xt, task.yt, task.target_mask)]
    if scaling is not None:
        parts = [(scaling.encode_x(x), scaling.encode_y(y), mask) for x, y, mask in parts]
    return Ranges.of(Points.concatenate([Points(*part) for part in parts]))


def _merged(ranges: Ranges | None, more: Ranges) -> Ranges:
    return more if ranges is None else ranges.to(more.low.device).merge(more)
