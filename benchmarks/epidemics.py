"""TNP-KR on epidemics, beside two guesses that learn nothing: log-likelihood and calibration.

    python -m benchmarks.epidemics                      # minutes on one core
    python -m benchmarks.epidemics --model ConvCNP      # or CNP, EQTNP, …
    python -m benchmarks.epidemics --figure docs/epidemic.png --film docs/epidemic.gif

Lattices of 32 × 32 sites, and fewer points than in the paper, so that it takes minutes. The guesses
are the share of each class in the context, and a vote of the k nearest context points, with the k
that is best on validation tasks; both are smoothed. A target may be a context point, as in the
authors' code. The figure shows states of an epidemic, the truth beside the probabilities, and the
film all of them.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules import SIRDataModule
from npbench import Task, models
from npbench.attention.bias_spec import Bias
from npbench.callbacks.class_maps import class_map_figure, evaluate, write_class_film
from npbench.metrics import ClassificationMetrics
from npbench.models import NeuralProcess
from npbench.models.contracts.process import Evaluation, evaluating, masked_mean
from npbench.optim import MuonAdam
from npbench.training import MetaRegression

_NEIGHBOURS = (1, 3, 5, 9, 15, 25)
_ARGUMENTS = {
    "TNPKR": {"bias": Bias("centred_rbf"), "num_layers": 3},
    "ConvCNP": {"num_levels": 3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="TNPKR")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--test_tasks", type=int, default=800)
    parser.add_argument("--figure", type=Path, help="a PNG of five states of an epidemic")
    parser.add_argument("--film", type=Path, help="a GIF of all states")
    parser.add_argument("--epidemic", type=int, default=0, help="index of the one that is drawn")
    options = parser.parse_args()
    data = SIRDataModule(
        size=32, min_context=32, max_context=128, num_targets=192,
        num_val_tasks=160, num_test_tasks=options.test_tasks,
    )  # fmt: skip
    measure("class shares", class_shares, data.test_dataloader())
    scores = {k: log_likelihood(neighbours(k), data.val_dataloader()) for k in _NEIGHBOURS}
    k = max(scores, key=lambda number: scores[number])
    measure(f"{k} nearest", neighbours(k), data.test_dataloader())
    L.seed_everything(0, verbose=False)
    arguments = _ARGUMENTS.get(options.model, {})
    model = getattr(models, options.model)(2, 3, likelihood="categorical", **arguments)
    start = time.process_time()
    train(model, data, options.steps)
    name = f"{options.model}, {options.steps} steps, {time.process_time() - start:.0f} CPU s"
    with evaluating(model):
        measure(name, lambda task: model.evaluate(task).mean, data.test_dataloader())
    draw(model, data, options)


def draw(model: NeuralProcess, data: SIRDataModule, options: argparse.Namespace) -> None:
    """The figure and the film that are asked for."""
    tasks = data.frames(options.epidemic)
    labels = [f"step {step}" for step in range(len(tasks))]
    if options.film is not None:
        write_class_film(options.film, model, tasks, data.class_names, labels)
    if options.figure is not None:
        steps = range(2, len(tasks), 5)
        tasks, labels = [tasks[step] for step in steps], [labels[step] for step in steps]
        evaluations = [[evaluate(model, task)] for task in tasks]
        figure = class_map_figure([model], tasks, evaluations, data.class_names, labels)
        figure.savefig(options.figure)


def train(model: NeuralProcess, data: SIRDataModule, steps: int) -> None:
    module = MetaRegression(
        model,
        optimizer=lambda parameters: MuonAdam(parameters, lr=0.01, adam_lr=1e-3),
        decay="linear",
        warmup_steps=steps // 10,
    )
    trainer = L.Trainer(
        max_steps=steps, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


def class_shares(task: Task) -> Tensor:
    """The share of each class in the context, with half a point of each class more."""
    counts = task.yc.sum(dim=1, keepdim=True) + 0.5
    return (counts / counts.sum(dim=-1, keepdim=True)).expand_as(task.yt)


def neighbours(k: int) -> Callable[[Task], Tensor]:
    """The vote of the k nearest context points, with one vote more for the shares of classes."""

    def vote(task: Task) -> Tensor:
        distance = torch.cdist(task.xt, task.xc).masked_fill(~task.context_mask[:, None], torch.inf)
        nearest = distance.topk(k, largest=False).indices
        classes = task.yc.argmax(dim=-1)[:, None].expand(-1, task.xt.shape[1], -1)
        votes = F.one_hot(classes.gather(2, nearest), 3).sum(dim=2)
        return (votes + class_shares(task)) / (k + 1)

    return vote


def score(predict: Callable[[Task], Tensor], task: Task) -> Evaluation:
    p = predict(task)
    log_prob = (p * task.yt).sum(dim=-1).log()
    return Evaluation(masked_mean(log_prob, task.target_mask), p, (p * (1 - p)).sqrt())


def log_likelihood(predict: Callable[[Task], Tensor], tasks: Iterable[Task]) -> float:
    return float(torch.cat([score(predict, task).log_likelihood for task in tasks]).mean())


def measure(name: str, predict: Callable[[Task], Tensor], tasks: Iterable[Task]) -> None:
    metrics, measured = ClassificationMetrics(), {}
    for task in tasks:
        measured = metrics.update(task, score(predict, task), jointly=False)
    values = {key: float(metric.compute()) for key, metric in measured.items()}
    print(
        f"{name:40} negative log-likelihood {-values['log_likelihood']:.3f} ± "
        f"{values['log_likelihood_stderr']:.3f}, accuracy {values['accuracy']:.1%}, calibration "
        f"error {values['calibration_error']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
