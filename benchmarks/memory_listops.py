"""The cells of `benchmarks.memory_filter` of classifiers of short ListOps expressions.

Models, data and training are those of `configs/listops/*-short.yaml`: width 64, 2 layers, MuonAdam
with a linear decay. A cell is a model, its number of memory vectors and a seed. Degradation is
measured on 64 fixed validation expressions, after parts of the run.
"""

import argparse
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch

from datamodules import ListOpsDataModule
from datamodules.loading import Part
from npbench.models import (
    ConvLuna,
    Luna,
    MemoryTransformer,
    SequenceClassifier,
    Transformer,
)
from npbench.models.contracts.process import evaluating
from npbench.optim import MuonAdam
from npbench.profiling import MEASURES, degradation_of

_SIZES = {"dim_model": 64, "num_layers": 2, "num_heads": 4, "dim_feedforward": 128}
_LUNA = _SIZES | {"dim_classifier": 128, "max_length": 128, "readout": "mean"}
_CONV = _SIZES | {"max_length": 128, "readout": "mean"}
MODELS: dict[str, Callable[[int], SequenceClassifier]] = {
    "Transformer": lambda _: Transformer(17, 10, readout="mean", **_SIZES),
    "Memory Transformer": lambda m: MemoryTransformer(17, 10, num_memory=m, **_SIZES),
    "bottleneck": lambda m: MemoryTransformer(17, 10, num_memory=m, variant="bottleneck", **_SIZES),
    "Luna": lambda m: Luna(17, 10, num_memory=m, **_LUNA),
    "ConvLuna": lambda m: ConvLuna(17, 10, num_memory=m, **_CONV),
}
_MEMORIES = (1, 4, 16, 64)
_WARMUP = 50
# Parts of a run after which the memory is looked at.
_LOOKS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@cache
def data_of(folder: str) -> ListOpsDataModule:
    return ListOpsDataModule(
        max_depth=4, max_args=8, min_length=30, max_length=128, num_train=20_000, num_val=1000,
        eval_batch_size=100, cache_dir=folder,
    )  # fmt: skip


def cells(options: argparse.Namespace) -> Iterator[str]:
    for seed in options.seed:
        for name in MODELS:
            for number in (0,) if name == "Transformer" else _MEMORIES:
                yield f"{name.replace(' ', '_')}/{number}/{seed}"


def train(cell: str, options: argparse.Namespace) -> dict[str, Any]:
    name, number, seed = cell.split("/")
    torch.manual_seed(int(seed))
    model = MODELS[name.replace("_", " ")](int(number))
    optimizer = MuonAdam(model.parameters(), lr=0.01, adam_lr=1e-3)
    rates = [group["lr"] for group in optimizer.param_groups]
    data = data_of(str(options.out / "expressions"))
    looks, due, losses, start = [], list(_LOOKS), [], time.process_time()
    for step in range(options.steps + 1):
        progress = step / options.steps
        if progress >= due[0]:
            looks.append({"step": step, "progress": due.pop(0), "layers": look(model, data)})
        if step == options.steps:
            break
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * min((step + 1) / _WARMUP, 1.0) * (1 - progress)
        optimizer.zero_grad()
        # A seed has its own order of the expressions.
        loss = model.loss(data.training_batch(step + 625 * int(seed)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {
        "model": name.replace("_", " "), "memory": int(number), "seed": int(seed),
        "steps": options.steps, "seconds": time.process_time() - start,
        "last_losses": statistics.mean(losses[-50:]), "looks": looks,
        "accuracy": accuracy(model, data), "floors": data.floors(),
    }  # fmt: skip


def look(model: SequenceClassifier, data: ListOpsDataModule) -> list[dict[str, Any]]:
    """The degradation on fixed expressions."""
    batch = data.evaluation_batch(range(400, 464), Part.VALIDATE)
    with evaluating(model):
        return degradation_of(model.memory_layers(batch))


def accuracy(model: SequenceClassifier, data: ListOpsDataModule) -> float:
    """The share of the test expressions whose value is the likeliest class."""
    right = []
    with evaluating(model):
        for batch in data.test_dataloader():
            right.append(model(batch.tokens, batch.full_mask).argmax(dim=-1) == batch.labels)
    return torch.cat(right).double().mean().item()


def tables(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for result in results.values():
        groups[result["model"], result["memory"]].append(result)
    found = [
        "| model | m | seeds | steps | ms a step | accuracy of each seed, % | mean |",
        "|---|---|---|---|---|---|---|",
    ]
    memory = [
        "| model | m | layer | when | cosine, packed | cosine, latents | rank, packed "
        "| rank, latents | entropy / log n |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        for number in (0, *_MEMORIES):
            of_seeds = sorted(groups.get((name, number), []), key=lambda each: each["seed"])
            if not of_seeds:
                continue
            shares = [100 * each["accuracy"] for each in of_seeds]
            rate = statistics.mean(1e3 * each["seconds"] / each["steps"] for each in of_seeds)
            each_seed = ", ".join(f"{share:.1f}" for share in shares)
            found.append(
                f"| {name} | {number or '–'} | {len(shares)} | {of_seeds[0]['steps']:,} | "
                f"{rate:.0f} | {each_seed} | {statistics.mean(shares):.1f} |"
            )
            memory += _memory_rows(name, number, of_seeds)
    for floor, share in next(iter(results.values()))["floors"].items():
        found.append(f"| *{floor.replace('_', ' ')}* | | | | | | {100 * share:.1f} |")
    return {"listops": "\n".join(found) + "\n", "listops-memory": "\n".join(memory) + "\n"}


def _memory_rows(name: str, number: int, of_seeds: list[Mapping[str, Any]]) -> Iterator[str]:
    """Before and after training, the means over seeds."""
    for index in range(len(of_seeds[0]["looks"][0]["layers"])):
        for when, position in (("before", 0), ("after", -1)):
            layers = [each["looks"][position]["layers"][index] for each in of_seeds]
            means = {key: statistics.mean(layer[key] for layer in layers) for key in MEASURES}
            means.pop("entropy")
            numbers = " | ".join(
                "–" if math.isnan(value) else f"{value:.1f}" if key.startswith("rank")
                else f"{value:.3f}"
                for key, value in means.items()
            )  # fmt: skip
            yield f"| {name} | {number} | {index + 1} | {when} | {numbers} |"
