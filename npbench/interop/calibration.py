"""A model's error bars by rows that it has not seen: some single ones, and some whole gaps."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor
from torch.distributions import Normal

from npbench.errors import InputError
from npbench.likelihoods import Calibration, Deviations, NormalMixture
from npbench.models import NeuralProcess
from npbench.models.contracts.joint import JointProcess

# Fewest different inputs of which some can be held out.
_FEWEST = 40
# The shares of the inputs that are held out one by one, and in gaps, and how many gaps are enough.
_SHARE, _ENOUGH_GAPS = 0.05, 100
# Most inputs of a gap as a share of all; most that are predicted of a gap, and of each kind in all.
_LARGEST_GAP, _OF_GAP, _OF_KIND = 0.02, 20, 2000


class HeldOut(NamedTuple):
    """Rows that a model predicts before it absorbs them."""

    is_held: Bool[np.ndarray, "rows"]
    predicted: Int[np.ndarray, "some"]
    """Which of them are predicted."""
    weight: Float[np.ndarray, "some"]
    """How much each counts: those by themselves as much as those in gaps."""


def hold_out(x: Float[np.ndarray, "rows dim_x"]) -> HeldOut:
    """Choose rows to judge a model by, the same ones for the same inputs.

    Rows of one input are held out together, as each would betray the others. A twentieth of the
    inputs are held out one by one, and up to a tenth in gaps: those nearest to one of them, from 1
    to a fiftieth of all.

    Args:
        x: inputs as the model's numbers; rows with a missing one (NaN) are not held out.

    Raises:
        InputError: if there are too few different inputs.
    """
    known = np.flatnonzero(np.isfinite(x).all(axis=1))
    sites, site = np.unique(x[known], axis=0, return_inverse=True)
    site = site.reshape(-1)
    if len(sites) < _FEWEST:
        raise InputError(
            f"calibrate=True takes {_FEWEST} rows or more with different inputs, some of which are "
            f"held out; there are {len(sites)}"
        )
    random = np.random.default_rng(0)
    single = np.zeros(len(sites), dtype=bool)
    single[random.permutation(len(sites))[: min(int(_SHARE * len(sites)), _OF_KIND)]] = True
    in_gap, looked_at = np.zeros_like(single), np.zeros_like(single)
    tree, gaps = cKDTree(sites), 0
    largest = max(2.0, _LARGEST_GAP * len(sites))
    while in_gap.mean() < _SHARE or (in_gap.mean() < 2 * _SHARE and gaps < _ENOUGH_GAPS):
        number = int(np.exp(random.uniform(0.0, np.log(largest))))
        near = np.atleast_1d(tree.query(sites[random.integers(len(sites))], k=number)[1])
        in_gap[near] = True
        looked_at[random.permutation(near)[:_OF_GAP]] = True
        gaps += 1
    rows, weights = [], []
    for kind in (single & ~in_gap, looked_at):
        of_kind = random.permutation(np.flatnonzero(kind[site]))[:_OF_KIND]
        rows.append(of_kind)
        weights.append(np.full(len(of_kind), 1.0 / max(1, len(of_kind))))
    is_held = np.zeros(len(x), dtype=bool)
    is_held[known] = (single | in_gap)[site]
    return HeldOut(is_held, known[np.concatenate(rows)], np.concatenate(weights))


def deviations_of(model: NeuralProcess) -> Deviations:
    """The standard deviations of a model that can be calibrated.

    Raises:
        InputError: if it has none.
    """
    found = [module for module in model.modules() if isinstance(module, Deviations)]
    if isinstance(model, JointProcess) or len(found) != 1:
        raise InputError(
            f"calibrate=True is for models that predict each target by itself, with normals: "
            f"{type(model).__name__} does not"
        )
    return found[0]


class Errors(NamedTuple):
    """Those of a model's predictions, which are mixtures of normals, as its own numbers."""

    of_means: Float[Tensor, "values components dim_y"]
    std: Float[Tensor, "values components dim_y"]
    log_weight: Float[Tensor, "values components"]
    of_nothing: Float[Tensor, "values dim_y"]
    """The errors of the means of predictions from no data."""
    unknown: Float[Tensor, "values dim_y"]
    """The standard deviations of these."""

    def log_density(self) -> Float[Tensor, "values"]:
        """Of each value, in float64."""
        of_means, std = self.of_means.double(), self.std.double()
        log_prob = Normal(0.0, std, validate_args=False).log_prob(of_means).sum(dim=-1)
        return (self.log_weight.double() + log_prob).logsumexp(dim=-1)


def errors_of(
    model: NeuralProcess,
    state: Any,
    x: Float[np.ndarray, "rows num_x"],
    y: Float[np.ndarray, "rows dim_y"],
) -> Errors:
    """The errors of predictions at rows.

    Args:
        model: has units.
        state: of one task, which has not absorbed these rows.
        x: inputs in the units of the data.
        y: outputs, of which none is missing.
    """
    scaling: Any = model.scaling
    inputs, values = scaling.encode_x(torch.from_numpy(x)), scaling.encode_y(torch.from_numpy(y))
    bare = model.scaled(None)
    nothing = bare.condition(torch.zeros(1, 0, model.dim_x), torch.zeros(1, 0, model.dim_y))
    mixture, prior = (
        NormalMixture.of(cast(Any, bare.query(known, inputs[None]))).to("cpu")
        for known in (state, nothing)
    )
    mean, std = prior.moments
    errors = values[:, None] - mixture.mean[0]
    return Errors(errors, mixture.std[0], mixture.log_weight[0], values - mean[0], std[0])


def calibrate(model: NeuralProcess, errors: Errors, counts: Float[Tensor, "values"]) -> None:
    """Give a model, which had no calibration when it predicted, that of these errors.

    Where nothing is known it stays as unsure as it was, or as the values are spread.

    Args:
        model: is changed.
        errors: of its predictions.
        counts: how much each value counts.

    Raises:
        InputError: if the model cannot be calibrated.
    """
    like = next(model.parameters())
    unknown = errors.unknown.double().mean(dim=0)
    spread = errors.of_nothing.double().square().mean(dim=0).sqrt()
    calibration = Calibration.fit(
        *errors[:3], counts, unknown=unknown, least=torch.minimum(unknown, spread)
    )
    deviations_of(model).calibration = calibration.to(like.device, like.dtype)
