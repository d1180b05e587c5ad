"""All methods that are compared: a trained model before and after, and others beside it."""

import argparse
from collections.abc import Callable, Iterator

import lightning as L
import pandas as pd
import torch

import npbench
from benchmarks.fine_tuning.functions import Case, Functions
from benchmarks.fine_tuning.gaussian_process import fitted_kernel, gaussian_process
from benchmarks.fine_tuning.scores import TAILS, Method, Scores
from datamodules import TableDataModule
from npbench.models import NeuralProcess
from npbench.models.contracts.process import evaluating
from npbench.optim import MuonAdam
from npbench.training import MetaRegression

AS_IT_COMES, TUNED, SCRATCH = "as it comes", "fine-tuned", "from scratch"
OF_EACH, OF_ALL = "process of each task", "process of all tasks"
# What the model knows: inputs from −2 to 2.
_X_RANGE = -1.9, 1.9


def methods(
    functions: Functions, learned: pd.DataFrame, options: argparse.Namespace
) -> Iterator[tuple[str, int, Callable[[], Method]]]:
    """The name of each method, its steps, and what makes it; the model as it comes is the first."""
    data = TableDataModule(
        learned, x=["x"], y=["y"], task="function", x_range=_X_RANGE, val_share=0.01,
        test_share=0.01, max_num_context=functions.most_given, max_num_targets=24,
        seed=options.seed,
    )  # fmt: skip
    yield AS_IT_COMES, 0, lambda: trained(options.model, data, 0)
    for steps in options.steps:
        yield SCRATCH, steps, lambda n=steps: trained(options.model, data, n, pretrained=False)
        yield (
            TUNED,
            steps,
            lambda n=steps: trained(options.model, data, n, options.rate, options.lr_factors),
        )
    yield OF_EACH, 0, lambda: gaussian_process(data, None)
    yield OF_ALL, 0, lambda: gaussian_process(data, fitted_kernel(data))


def trained(
    name: str,
    data: TableDataModule,
    steps: int,
    learning_rate: float = 0.01,
    lr_factors: dict[str, float] | None = None,
    pretrained: bool = True,
) -> Method:
    """The model after so many steps on the functions to learn."""
    torch.manual_seed(data.seed)
    model = npbench.load(name)
    if not pretrained:
        model = type(model)(**model.hparams)
    if steps:
        module = MetaRegression(
            model, lambda p: MuonAdam(p, lr=learning_rate, adam_lr=1e-3), decay="linear",
            warmup_steps=steps // 10, lr_factors=lr_factors,
        )  # fmt: skip
        quiet = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
        trainer = L.Trainer(
            max_steps=steps, gradient_clip_val=1.0, limit_val_batches=0, accelerator="cpu",
            **dict.fromkeys(quiet, False),
        )  # fmt: skip
        trainer.fit(module, data)
    model.scaling = data.scaling
    return of_model(model)


def of_model(model: NeuralProcess) -> Method:
    """The predictions of a model whose units are those of the data."""

    def predict(case: Case) -> Scores:
        x, y, new_x, new_y = (torch.from_numpy(z)[None, :, None] for z in case[:4])
        with evaluating(model):
            state = model.condition(x, y)
            log_likelihood = model.query(state, new_x).log_prob(new_y)[0]
            mean = model.marginals(state, new_x).mean[0, :, 0]
            low, high = model.quantiles(state, new_x, TAILS)[:, 0, :, 0]
        return Scores(
            log_likelihood.double().numpy(),
            case.new_y - mean.double().numpy(),
            (low.numpy() <= case.new_y) & (case.new_y <= high.numpy()),
        )

    return predict
