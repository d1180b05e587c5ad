"""Training steps a second: eager, compiled and with CUDA graphs."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.located import of
from datamodules import GPDataModule
from npbench import Task
from npbench.models import CMANP, TNPD, NeuralProcess
from npbench.optim import MuonAdam

_COMPILE: dict[str, dict[str, Any] | None] = {
    "eager": None, "compiled": {}, "CUDA graphs": {"mode": "reduce-overhead"},
}  # fmt: skip


def training(device: torch.device, steps: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Training steps a second; what takes longest to compile comes last, and may be left out."""
    kinds: dict[str, Callable[[], NeuralProcess]] = {
        "CMANP": partial(CMANP, 1, 1),
        "CMANP-small": partial(of, "cmanp-small"),
        "LocatedCMANP": partial(of, "located"),
        "SecondMomentNP": partial(of, "second-moment"),
        "TNPD": partial(TNPD, 1, 1),
    }
    eager: list[tuple[int, str, bool]] = [(n, "eager", b) for n in (16, 256) for b in (False, True)]
    compiled = [
        (16, "CUDA graphs", False), (16, "compiled", False), (256, "compiled", True),
        (16, "compiled", True),
    ]  # fmt: skip
    end = time.perf_counter() + seconds
    for tasks, mode, bf16 in eager + compiled:
        data = GPDataModule(vary_sizes=True, num_targets=64, batch_size=tasks)
        batches = [data.training_batch(i).pad(64, 64).to(device) for i in range(8)]
        for name, make in kinds.items():
            if time.perf_counter() > end or (mode == "CUDA graphs" and device.type != "cuda"):
                continue
            row: dict[str, Any] = {"model": name, "tasks": tasks, "mode": mode, "bf16": bf16}
            torch.compiler.reset()
            try:
                row |= _train(make().to(device), batches, _COMPILE[mode], bf16, steps)
            except Exception as error:
                row |= {"failed": f"{type(error).__name__}: {error}"[:300]}
            yield row


def _train(
    model: NeuralProcess, batches: list[Task], compiled: dict | None, bf16: bool, steps: int
) -> dict[str, float]:
    """Steps a second, what the first step took, and the loss at the end."""
    device = batches[0].xc.device
    optimizer = MuonAdam(model.parameters(), lr=0.002)
    loss_of = model.loss if compiled is None else torch.compile(model.loss, **compiled)

    def step(index: int) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(batches[index % len(batches)])
        loss.backward()
        optimizer.step()
        return loss.detach()

    start = time.perf_counter()
    float(step(0))
    first = time.perf_counter() - start
    for index in range(3):
        float(step(index))
    start = time.perf_counter()
    losses = [step(index).clone() for index in range(steps)]
    loss = float(torch.stack(losses[-8:]).mean())
    return {"steps_a_second": steps / (time.perf_counter() - start), "first_step_s": first,
            "loss": loss}  # fmt: skip
