"""What each setting of a small CMANP buys: train with one of them changed.

    python -m benchmarks.levers --list
    python -m benchmarks.levers base adam normalised-residual    # three runs, one after the other
    python -m benchmarks.levers --steps 5000 shipped             # configs/gp/cmanp-small.yaml
    python -m benchmarks.levers --time-only                      # milliseconds a step of each

One thread a run. The log-likelihood is that on 1,600 fixed tasks of the released ranges.
"""

import argparse
import math
import statistics
import time

import torch

from datamodules import Curriculum, GPDataModule
from datamodules.kernels import released_rbf
from npbench.models import CMANP
from npbench.optim import MuonAdam

_BASE = {
    "model": {
        "num_heads": 2,
        "num_layers": 2,
        "num_latents": 32,
        "num_block_latents": 32,
        "qk_norm": True,
        "norm_residual": False,
    },
    "optimizer": "muon",
    "lr": 0.01,
    "adam_lr": 1e-3,
    "momentum": 0.95,
    "curriculum": 0.5,
    "decay": "cosine",
    "clip": 1.0,
    "batch_size": 16,
    "max_num_points": 50,
    "latents_in_muon": True,
}
_VARIANTS: dict[str, dict] = {
    "base": {},
    "shipped": {"decay": "linear"},
    "normalised-residual": {"model": {"norm_residual": True}},
    "no-qk-norm": {"model": {"qk_norm": False}},
    "adam": {"optimizer": "adam", "lr": 1e-3},
    "adam-no-curriculum": {"optimizer": "adam", "lr": 1e-3, "curriculum": 0.0},
    "muon-0.04": {"lr": 0.04},
    "muon-0.02": {"lr": 0.02},
    "muon-0.005": {"lr": 0.005},
    "muon-0.02-no-curriculum": {"lr": 0.02, "curriculum": 0.0},
    "official-residual-0.02-no-curriculum": {
        "model": {"norm_residual": True},
        "lr": 0.02,
        "curriculum": 0.0,
    },
    "momentum-0.9": {"momentum": 0.9},
    "adam-for-latents": {"latents_in_muon": False},
    "no-curriculum": {"curriculum": 0.0},
    "curriculum-30": {"curriculum": 0.3},
    "curriculum-70": {"curriculum": 0.7},
    "no-clipping": {"clip": math.inf},
    "1-head": {"model": {"num_heads": 1}},
    "4-heads": {"model": {"num_heads": 4}},
    "3-layers": {"model": {"num_layers": 3}},
    "16-latents": {"model": {"num_latents": 16, "num_block_latents": 16}},
    "80-points": {"max_num_points": 80},
}
_WARMUP = 200


def settings(variant: str) -> dict:
    change = _VARIANTS[variant]
    return _BASE | change | {"model": _BASE["model"] | change.get("model", {})}


def make_optimizer(model: CMANP, chosen: dict) -> torch.optim.Optimizer:
    if chosen["optimizer"] == "adam":
        return torch.optim.Adam(model.parameters(), lr=chosen["lr"])
    optimizer = MuonAdam(
        model.parameters(),
        lr=chosen["lr"],
        adam_lr=chosen["adam_lr"],
        momentum=chosen["momentum"],
    )
    if not chosen["latents_in_muon"]:
        latents = [p for name, p in model.named_parameters() if name.endswith("latents")]
        matrices, others = (group["params"] for group in optimizer.param_groups)
        matrices[:] = [p for p in matrices if not any(p is z for z in latents)]
        others += latents
    return optimizer


def make_data(chosen: dict, steps: int) -> GPDataModule:
    curriculum = None
    if chosen["curriculum"]:
        smooth = released_rbf(length=(0.6, 1.0))
        curriculum = Curriculum(smooth, max(1, int(chosen["curriculum"] * steps)))
    return GPDataModule(
        batch_size=chosen["batch_size"],
        max_num_points=chosen["max_num_points"],
        curriculum=curriculum,
    )


def rate(step: int, steps: int, decay: str) -> float:
    """The learning rate's factor: a linear warm-up, then a line or a cosine to 0."""
    if step < _WARMUP:
        return (step + 1) / _WARMUP
    progress = (step - _WARMUP) / (steps - _WARMUP)
    return 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def evaluate(model: CMANP) -> float:
    data = GPDataModule()
    model.eval()
    batches = (data.evaluation_batch(range(i, i + 16)) for i in range(0, 1600, 16))
    result = torch.cat([model.log_likelihood(batch) for batch in batches]).mean().item()
    model.train()
    return result


def train(variant: str, steps: int, seed: int, stop_after: int | None = None) -> None:
    chosen = settings(variant)
    torch.manual_seed(seed)
    model = CMANP(1, 1, **chosen["model"])
    optimizer = make_optimizer(model, chosen)
    data = make_data(chosen, steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step, steps, chosen["decay"])
    )
    seconds = []
    for step in range(stop_after or steps):
        start = time.perf_counter()
        loss = model.loss(data.training_batch(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen["clip"])
        optimizer.step()
        scheduler.step()
        seconds.append(time.perf_counter() - start)
        if (step + 1) % 1000 == 0 and step + 1 < steps:
            print(f"{variant:<38}{step + 1:>8}{evaluate(model):>10.3f}", flush=True)
    milliseconds = 1e3 * statistics.median(seconds)
    result = f"{evaluate(model):>10.3f}" if stop_after is None else " " * 10
    print(f"{variant:<38}{len(seconds):>8}{result}{milliseconds:>9.1f} ms a step", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="print the variants")
    parser.add_argument("--time-only", action="store_true", help="40 steps of each, to time them")
    arguments = parser.parse_args()
    unknown = set(arguments.variants) - _VARIANTS.keys()
    if unknown:
        parser.error(f"unknown variant(s) {sorted(unknown)}; see --list")
    if arguments.list:
        for name, change in _VARIANTS.items():
            print(f"{name:<38}{change or ''}")
        return
    torch.set_num_threads(1)
    stop_after = 40 if arguments.time_only else None
    for variant in arguments.variants or _VARIANTS:
        train(variant, arguments.steps, arguments.seed, stop_after)


if __name__ == "__main__":
    main()
