"""CMANP-AND: peak memory and time of its likelihood and of sampling, as N and M grow.

    python -m benchmarks.autoregressive

Beside it LBANP-ND, which keeps its context and predicts all targets jointly: as far as 10,000.
"""

import argparse

import torch
from rich.console import Console

from npbench.commands.arguments import add_device
from npbench.commands.tables import table_of
from npbench.models import CMANPAND, LBANPND, NeuralProcess
from npbench.models.contracts.process import evaluating
from npbench.profiling import Measurement, measure
from npbench.task import Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e3, 1e4, 1e5])
    parser.add_argument("--fixed", type=int, default=1000, help="the number that stays")
    add_device(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    models = {"CMANP-AND": (CMANPAND(1, 1), 1e9), "LBANP-ND": (LBANPND(1, 1), 1e4)}
    table = table_of(
        ["model", "context N", "targets M", "log_likelihood", "sample"],
        f"peak memory beyond the inputs, and time; {options.device}",
    )
    for name, (model, most) in models.items():
        model.to(options.device)
        for size in map(int, options.sizes):
            for num_context, num_targets in dict.fromkeys(
                [(size, options.fixed), (options.fixed, size)]
            ):
                if size > most:
                    continue
                measured = phases(model, num_context, num_targets, options.device)
                table.add_row(name, f"{num_context:,}", f"{num_targets:,}", *map(shown, measured))
    Console().print(table)


def phases(
    model: NeuralProcess, num_context: int, num_targets: int, device: torch.device
) -> tuple[Measurement, Measurement]:
    """The likelihood of one task, context included, and one sample from a state."""
    context, targets = (torch.randn(2, 1, n, 1, device=device) for n in (num_context, num_targets))
    with evaluating(model):
        state = model.condition(*context)
        return (
            measure(lambda: model.log_likelihood(Task(*context, *targets)), device, repeats=1),
            measure(lambda: model.sample(state, targets[0]), device, repeats=1),
        )


def shown(measured: Measurement) -> str:
    if measured.out_of_memory:
        return "out of memory"
    return f"{measured.peak_bytes / 2**20:,.1f} MiB, {measured.seconds:,.2f} s"


if __name__ == "__main__":
    main()
