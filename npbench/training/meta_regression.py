"""Training of any neural process on tasks."""

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from npbench.metrics import RegressionMetrics
from npbench.models.base import Marginals, NeuralProcess, evaluating
from npbench.task import Task


class MetaRegression(L.LightningModule):
    """Train and evaluate a `NeuralProcess` on batches of `Task`.

    Logs, for each of `train`, `val` and `test`: the log-likelihood per target in nats (and its
    standard error over tasks), the root mean square error, and the coverage of the central 50, 80
    and 95 % intervals. Where the tasks carry their exact answer, also the `gap` to it: how many
    nats per target the model loses against whoever knows the process, and scores all targets
    together if the model does (joint and autoregressive ones), or else one by one. Where the data
    module has several test loaders, a dictionary by name, `test` has each for itself:
    `test/log_likelihood/NAME`.

    Args:
        model: the neural process.
        optimizer: from parameters to an optimiser; Adam by default.
        lr_scheduler: from an optimiser to a scheduler, stepped at every training step
            (`ReduceLROnPlateau`, Lightning's, after each validation); by default as `decay` says.
        decay: how the learning rate falls to 0 over the run, "cosine" or "linear".
        warmup_steps: steps over which the learning rate rises linearly before either.

    Example:
        >>> from npbench.models import CMANP
        >>> module = MetaRegression(CMANP(dim_x=1, dim_y=1, num_layers=1))
        >>> trainer = L.Trainer(max_steps=1000)
        >>> trainer.fit(module, datamodule=GPDataModule())  # doctest: +SKIP
    """

    def __init__(
        self,
        model: NeuralProcess,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        decay: Literal["cosine", "linear"] = "cosine",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        if decay not in ("cosine", "linear"):
            raise ValueError(f'decay={decay!r} must be "cosine" or "linear"')
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps} must not be negative")
        self.model = model
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.decay = decay
        self.warmup_steps = warmup_steps
        self._save_hyperparameters()
        self.train_metrics, self.val_metrics, self.test_metrics = (
            RegressionMetrics() for _ in range(3)
        )
        self.named_test_metrics = nn.ModuleDict()

    def forward(self, task: Task) -> torch.distributions.Distribution:
        return self.model(task.xc, task.yc, task.xt, task.context_mask)

    def training_step(self, task: Task, batch_idx: int) -> Tensor:
        loss = self.model.loss(task)
        self.log("train/loss", loss, prog_bar=True, batch_size=task.batch_size)
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            with evaluating(self.model):
                self._measure("train", task, self.train_metrics)
        return loss

    def validation_step(self, task: Task, batch_idx: int) -> None:
        self._measure("val", task, self.val_metrics)

    def on_test_start(self) -> None:
        loaders = self.trainer.test_dataloaders
        names = loaders if isinstance(loaders, dict) else ()
        metrics = {name: RegressionMetrics() for name in names}
        self.named_test_metrics = nn.ModuleDict(metrics).to(self.device)

    def test_step(self, task: Task, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.named_test_metrics:
            name, metrics = list(self.named_test_metrics.items())[dataloader_idx]
            self._measure("test", task, metrics, f"/{name}")
        else:
            self._measure("test", task, self.test_metrics)

    def predict_step(self, task: Task, batch_idx: int) -> Marginals:
        state = self.model.condition(task.xc, task.yc, task.context_mask)
        return self.model.marginals(state, task.xt, task.target_mask)

    def _measure(self, stage: str, task: Task, metrics: RegressionMetrics, of: str = "") -> None:
        evaluation = self.model.evaluate(task)
        for name, metric in metrics.update(task, evaluation, self.model.scores_jointly).items():
            shown = name == "log_likelihood" and stage != "train"
            self.log(
                f"{stage}/{name}{of}",
                metric,
                prog_bar=shown,
                on_step=False,
                on_epoch=True,
                batch_size=task.batch_size,
                add_dataloader_idx=False,
            )

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.model.parameters())
        scheduler = (self.lr_scheduler or self._decay_over_the_run)(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if not isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    "take lightning.pytorch.cli.ReduceLROnPlateau, which is told what to monitor"
                )
            if self.warmup_steps:
                raise ValueError("ReduceLROnPlateau takes no warmup_steps; set warmup_steps to 0")
            schedule = {"scheduler": scheduler, "monitor": scheduler.monitor}
        else:
            schedule = {"scheduler": self._with_warmup(scheduler), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _decay_over_the_run(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        steps = max(1, self.trainer.estimated_stepping_batches - self.warmup_steps)
        if self.decay == "cosine":
            return CosineAnnealingLR(optimizer, T_max=steps)
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)

    def _with_warmup(self, scheduler: LRScheduler) -> LRScheduler:
        if not self.warmup_steps:
            return scheduler
        warmup = LinearLR(
            scheduler.optimizer, start_factor=1 / self.warmup_steps, total_iters=self.warmup_steps
        )
        return SequentialLR(scheduler.optimizer, [warmup, scheduler], [self.warmup_steps])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            ValueError: if its parameters are not this model's; says how the two differ.
        """
        mine, theirs = (
            {name: value.shape for name, value in state.items()}
            for state in (self.state_dict(), checkpoint["state_dict"])
        )
        if mine == theirs:
            return
        here = self.hparams["model"]
        there = checkpoint.get("hyper_parameters", {}).get("model", {})
        if here["class_path"] != there.get("class_path"):
            difference = f"it holds {there.get('class_path')}, this is {here['class_path']}"
        else:
            difference = ", ".join(
                f"{name} is {there['init_args'].get(name)} there and {value} here"
                for name, value in here["init_args"].items()
                if there["init_args"].get(name) != value
            )
        raise ValueError(f"the checkpoint is of another model: {difference}")

    def _save_hyperparameters(self) -> None:
        """Keep all that `load_from_checkpoint` needs.

        Under the command line Lightning keeps the parsed configuration itself. In Python the model
        is described by its class and arguments; the optimiser and scheduler, arbitrary functions
        then, are not kept.
        """
        self.save_hyperparameters(ignore=["model"])
        if "_instantiator" not in self.hparams:
            del self.hparams["optimizer"], self.hparams["lr_scheduler"]
            self.hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
        cls = type(self.model)
        self.hparams["model"] = {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": self.model.hparams,
        }
