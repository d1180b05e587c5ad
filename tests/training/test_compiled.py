"""A compiled loss is one graph for tasks of all sizes, and has the values of the loss itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import random_task, small_cmanp

from npbench.training.compiled import CompiledLoss

# In a process of its own: the tests' runtime checks of shapes cannot be compiled.
_COMPILED = """
import lightning as L
import torch
from helpers import SIZES, random_task, small
from helpers.training import data
from npbench.models import CMANP
from npbench.training import MetaRegression
from npbench.training.compiled import CompiledLoss

def counting(graph, inputs):
    graphs.append(graph)
    return graph.forward

def gradients(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()),
                                                               allow_unused=True) if g is not None])

for name in ("CMANP", "SecondMomentNP", "TNPND-lowrank"):
    torch.compiler.reset()
    graphs, model = [], small(name).train()
    compiled = CompiledLoss(model, counting)
    for context, target in ((7, 5), (7, 5), (9, 12), (3, 15), (16, 16), (2, 9)):
        task = random_task(2, context, target, dim_x=2, dim_y=3, dtype=torch.float64)
        mine, expected = compiled(task), model.loss(task)
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradients(mine, model), gradients(expected, model),
                                   rtol=1e-6, atol=1e-6)
    assert len(graphs) == 2, (name, len(graphs))  # of 7 and 5 points, and of 16 and 16

weights, compile, graphs = [], torch.compile, []
torch.compile = lambda function, **options: compile(function, **options | {"backend": counting})
for is_compiled in (False, True):
    torch.manual_seed(0)
    model = CMANP(1, 1, dim_model=16, num_layers=1, num_latents=4, num_block_latents=4)
    module = MetaRegression(model, compile=is_compiled)
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=8, limit_val_batches=0,
                        enable_progress_bar=False, **options)
    trainer.fit(module, data(vary_sizes=True))
    weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
assert module.hparams["compile"]
assert 1 < len(graphs) < 5, len(graphs)
torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
def test_a_compiled_loss_is_one_graph_with_the_values_and_gradients_of_the_loss() -> None:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMPILED], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_tasks_of_one_size_are_taken_as_they_are() -> None:
    loss = CompiledLoss(small_cmanp())
    tasks = [random_task(2, 7, 5) for _ in range(3)]
    assert all(loss.padded(task) is task for task in tasks)


def test_padding_never_shrinks_and_keeps_the_loss() -> None:
    model = small_cmanp()
    loss = CompiledLoss(model)
    for sizes, expected in (
        ((7, 5), (7, 5)),
        ((3, 9), (7, 16)),
        ((8, 16), (8, 16)),
        ((1, 1), (8, 16)),
    ):
        task = random_task(2, *sizes)
        padded = loss.padded(task)
        assert (padded.xc.shape[1], padded.xt.shape[1]) == expected
        torch.testing.assert_close(model.loss(padded), model.loss(task), rtol=1e-5, atol=1e-5)
