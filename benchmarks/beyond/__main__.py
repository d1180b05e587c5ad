"""Beyond the shipped configurations: what else was tried, in minutes of one core each.

    python -m benchmarks.beyond --list
    python -m benchmarks.beyond tnpd-0.003 tnpd-0.01 --steps 1500      # on 640 validation tasks
    python -m benchmarks.beyond tnpd-0.003 --steps 4500 --test         # on 4,800 test tasks

The recipe is that of `configs/gp/located.yaml`: 16 tasks a step with sizes of their own and 64
targets, MuonAdam, 200 steps of warm-up, a line to 0, gradients clipped at 1. Settings are chosen on
validation tasks; test tasks are those of `npbench test`. One thread a run.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.beyond import (
    beside,
    full_attention,
    joint,
    lengths,
    nonstationary,
    small,
    two_inputs,
)
from benchmarks.beyond.recipe import score, train, written
from datamodules.loading import Part
from npbench.commands.checkpoints import find, load
from npbench.errors import InputError
from npbench.models import NeuralProcess

_KINDS = full_attention, joint, two_inputs, beside, nonstationary, small, lengths
_FEW = 8
EXPERIMENTS = {name: each for kind in _KINDS for name, each in kind.EXPERIMENTS.items()}


def run(name: str, options: argparse.Namespace) -> None:
    experiment = EXPERIMENTS[name]
    torch.manual_seed(options.seed)
    model, data = experiment.model(), experiment.tasks(options.seed)
    if options.start is not None:
        start_from(model, options.start)
    seconds = train(model, data, options.steps, experiment.lr)
    if options.save is not None:
        torch.save(model.state_dict(), options.save)
    part, number = (Part.TEST, 4800) if options.test else (Part.VALIDATE, 640)
    scores = score(model, data, part, options.tasks or number)
    gap, few = scores.exact - scores.model, scores.sizes < _FEW
    alone = f"; one by one {written(scores.alone)}" if model.scores_jointly else ""
    print(
        f"{name}, seed {options.seed}: {options.steps} steps, {seconds:.0f} CPU seconds, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; {part.name.lower()}: "
        f"{written(scores.model)}, exact {scores.exact.mean():.4f}{alone}; gap {written(gap)}, "
        f"of fewer than {_FEW} points {written(gap[few])}",
        flush=True,
    )


def start_from(model: NeuralProcess, path: Path) -> None:
    """Give a model the weights of a run, or of a file that `--save` has written; what they lack
    stays as it is."""
    if path.suffix == ".pt":
        weights = torch.load(path, weights_only=True)
    else:
        weights = load(find(path)).state_dict()
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected:
        raise InputError(f"{path} holds weights that this model has not: {unexpected}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true", help="score test tasks, not validation's")
    parser.add_argument("--tasks", type=int, help="how many; by default 640, of test 4,800")
    parser.add_argument("--start", type=Path, help="a run, or a file, to start from")
    parser.add_argument("--save", type=Path, help="file for the trained weights")
    parser.add_argument("--list", action="store_true", help="print the experiments")
    options = parser.parse_args()
    unknown = set(options.experiments) - EXPERIMENTS.keys()
    if unknown:
        parser.error(f"unknown experiment(s) {sorted(unknown)}; see --list")
    if options.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:<28}{experiment.about}")
        return
    torch.set_num_threads(1)
    for name in options.experiments:
        run(name, options)


if __name__ == "__main__":
    main()
