"""Steps per second of training CMANP, beside the same model written plainly, and where time goes.

    python -m benchmarks.train_step                 # the paper's configuration, batch 16
    python -m benchmarks.train_step --small         # configs/gp/cmanp-small.yaml

Plainly: attention as scores, softmax and product, and every block's latents repeated for each task
to attend to its points, as in the paper's official code. Both have the same weights and gradients,
and take the same steps in turn; each figure is a median over steps.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.levers import settings
from benchmarks.timing import seconds
from datamodules import GPDataModule
from npbench import Task
from npbench.attention import multihead
from npbench.models import CMANP
from npbench.optim import MuonAdam

# What the operators are for, by parts of their names.
_PURPOSES = {
    "attention": ("attention", "softmax", "bmm"),
    "linear layers": ("mm",),
    "layer norms": ("layer_norm",),
    "feed-forward gates": ("gelu", "aten::mul"),
    "optimiser": ("Optimizer", "lerp", "addcmul", "addcdiv", "sqrt"),
}


def plain_loss(model: CMANP, task: Task) -> Tensor:
    """The loss of a task without masks."""
    embedding = model.embed_points(torch.cat([task.xc, task.yc], dim=-1))
    latents = [model.latents.expand(task.batch_size, -1, -1)]
    with patch.object(multihead, "attend", plain_attend):
        for block in model.blocks:
            repeated = block.latents.expand(task.batch_size, -1, -1)
            mixed = block.mix_block(block.attend_points(repeated, embedding))
            latents.append(block.mix_latents(block.attend_block(latents[-1], mixed)))
        dist = model.head(model.decoder(task.xt, latents[1:]))
    return -dist.log_prob(task.yt).mean()


def plain_attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.softmax(dim=-1) @ v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = CMANP(1, 1, **(settings("shipped")["model"] if options.small else {}))
    if options.small:
        optimizer = MuonAdam(model.parameters(), lr=0.01)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    data = GPDataModule()
    losses = {"npbench": model.loss, "plainly": lambda task: plain_loss(model, task)}

    def step(loss: Callable[[Task], Tensor], task: Task) -> None:
        optimizer.zero_grad()
        loss(task).backward()
        optimizer.step()

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch 16")
    times = defaultdict(list)
    for index in range(options.steps + 3):
        times["data"].append(seconds(lambda: data.training_batch(index)))  # noqa: B023
        task = data.training_batch(index)
        for name, loss in losses.items():
            times[name].append(seconds(lambda: step(loss, task)))  # noqa: B023
    medians = {name: statistics.median(values[3:]) for name, values in times.items()}
    for name in losses:
        print(f"{name:<10}{1 / medians[name]:7.2f} steps/s{1e3 * medians[name]:8.1f} ms a step")
    ratio = statistics.median(b / a for a, b in zip(times["npbench"][3:], times["plainly"][3:]))
    share = medians["data"] / (medians["data"] + medians["npbench"])
    print(f"ratio {ratio:.2f}; {1e3 * medians['data']:.2f} ms of data a step ({share:.1%})")

    task = data.training_batch(0)
    gradients = [torch.autograd.grad(loss(task), model.parameters()) for loss in losses.values()]
    error = max(float((a - b).abs().max()) for a, b in zip(*gradients))
    most = max(float(gradient.abs().max()) for gradient in gradients[0])
    print(f"gradients differ by at most {error:.0e}, of {most:.1g}")
    print("where the time goes: " + where_time_goes(lambda: step(model.loss, task)))


def where_time_goes(function: Callable[[], None]) -> str:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            function()
    shares: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        purpose = (p for p, parts in _PURPOSES.items() if any(part in event.key for part in parts))
        shares[next(purpose, "the rest")] += event.self_cpu_time_total
    total = sum(shares.values())
    shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return ", ".join(f"{name} {share / total:.0%}" for name, share in shares.items())


if __name__ == "__main__":
    main()
