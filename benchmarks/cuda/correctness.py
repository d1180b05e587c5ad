"""How far all models on a device are from themselves on the CPU."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cuda.random_numbers import same_random_numbers
from npbench import EventSequences, Task, TokenSequences, models
from npbench.models import EventModel, NeuralProcess, SequenceClassifier
from npbench.models.contracts.constant_memory import ConstantMemoryProcess
from npbench.models.contracts.process import evaluating

# In float64 another order of summation moves a result by much less than this.
TOLERANCE = 1e-8
# These models take a single input.
_ONE_INPUT = {"FourierMomentNP"}


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


def used(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def joined(tensors: tuple[Tensor | None, ...]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors if t is not None])


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    distance = (actual.detach().cpu() - expected.detach()).abs().max()
    return float(distance / expected.detach().abs().max().clamp(min=1e-300))
