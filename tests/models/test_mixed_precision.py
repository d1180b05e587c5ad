"""Under autocast products are computed in bfloat16; sums, states and densities are not."""

import pytest
import torch
from helpers import SIZES, assert_mixed_precision_is_near, random_task, small

from npbench.models.contracts.process import evaluating

every_model = pytest.mark.parametrize(
    "name", [*SIZES, "CMANPAND-lowrank", "LBANPND-lowrank", "TNPND-lowrank", "TNPKR-performer",
             "TNPKR-deep_kernel"]
)  # fmt: skip
# What follows from a context that is kept, and is computed again with every new point.
ENCODINGS = {"encodings", "kept", "keys", "values", "summary", "base.keys", "base.values",
             "base.summary", "posterior"}  # fmt: skip


@every_model
def test_a_step_of_training_is_near_that_of_float32(name: str) -> None:
    model = small(name).float().train()
    task = random_task(4, 12, 9, dim_x=model.dim_x, dim_y=3)
    assert_mixed_precision_is_near(model, task)


@every_model
def test_states_and_predictions_stay_in_float32(name: str) -> None:
    model = small(name).float()
    task = random_task(2, 12, 9, dim_x=model.dim_x, dim_y=3)
    found = []
    for mixed in (False, True):
        torch.manual_seed(1)
        with evaluating(model), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            state = model.update(model.condition(task.xc, task.yc), task.xt, task.yt)
            found.append((state, model.marginals(state, task.xt)))
    (state, marginals), (mixed_state, mixed_marginals) = found
    types = dict(state.named_tensors())
    for key, tensor in mixed_state.named_tensors():
        assert key in ENCODINGS or tensor.dtype == types[key].dtype, key
    for exact, rounded in zip(marginals, mixed_marginals, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()
