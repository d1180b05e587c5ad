"""Training of any classifier of sequences of tokens."""

from typing import ClassVar, Literal, NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric

from npbench.errors import InputError
from npbench.metrics import SequenceMetrics
from npbench.models.contracts.classifier import SequenceClassifier
from npbench.offers import OffersClasses
from npbench.sequences import TokenSequences
from npbench.training.gradients import OnNonFinite
from npbench.training.names import TrainingByNames


class SequencePrediction(NamedTuple):
    """The likeliest class of each sequence, and the probabilities of all."""

    prediction: Int[Tensor, "batch"]
    probabilities: Float[Tensor, "batch classes"]


class SequenceClassification(TrainingByNames):
    """Train and evaluate a `SequenceClassifier` on batches of `TokenSequences`.

    It minimises the cross-entropy, logged as `train/loss`, and logs all of `SequenceMetrics` for
    `val` and `test`: `val/accuracy`, by which the best checkpoint is chosen, `val/nll` and
    `val/calibration_error`.

    Classes keep their meaning: where the data module names them (`OffersClasses`), this module
    keeps the names of its training in `classes`, saves them in its checkpoints, and sets them in
    every data module that it is given later.

    Args:
        model: a classifier with as many classes and tokens as the data.
        optimizer: makes an optimiser of parameters; Adam by default.
        lr_scheduler: makes a scheduler of an optimiser; it steps at every training step, or after
            each validation if it is Lightning's `ReduceLROnPlateau`. By default `decay` says what
            the learning rate does.
        decay: how the learning rate falls to 0 over the run, "cosine" or "linear".
        warmup_steps: steps over which the learning rate rises linearly before either.
        on_nonfinite: what to do about a step whose gradients are not finite: "skip" it, with one
            warning, or "raise" an error. Weights are never made of it.
        lr_factors: what the learning rates of parts of the model are multiplied by, by their names.

    Raises:
        InputError: when a run starts, if the data have other classes, or more tokens.

    Example:
        >>> import lightning as L
        >>> from npbench.models import Luna
        >>> module = SequenceClassification(Luna(vocab_size=17, num_classes=10, dim_model=64))
        >>> trainer = L.Trainer(max_steps=5000)
        >>> trainer.fit(module, datamodule=ListOpsDataModule())  # doctest: +SKIP
    """

    monitor: ClassVar[str] = "val/accuracy"
    monitor_mode: ClassVar[Literal["min", "max"]] = "max"
    metrics: ClassVar[type[nn.Module]] = SequenceMetrics
    batch: ClassVar[type[TokenSequences]] = TokenSequences
    names: ClassVar[str] = "classes"
    offer: ClassVar[type] = OffersClasses
    model: SequenceClassifier

    def __init__(
        self,
        model: SequenceClassifier,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        decay: Literal["cosine", "linear"] = "cosine",
        warmup_steps: int = 0,
        on_nonfinite: OnNonFinite = "skip",
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            model, optimizer, lr_scheduler, decay, warmup_steps, on_nonfinite, lr_factors
        )
        self.classes: list[str] | None = None

    def forward(self, sequences: TokenSequences) -> Float[Tensor, "batch classes"]:
        return self.model(sequences.tokens, sequences.full_mask)

    def training_step(self, sequences: TokenSequences, batch_idx: int) -> Tensor:
        loss = self.model.loss(sequences)
        if self.trainer.world_size > 1:
            # DDP waits for a gradient of every weight, and nothing may read the last memory.
            loss = loss + 0.0 * sum(weight.flatten()[0] for weight in self.model.parameters())
        self.log("train/loss", loss, prog_bar=True, batch_size=sequences.batch_size)
        return loss

    def predict_step(self, sequences: TokenSequences, batch_idx: int) -> SequencePrediction:
        probabilities = self(sequences).softmax(dim=-1)
        return SequencePrediction(probabilities.argmax(dim=-1), probabilities)

    def prediction_table(
        self, sequences: TokenSequences, prediction: SequencePrediction
    ) -> pa.Table:
        """One row for each sequence.

        Its columns are `sequence`, its `tokens` (ids with blanks between them), its `label` where
        that is known, the `prediction`, and `probability_0`, `probability_1`, … of the classes. A
        data module that names its classes puts texts and names in their place.
        """
        pairs = zip(sequences.tokens.cpu(), sequences.full_mask.cpu())
        texts = [" ".join(map(str, tokens[mask].tolist())) for tokens, mask in pairs]
        columns = {"sequence": pa.array(range(len(texts))), "tokens": pa.array(texts, pa.string())}
        if sequences.labels is not None:
            columns["label"] = pa.array(sequences.labels.cpu().numpy())
        columns["prediction"] = pa.array(prediction.prediction.cpu().numpy())
        for index, column in enumerate(prediction.probabilities.detach().float().cpu().T):
            columns[f"probability_{index}"] = pa.array(column.numpy())
        return pa.table(columns)

    def _new_metrics(self) -> SequenceMetrics:
        return SequenceMetrics(self.model.num_classes or 1)

    def _update_metrics(
        self, sequences: TokenSequences, metrics: SequenceMetrics
    ) -> dict[str, Metric]:
        return metrics.update(self(sequences), self.model.checked_labels(sequences))

    def _check_data(self) -> None:
        """Compare classes and tokens of the data with the model's."""
        data = self._data
        if not isinstance(data, OffersClasses):
            return
        if len(data.classes) != self.model.num_classes:
            raise InputError(
                f"the data has {len(data.classes)} classes, the model "
                f"num_classes={self.model.num_classes}; set the model's num_classes to "
                f"{len(data.classes)}"
            )
        if data.vocab_size > self.model.vocab_size:
            raise InputError(
                f"the data has {data.vocab_size} tokens, the model "
                f"vocab_size={self.model.vocab_size}; set the model's vocab_size to "
                f"{data.vocab_size}"
            )
