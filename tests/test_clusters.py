"""The trainer's configurations for many devices, and the scripts of docs/clusters.md."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from helpers import assert_close

import npbench
from datamodules import GPDataModule
from npbench.cli import main
from npbench.models import CMANP
from npbench.training import MetaRegression

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/gp/cmanp-small.yaml")
SMALL = [
    "--config", CONFIG, "--model.model.num_layers", "1", "--model.model.num_latents", "4",
    "--model.model.num_block_latents", "4", "--data.num_val_tasks", "16", "--data.batch_size", "4",
    "--data.steps_per_epoch", "60", "--trainer.log_every_n_steps", "1",
    "--trainer.enable_model_summary", "false",
]  # fmt: skip


def script_with(word: str) -> str:
    """The first block of Python of docs/clusters.md that has this word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/clusters.md").read_text(), re.DOTALL)
    return next(code for code in blocks if word in code)


@pytest.fixture
def _no_process_group_left() -> Iterator[None]:
    """Nor the variables by which Lightning tells processes their ranks."""
    environment = dict(os.environ)
    yield
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("as_a_user", "_no_process_group_left")
def test_ddp_goes_on_top_of_an_experiment(tmp_path: Path) -> None:
    """Whose own settings of the trainer stay."""
    ddp = ["--config", str(ROOT / "configs/trainer/ddp.yaml"), "--trainer.accelerator", "cpu"]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    main(["fit", *SMALL, *ddp, *root, "--trainer.max_steps", "1"])
    assert dist.is_initialized()
    config = (tmp_path / "version_0/config.yaml").read_text()
    for line in ("strategy: ddp", "devices: auto", "gradient_clip_val: 1.0", "PosteriorFigures"):
        assert line in config


# SLURM's part, on this machine: as many processes as tasks, each told its place.
SRUN = """#!/usr/bin/env bash
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NODEID=0 "$@" --trainer.accelerator cpu &
done
wait
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" > scontrol.txt
"""


@pytest.mark.slow
def test_a_slurm_job_at_its_time_limit_is_requeued_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = str(20_000 + os.getpid() % 10_000)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": job, "SLURM_JOB_NAME": "npbench", "SLURM_NODELIST": "localhost",
        "SLURM_NNODES": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    options = ["--trainer.max_steps", "60", "--last_checkpoint.every_n_train_steps", "7",
               "--trainer.callbacks", "[]"]  # fmt: skip
    script = ["bash", "configs/trainer/fit.sbatch", *SMALL, *options]

    def submit() -> subprocess.Popen:
        return subprocess.Popen(
            script, cwd=tmp_path, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    runs = tmp_path / "runs/slurm" / job
    first = submit()
    try:
        wait_until(lambda: (runs / "version_0/checkpoints/last.ckpt").is_file())
        first.send_signal(signal.SIGUSR1)
        wait_until(lambda: (tmp_path / "scontrol.txt").is_file())
        assert (tmp_path / "scontrol.txt").read_text() == f"requeue {job}\n"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
    second = submit()
    try:
        assert second.wait(timeout=150) == 0
    finally:
        if second.poll() is None:
            os.killpg(second.pid, signal.SIGKILL)
    steps = pd.read_csv(runs / "version_1/metrics.csv").dropna(subset="train/loss")["step"]
    assert steps.min() > 0
    assert steps.min() % 7 == 0
    assert steps.max() == 59


def wait_until(condition: Callable[[], bool], seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_one_context_over_two_ranks_by_the_script_of_the_documentation(tmp_path: Path) -> None:
    (tmp_path / "shards.py").write_text(script_with("init_process_group"))
    points = torch.rand(25_001, 2)
    np.save(tmp_path / "points.npy", points.numpy())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "shards.py"], cwd=tmp_path, timeout=60,
        # Without a GPU, of which there may be fewer than ranks.
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    torch.manual_seed(0)
    with torch.no_grad():
        model = CMANP(dim_x=1, dim_y=1).eval()
        x, y = points[None].split(1, dim=-1)
        expected = model(x, y, torch.tensor([[[0.25], [0.75]]])).mean.flatten()
    printed = re.findall(r"rank (\d): (\d+) points, \[(\S+), (\S+)\]", result.stdout)
    assert sorted(line[:2] for line in printed) == [("0", "12500"), ("1", "12501")]
    for *_, first, second in printed:
        assert_close(torch.tensor([float(first), float(second)]), expected)


SPARK_FILES = """
from pathlib import Path

none = rows.where("hour > 9").mapInArrow(absorb, "state binary").collect()
states |= {"all": state, "none": model.merge(*map(state_of, none))}
for name, each in states.items():
    Path(name).write_bytes(each.to_bytes(model))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pyspark") is None, reason="needs pyspark, which no extra has")
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java, on which Spark runs")
def test_states_from_spark_are_those_of_one_process(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = {name: random.uniform(-2, 2, 600) for name in ("hour", "load")}
    table = pd.DataFrame({"sensor": random.choice(["a", "b", "c"], 600), **values})
    (tmp_path / "readings").mkdir()
    for start, end in pairwise([0, 100, 350, 600]):
        table[start:end].to_parquet(tmp_path / f"readings/{start}.parquet")
    (tmp_path / "spark.py").write_text(script_with("pyspark") + SPARK_FILES)
    options = "--master local[2] --conf spark.ui.enabled=false pyspark-shell"
    result = subprocess.run(
        [sys.executable, "spark.py"], cwd=tmp_path, timeout=240, capture_output=True, text=True,
        env=os.environ | {
            "OMP_NUM_THREADS": "1", "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_SUBMIT_ARGS": options, "SPARK_LOCAL_IP": "127.0.0.1",
        },
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    model = npbench.load("gp-1d").requires_grad_(False)
    shares = dict(iter(table.groupby("sensor")))
    xt = np.linspace(-2, 2, 50)[:, None]
    for name, rows in (shares | {"all": table, "none": table[:0]}).items():
        state = model.state_class.from_bytes((tmp_path / name).read_bytes(), model)
        x, y = (rows[[column]].to_numpy() for column in values)
        mine = model.query(model.condition(x, y), xt)
        theirs = model.query(model.merge(state), xt)
        torch.testing.assert_close(theirs.mean, mine.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.stddev, mine.stddev, rtol=0, atol=1e-5)


RAY = """
import ray

ray.init("local", num_cpus=2, include_dashboard=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_ray_train_takes_the_steps_of_one_process(tmp_path: Path) -> None:
    script = script_with("TorchTrainer").replace("/shared/run", str(tmp_path))
    script = script.replace("num_workers=8, use_gpu=True", "num_workers=1")
    script = script.replace("max_steps=10_000", "max_steps=2, limit_val_batches=0")
    (tmp_path / "train.py").write_text(RAY + script)
    result = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, timeout=240, capture_output=True, text=True,
        # Its second version needs pydantic, which the extra ray does not bring.
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "0"},
    )  # fmt: skip
    if re.search(r"^ImportError: .*ray\.train", result.stderr, re.MULTILINE):
        pytest.skip("needs Ray Train: pip install 'ray[train]'")
    assert result.returncode == 0, result.stderr
    L.seed_everything(0)
    trainer = L.Trainer(
        max_steps=2, limit_val_batches=0, gradient_clip_val=1.0, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = MetaRegression(CMANP(dim_x=1, dim_y=1))
    trainer.fit(module, GPDataModule(batch_size=4))
    trained = npbench.load(tmp_path / "trained.ckpt").state_dict()
    assert trained.keys() == module.model.state_dict().keys()
    for name, weight in module.model.state_dict().items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-5, msg=name)
