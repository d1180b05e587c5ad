"""The exact Gaussian processes that the model is compared with."""

import warnings

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel

from benchmarks.fine_tuning.functions import Case, Values
from benchmarks.fine_tuning.scores import TAILS, Method, Scores
from datamodules import TableDataModule
from npbench.scaling import Column

# Functions that hyper-parameters of one Gaussian process are fitted to.
_FITTED = 60


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
        return Scores(density, z * std * y_column.scale, np.abs(z) <= norm.ppf(TAILS[1]))

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
