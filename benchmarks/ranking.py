"""CMANP, LBANP, TNP-D and CNP after the same short training on an easy process, side by side.

    python -m benchmarks.ranking

Each trains for as many steps, on the same tasks, with the same optimiser, one core each, two at a
time; `npbench compare` then evaluates them on the same 4,800 test tasks. Leaves `ranking/`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from npbench.cli import main as npbench

_OUT = Path("ranking")
_KERNEL = "configs/gp/kernels/rbf-fixed.yaml"
_MODELS = {
    "CMANP": ["num_layers=2", "num_latents=32", "num_block_latents=32", "qk_norm=true",
              "norm_residual=false"],
    "LBANP": ["num_layers=2", "num_latents=32", "qk_norm=true", "norm_residual=false"],
    "TNPD": ["num_layers=2"],
    "CNP": [],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--num_test_tasks", type=int, default=4800)
    options = parser.parse_args()
    shutil.rmtree(_OUT, ignore_errors=True)
    _OUT.mkdir()
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda name: train(name, options.steps), _MODELS))
    runs = [str(_OUT / name.lower() / "version_0") for name in _MODELS]
    tasks = ["--data.num_test_tasks", str(options.num_test_tasks)]
    npbench(["compare", *runs, *tasks, "--out", str(_OUT)])


def train(name: str, steps: int) -> None:
    command = [
        sys.executable, "-m", "npbench", "fit", "--config", f"configs/gp/{name.lower()}.yaml",
        "--data.kernel", _KERNEL, "--data.num_val_tasks", "320",
        "--data.steps_per_epoch", str(steps // 3),
        "--model.optimizer", "npbench.optim.MuonAdam", "--model.optimizer.lr", "0.01",
        "--model.optimizer.adam_lr", "1e-3", "--model.decay", "linear",
        "--model.warmup_steps", str(steps // 15),
        "--trainer.max_steps", str(steps), "--trainer.gradient_clip_val", "1.0",
        "--trainer.default_root_dir", str(_OUT / name.lower()),
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
    ]  # fmt: skip
    for argument in _MODELS[name]:
        command += [f"--model.model.{argument}"]
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = _OUT / f"{name.lower()}.txt"
    with log.open("w") as output:
        process = subprocess.run(command, env=environment, stdout=output, stderr=output)
    if process.returncode:
        raise SystemExit(f"training {name} failed; see {log}")
    print(f"{name}: {steps:,} steps in {(time.monotonic() - start) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
