"""Whether the vectors of a memory become alike in training."""

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from npbench.callbacks.recording import Onlooker, undisturbed
from npbench.errors import InputError
from npbench.files import output_file
from npbench.models.contracts.memory import HasMemory
from npbench.profiling.degradation import MEASURES, degradation_of
from npbench.structure import TensorRecord
from npbench.training.lightning_parts import precision_of

# What each panel of the figure shows: a title, the measure of the full lines, that of the dashed.
_PANELS = (
    ("mean cosine of pairs", "cosine_packed", "cosine_latents"),
    ("effective rank", "rank_packed", "rank_latents"),
    ("entropy of attention / log n", "relative_entropy", None),
)


class MemoryDegradation(Onlooker):
    """Records, validation by validation, how alike the vectors of a model's memory are.

    For models that see their data through latents: CMANP, LBANP, CMHP, LocatedCMANP, Luna and all
    that have `memory_layers` (`npbench.models.contracts.HasMemory`). It looks at the first tasks of
    the first batch of every validation, the sanity check before training too, and takes the
    measures of `npbench.profiling.degradation` of each layer:

    - `degradation.csv` in the run's folder has a row for each step and layer;
    - `figures/degradation.png` and TensorBoard's `degradation` show them over training;
    - TensorBoard has a scalar for each measure and layer, such as `degradation/rank_packed/1`.

    It disturbs nothing: training goes on as if nobody had looked. A run that is resumed goes on
    with the rows of before.

    Args:
        num_tasks: number of tasks, sequences or texts that it looks at.
        every_n_validations: how often to look.

    Raises:
        InputError: when a run starts, if the model has no memory.

    Example:
        >>> import lightning as L
        >>> from npbench.callbacks import MemoryDegradation
        >>> trainer = L.Trainer(max_steps=1000, callbacks=[MemoryDegradation()])
    """

    def __init__(self, num_tasks: int = 16, every_n_validations: int = 1) -> None:
        if num_tasks < 1 or every_n_validations < 1:
            raise InputError(
                f"num_tasks={num_tasks} and every_n_validations={every_n_validations} must be 1 or "
                f"more"
            )
        self.num_tasks = num_tasks
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._batch: TensorRecord | None = None
        self._rows: list[dict[str, Any]] = []

    def check(self, trainer: L.Trainer) -> None:
        model: Any = trainer.lightning_module.model
        if not isinstance(model, HasMemory):
            raise InputError(
                f"MemoryDegradation looks at models that have a memory, and {type(model).__name__} "
                f"has none: take it out of trainer.callbacks"
            )

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == dataloader_idx == 0:
            self._batch = batch.map(lambda tensor: tensor[: self.num_tasks])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = trainer.log_dir  # which all processes must ask for together
        batch, self._batch = self._batch, None
        self._validations += not trainer.sanity_checking
        if not trainer.is_global_zero or self._validations % self.every_n_validations:
            return
        rows = self.look(lambda: self._measure(trainer, pl_module, batch))
        step = trainer.global_step
        # A run that is resumed looks at its last step again.
        if not rows or any(row["step"] == step for row in self._rows):
            return
        self._rows += [{"step": step, **row} for row in rows]
        table = pd.DataFrame(self._rows)
        figure = degradation_figure(table)
        if folder is not None:
            with output_file(Path(folder) / "degradation.csv") as file:
                table.to_csv(file, index=False)
            with output_file(Path(folder) / "figures" / "degradation.png") as file:
                figure.savefig(file, format="png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for row in rows:
                    for name in MEASURES:
                        scalar = f"degradation/{name}/{row['layer']}"
                        logger.experiment.add_scalar(scalar, row[name], step)
                logger.experiment.add_figure("degradation", figure, step)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = list(state_dict["rows"])

    def _measure(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: TensorRecord | None
    ) -> list[dict[str, Any]]:
        model: Any = pl_module.model
        with undisturbed(model, pl_module.device), precision_of(trainer):
            layers = model.memory_layers(batch)
            if not layers:
                raise InputError(f"{type(model).__name__} has no memory to look at")
            return degradation_of(layers)


def degradation_figure(table: pd.DataFrame) -> Figure:
    """The measures over training: a panel for each kind, and a colour for each layer.

    Full lines are of what attention has brought from the points, dashed ones of what the layer
    makes of it.

    Args:
        table: rows with `step`, `layer` and the measures, as of `MemoryDegradation`.
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(_PANELS))
    layers = sorted(table["layer"].unique())
    for index, layer in enumerate(layers):
        rows = table[table["layer"] == layer].sort_values("step")
        color = f"C{index % 10}"
        for axis, (_, full, dashed) in zip(axes, _PANELS):
            axis.plot(rows["step"], rows[full], "o-", ms=3, color=color, label=f"layer {layer}")
            if dashed is not None:
                axis.plot(rows["step"], rows[dashed], "o--", ms=3, mfc="none", color=color)
    for axis, (title, _, _) in zip(axes, _PANELS):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("training steps", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(top=1.03)
    axes[1].set_ylim(bottom=0.0)
    axes[2].set_ylim(0.0, 1.03)
    lines = [
        Line2D([], [], color="grey", ls=style, marker="o", ms=3, mfc=fill, label=name)
        for name, style, fill in (("packed", "-", "grey"), ("latents", "--", "none"))
    ]
    axes[0].legend(handles=lines, fontsize=8, frameon=False)
    axes[-1].legend(fontsize=8, frameon=False)
    return figure
