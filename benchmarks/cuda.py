"""All that needs a GPU, in one command: correctness beside the CPU, memory, and speed of training.

    python -m benchmarks.cuda                      # under ten minutes on one GPU
    python -m benchmarks.cuda --device cpu --points 1e4 --steps 3     # where there is none

1. Every neural process, event model and classifier predicts, differentiates, trains in chunks,
   updates, forgets and samples on the device as on the CPU, with the same weights and the same
   random numbers, in float64; the largest difference, in units of the largest value, stands in the
   table.
2. Two processes on the one device condition on half of the points each, and merge.
3. Peak memory and time of the phases, as the context grows to `--points`.
4. The same of a small CMANP by the callback of a run of Lightning, whose loss is compiled on a GPU.
5. Training steps a second: eager, compiled, with CUDA graphs, each in float32 and bfloat16.

It writes `cuda.json` and `cuda.md` under `--out`, and ends non-zero where a model differs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, distributed, multiprocessing, nn
from torch.overrides import TorchFunctionMode

from benchmarks.located import function, of
from datamodules import GPDataModule
from npbench import EventSequences, Task, TokenSequences, models
from npbench.callbacks import PeakMemoryProfiler
from npbench.models import (
    CMANP,
    EventModel,
    LocatedCMANP,
    NeuralProcess,
    SecondMomentNP,
    SequenceClassifier,
)
from npbench.models.contracts.constant_memory import ConstantMemoryProcess
from npbench.models.contracts.process import evaluating
from npbench.optim import MuonAdam
from npbench.profiling import profile
from npbench.training import MetaRegression

# In float64 another order of summation moves a result by much less than this.
_TOLERANCE = 1e-8
# These models take a single input.
_ONE_INPUT = {"FourierMomentNP"}
_PARTS = ("correctness", "processes", "memory", "run", "training")
_SIZES = (1000, 10_000, 100_000, 1_000_000)
_COMPILE: dict[str, dict[str, Any] | None] = {
    "eager": None, "compiled": {}, "CUDA graphs": {"mode": "reduce-overhead"},
}  # fmt: skip
_RANDOM = {
    torch.rand, torch.randn, torch.randn_like, torch.rand_like, torch.normal, torch.randint,
    torch.multinomial, torch.bernoulli, torch.randperm,
}  # fmt: skip
_RANDOM_IN_PLACE = {Tensor.normal_, Tensor.uniform_}


class SameRandomNumbers(TorchFunctionMode):
    """Random numbers are drawn on the CPU, so that one seed gives the same ones on any device."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_IN_PLACE:
            tensor, *rest = args
            return tensor.copy_(func(torch.empty_like(tensor, device="cpu"), *rest, **kwargs))
        if func not in _RANDOM:
            return func(*args, **kwargs)
        given = [a for a in args if isinstance(a, Tensor)]
        device = kwargs.get("device") or (given[0].device if given else "cpu")
        args = tuple(a.cpu() if isinstance(a, Tensor) else a for a in args)
        return func(*args, **kwargs | ({"device": "cpu"} if "device" in kwargs else {})).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--points", type=float, default=1e6, help="of the largest context")
    parser.add_argument("--steps", type=int, default=30, help="training steps that are timed")
    parser.add_argument("--seconds", type=float, default=240, help="for training, about")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/cuda"))
    options = parser.parse_args()
    device, points = options.device, int(options.points)
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "correctness": partial(correctness, device),
        "processes": partial(processes, device, points),
        "memory": partial(memory, device, points),
        "run": partial(run, device, points, options.steps),
        "training": partial(training, device, options.steps, options.seconds),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__}
    print(f"{name}, torch {torch.__version__}")
    for title in options.parts:
        part = parts[title]
        start, rows = time.perf_counter(), []
        for row in part():
            rows.append(row)
            print(title, *(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}"
                           for k, v in row.items()), flush=True)  # fmt: skip
            report[title] = rows
            (options.out / "cuda.json").write_text(json.dumps(report, indent=1))
        print(f"{title}: {time.perf_counter() - start:.0f} s", flush=True)
    tables = [f"## {title}\n\n{markdown(pd.DataFrame(report[title]))}" for title in options.parts]
    (options.out / "cuda.md").write_text("\n\n".join([f"# {name}", *tables]) + "\n")
    wrong = [
        row for row in report.get("correctness", []) if not row["largest_difference"] <= _TOLERANCE
    ]
    sys.exit(f"{len(wrong)} results differ from the CPU's" if wrong else 0)


def markdown(table: pd.DataFrame) -> str:
    """The table, three digits a number."""
    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[f"{v:.3g}" if isinstance(v, float) else v for v in row]
             for row in table.itertuples(index=False)]  # fmt: skip
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def correctness(device: torch.device) -> Iterator[dict[str, Any]]:
    """How far each model's results on the device are from those on the CPU."""
    ways: dict[type, Callable[..., dict[str, Tensor]]] = {
        NeuralProcess: point_results, EventModel: event_results,
        SequenceClassifier: sequence_results,
    }  # fmt: skip
    for name in models.__all__:
        kind = getattr(models, name)
        base = next((b for b in ways if isinstance(kind, type) and issubclass(kind, b)), None)
        if base is None or getattr(kind, "__abstractmethods__", None):
            continue
        sizes = {
            NeuralProcess: (1 if name in _ONE_INPUT else 2, 2), EventModel: (3,),
            SequenceClassifier: (16, 4),
        }  # fmt: skip
        torch.manual_seed(0)
        model, results = kind(*sizes[base]).double(), ways[base]
        expected = results(model, torch.device("cpu"))
        try:
            actual = results(deepcopy(model).to(device), device)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"[:300]
            yield {"model": name, "result": text, "largest_difference": float("nan")}
            continue
        differences = {key: difference(actual[key], expected[key]) for key in expected}
        worst = max(differences, key=lambda key: (differences[key] != differences[key],
                                                  differences[key]))  # fmt: skip
        yield {"model": name, "result": f"{worst}, worst of {len(differences)}",
               "largest_difference": differences[worst]}  # fmt: skip


def point_results(model: NeuralProcess, device: torch.device) -> dict[str, Tensor]:
    """What a neural process makes of a fixed task."""
    task = small_task(model.dim_x).to(device)
    results: dict[str, Tensor] = {}
    with same_random_numbers():
        gradients = torch.autograd.grad(model.loss(task), used(model), allow_unused=True)
    results["gradients"] = joined(gradients)
    with evaluating(model):
        state = model.condition(task.xc, task.yc, task.context_mask)
        with same_random_numbers():
            evaluation = model.evaluate(task)._asdict()
        results |= {name: value for name, value in evaluation.items() if value is not None}
        with same_random_numbers():
            results["marginals"] = torch.stack(model.marginals(state, task.xt))
        with same_random_numbers():
            results["samples"] = model.sample(state, task.xt, 3)
        with same_random_numbers():
            updated = model.update(state, task.xt, task.yt)
            results["update"] = torch.stack(model.marginals(updated, task.xt))
        if hasattr(model, "forget"):
            # What is forgotten was absorbed twice, so that enough is left of it.
            twice = model.update(updated, task.xt, task.yt)
            left = model.forget(twice, task.xt, task.yt)
            results["forget"] = torch.stack(model.marginals(left, task.xt))
    if isinstance(model, ConstantMemoryProcess):
        model.context_chunk_size = 7
        loss = model.loss(task)
        results["gradients in chunks"] = joined(
            torch.autograd.grad(loss, used(model), allow_unused=True)
        )
    return results


def event_results(model: EventModel, device: torch.device) -> dict[str, Tensor]:
    """What an event model makes of fixed sequences."""
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(3, 40, generator=generator, dtype=torch.float64).cumsum(-1)
    marks = torch.randint(model.num_marks, times.shape, generator=generator)
    events = EventSequences(times, marks).to(device)
    gradients = torch.autograd.grad(model.loss(events), used(model), allow_unused=True)
    with evaluating(model):
        state = model.condition(events.times[:, :30], events.marks[:, :30])
        state = model.update(state, events.times[:, 30], events.marks[:, 30])
        dist, evaluation = model.query(state), model.evaluate(events)
    return {
        "gradients": joined(gradients),
        "log_prob": evaluation.log_prob,
        "next event": dist.log_prob_time(torch.ones(3, dtype=torch.float64, device=device)),
    }


def sequence_results(model: SequenceClassifier, device: torch.device) -> dict[str, Tensor]:
    """What a classifier makes of fixed sequences of 40 tokens and fewer."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, model.vocab_size, (3, 40), generator=generator)
    mask = torch.arange(40) < torch.tensor([40, 25, 1])[:, None]
    sequences = TokenSequences(tokens, torch.arange(3), mask).to(device)
    gradients = torch.autograd.grad(model.loss(sequences), used(model), allow_unused=True)
    with torch.no_grad():
        logits = model(sequences.tokens, sequences.mask)
    return {"gradients": joined(gradients), "logits": logits}


def small_task(dim_x: int) -> Task:
    """Four tasks with masks: 40 context points and 30 targets of two outputs."""
    generator = torch.Generator().manual_seed(0)

    def points(number: int) -> tuple[Tensor, Tensor]:
        x = 4 * torch.rand(4, number, dim_x, generator=generator, dtype=torch.float64) - 2
        noise = torch.randn(4, number, 2, generator=generator, dtype=torch.float64)
        return x, (2 * x).sin() + 0.1 * noise

    mask = torch.rand(4, 40, generator=generator) < 0.8
    return Task(*points(40), *points(30), context_mask=mask)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    torch.manual_seed(1)
    with SameRandomNumbers():
        yield


def used(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def joined(tensors: tuple[Tensor | None, ...]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors if t is not None])


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    distance = (actual.detach().cpu() - expected.detach()).abs().max()
    return float(distance / expected.detach().abs().max().clamp(min=1e-300))


def processes(device: torch.device, points: int) -> Iterator[dict[str, Any]]:
    """Two processes on one device: the merged state predicts as that of one process."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in (CMANP, LocatedCMANP, SecondMomentNP):
            result = Path(folder) / kind.__name__
            store = Path(folder) / f"{kind.__name__}.store"
            multiprocessing.spawn(_condition_half, (kind, device, points, store, result), 2)
            yield {"model": kind.__name__, **json.loads(result.read_text())}


def _condition_half(
    rank: int, kind: type, device: torch.device, points: int, store: Path, result: Path
) -> None:
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(store), 2), rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = kind(1, 1).to(device)
    x, y = (z.to(device) for z in function(points))
    xt = torch.linspace(-2, 2, 100, device=device)[None, :, None]
    half = slice(rank * points // 2, (rank + 1) * points // 2)
    with evaluating(model):
        whole = torch.stack(model.marginals(model.condition(x, y), xt))
        distributed.barrier()
        start = time.perf_counter()
        merged = model.all_merge(model.condition(x[:, half], y[:, half]))
        apart = torch.stack(model.marginals(merged, xt))
        float(apart.sum())  # waits for the device
    seconds = time.perf_counter() - start
    if rank == 0:
        row = {"points": points, "seconds": seconds, "difference": difference(apart, whole.cpu())}
        result.write_text(json.dumps(row))
    distributed.destroy_process_group()


def memory(device: torch.device, points: int) -> Iterator[dict[str, Any]]:
    """Peak memory and time of the phases of models at their default sizes."""
    sizes = [size for size in _SIZES if size <= points]
    kinds: dict[str, NeuralProcess] = {
        "CMANP": CMANP(1, 1),
        "CMANP, 16,384 at a time": CMANP(1, 1, context_chunk_size=16_384),
        "LocatedCMANP": of("located"),
        "SecondMomentNP": of("second-moment"),
        "LBANP": models.LBANP(1, 1),
        "EQTNP": models.EQTNP(1, 1),
        "TNPD": models.TNPD(1, 1),
    }
    for name, model in kinds.items():
        for row in profile(model.to(device), sizes, device=device, time_limit=5.0):
            size = row["peak_bytes"]
            yield {"model": name, "context": row["num_context"], "phase": row["phase"],
                   "peak_MiB": size and size / 2**20, "seconds": row["seconds"]}  # fmt: skip


def run(device: torch.device, points: int, steps: int) -> Iterator[dict[str, Any]]:
    """Peak memory and time of the phases after an epoch of training, by `PeakMemoryProfiler`."""
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="gpu" if on_gpu else "cpu", devices=1, max_epochs=1,
            logger=CSVLogger(folder), enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[PeakMemoryProfiler([size for size in _SIZES if size <= points])],
        )  # fmt: skip
        data = GPDataModule(vary_sizes=True, steps_per_epoch=steps, num_val_tasks=16)
        trainer.fit(MetaRegression(of("cmanp-small"), compile=on_gpu), data)
        table = pd.read_csv(Path(str(trainer.log_dir)) / "memory.csv")
        for row in table.itertuples():
            yield {"context": row.num_context, "phase": row.phase,
                   "peak_MiB": row.peak_bytes / 2**20, "seconds": row.seconds}  # fmt: skip


def training(device: torch.device, steps: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Training steps a second; what takes longest to compile comes last, and may be left out."""
    kinds: dict[str, Callable[[], NeuralProcess]] = {
        "CMANP": partial(CMANP, 1, 1),
        "CMANP-small": partial(of, "cmanp-small"),
        "LocatedCMANP": partial(of, "located"),
        "SecondMomentNP": partial(of, "second-moment"),
        "TNPD": partial(models.TNPD, 1, 1),
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


if __name__ == "__main__":
    main()
