"""The cells of `benchmarks.memory_filter` of a small CMANP on Gaussian processes.

The model is that of `configs/gp/cmanp-small.yaml`, and its training too: MuonAdam, a linear decay,
RBF kernels of the released ranges with a curriculum over the first half. Cells of `steps` train for
as many steps, and cells of `seconds` for as many seconds of the processor, over which the learning
rate falls. The degradation is measured on 64 fixed tasks.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from datamodules import Curriculum, GPDataModule
from datamodules.kernels import released_rbf
from datamodules.loading import Part
from npbench.blocks import Bottleneck, FeatureMap, PointFilter, PointGate, Temperature
from npbench.models import CMANP
from npbench.models.contracts import HasMemory
from npbench.models.contracts.process import evaluating
from npbench.optim import MuonAdam
from npbench.profiling import MEASURES, degradation_of

_SIZES = {
    "num_heads": 2, "num_layers": 2, "num_latents": 32, "num_block_latents": 32, "qk_norm": True,
    "norm_residual": False,
}  # fmt: skip
# The width of a head is 32; scores that are not divided by its root are where ConvLuna starts.
FILTERS: dict[str, PointFilter | None] = {
    "none": None,
    "temperature": Temperature(start=32**0.5),
    "gate": PointGate(open=0.9),
    "bottleneck": Bottleneck(rank=8),
    "features": FeatureMap(num_features=32),
}
_WARMUP = 0.05
# Parts of a run after which the memory is looked at.
_LOOKS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def cells(options: argparse.Namespace) -> Iterator[str]:
    for seed in options.seed:
        for budget in ("steps", "seconds"):
            for name in FILTERS:
                yield f"{budget}/{name}/{seed}"


def train(cell: str, options: argparse.Namespace) -> dict[str, Any]:
    budget, name, seed = cell.split("/")
    torch.manual_seed(int(seed))
    model = CMANP(1, 1, filter=FILTERS[name], **_SIZES)
    optimizer = MuonAdam(model.parameters(), lr=0.01, adam_lr=1e-3)
    rates = [group["lr"] for group in optimizer.param_groups]
    data = GPDataModule(
        curriculum=Curriculum(released_rbf(length=(0.6, 1.0)), max(1, options.steps // 2)),
        seed=int(seed),
    )
    looks, due, spent, step, progress = [], list(_LOOKS), 0.0, 0, 0.0
    while True:
        if progress >= due[0]:
            looks.append({"step": step, "progress": due.pop(0), "layers": look(model)})
        if not due:
            break
        start = time.process_time()
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * min(progress / _WARMUP + 1e-3, 1.0, (1 - progress) / (1 - _WARMUP))
        optimizer.zero_grad()
        model.loss(data.training_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent, step = spent + time.process_time() - start, step + 1
        done = step / options.steps if budget == "steps" else spent / options.seconds
        progress = min(1.0, done)
    return {
        "filter": name, "budget": budget, "seed": int(seed), "steps": step, "seconds": spent,
        "tasks": options.tasks, "looks": looks, **tested(model, options.tasks),
    }  # fmt: skip


def look(model: HasMemory) -> list[dict[str, Any]]:
    """The degradation on fixed tasks."""
    task = GPDataModule().evaluation_batch(range(64), Part.VALIDATE)
    with evaluating(model):
        return degradation_of(model.memory_layers(task))


def tested(model: CMANP, number: int) -> dict[str, float]:
    """The log-likelihood of fixed test tasks, and that of the exact Gaussian process."""
    data, found, exact = GPDataModule(), [], []
    with evaluating(model):
        for start in range(0, number, 64):
            task = data.evaluation_batch(range(start, min(start + 64, number)), Part.TEST)
            found.append(model.log_likelihood(task))
            exact.append(task.exact.log_likelihood)
    return {
        "log_likelihood": torch.cat(found).mean().item(),
        "exact": torch.cat(exact).mean().item(),
    }


def tables(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for result in results.values():
        groups[result["budget"], result["filter"]].append(result)
    accuracy = [
        "| filter | budget | seeds | steps | ms a step | log-likelihood of each seed | mean |",
        "|---|---|---|---|---|---|---|",
    ]
    memory = [
        "| filter | layer | when | cosine, packed | cosine, latents | rank, packed | rank, latents "
        "| entropy / log n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for budget in ("steps", "seconds"):
        for name in FILTERS:
            of_seeds = sorted(groups.get((budget, name), []), key=lambda each: each["seed"])
            if not of_seeds:
                continue
            found = [each["log_likelihood"] for each in of_seeds]
            steps = " and ".join(f"{each['steps']:,}" for each in of_seeds)
            rate = statistics.mean(1e3 * each["seconds"] / each["steps"] for each in of_seeds)
            accuracy.append(
                f"| {name} | {budget} | {len(found)} | {steps} | {rate:.0f} | "
                f"{', '.join(f'{value:.3f}' for value in found)} | {statistics.mean(found):.3f} |"
            )
            if budget == "steps":
                memory += _memory_rows(name, of_seeds)
    exact = next(iter(results.values()))["exact"]
    accuracy.append(f"| exact Gaussian process | | | | | | {exact:.3f} |")
    return {"cmanp": "\n".join(accuracy) + "\n", "cmanp-memory": "\n".join(memory) + "\n"}


def _memory_rows(name: str, of_seeds: list[Mapping[str, Any]]) -> Iterator[str]:
    """Before and after training, the means over seeds."""
    for index in range(len(of_seeds[0]["looks"][0]["layers"])):
        for when, position in (("before", 0), ("after", -1)):
            layers = [each["looks"][position]["layers"][index] for each in of_seeds]
            means = {key: statistics.mean(layer[key] for layer in layers) for key in MEASURES}
            means.pop("entropy")
            numbers = " | ".join(
                f"{value:.1f}" if key.startswith("rank") else f"{value:.3f}"
                for key, value in means.items()
            )
            yield f"| {name} | {index + 1} | {when} | {numbers} |"
