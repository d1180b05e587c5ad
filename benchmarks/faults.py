r"""The faults that destroy files, repeated: is anything lost?

    python -m benchmarks.faults

Each fault meets the real command, `npbench fit`, `condition` or `query`, in a process of its own;
for each there is a line of what happened, and the command ends non-zero if anything was lost.
docs/reliability.md has the list of promises.

- Twenty times training is killed (SIGKILL) while a checkpoint is being written, half of them on
  each of two file systems (`--folders`), with the folder of temporary files on the other.
- The disk is full (a small tmpfs where one can be mounted, else a limit on the size of files), and
  the run's folder loses its write permission, in the middle of training. A superuser's process
  gives up the capability to write all the same.
- Training gets SIGTERM, and goes on.
- Two commands write one `--out` at once, and two trainings begin in one folder.
"""

import argparse
import ctypes
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from npbench.cli import main as npbench
from npbench.commands import trainer  # noqa: F401 -- imported before processes are forked
from npbench.commands.checkpoints import load
from npbench.tables import PointTable
from npbench.training.checkpoint_files import load_checkpoint

_ROOT = Path(__file__).parents[1]
_SMALL = [
    "--config", str(_ROOT / "configs/gp/cmanp-small.yaml"), "--trainer.callbacks", "[]",
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1",
    "--data.batch_size", "1", "--data.num_val_tasks", "16", "--data.max_num_points", "20",
    "--last_checkpoint.every_n_train_steps", "1", "--trainer.max_steps", "100000",
]  # fmt: skip
_DAC_OVERRIDE, _DAC_READ_SEARCH, _CAPABILITY_VERSION = 1, 2, 0x20080522
_UNFINISHED = ".last.ckpt." + "?" * 8


class Command:
    """An `npbench` command in a process of its own, which has all modules from the start.

    Args:
        arguments: of the command.
        log: the file that its output goes to.
        before: called in the process before the command.
    """

    def __init__(
        self, arguments: list[str], log: Path, before: Callable[[], None] = lambda: None
    ) -> None:
        self.log = log
        self.pid = os.fork()
        if not self.pid:
            self._run(arguments, before)

    def _run(self, arguments: list[str], before: Callable[[], None]) -> None:
        code = 70  # of an error that the command does not answer
        try:
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            before()
            npbench(arguments)
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self) -> int:
        """The exit code; that of a killed process is negative."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self, *words: str) -> bool:
        return all(word in self.log.read_text() for word in words)


class Losses:
    """What was lost, and what was not."""

    def __init__(self) -> None:
        self.number = 0

    def note(self, fault: str, kept: bool, what: str) -> None:
        self.number += not kept
        print(f"{'kept' if kept else 'LOST'}  {fault}: {what}", flush=True)


def fit(folder: Path, *more: str) -> list[str]:
    return ["fit", *_SMALL, "--trainer.default_root_dir", str(folder), *more]


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a process does not do what it should")


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint that is whole; None where there is none."""
    try:
        return load_checkpoint(checkpoint)["global_step"]
    except ValueError:
        return None


def kill_at_writes(folder: Path, temporary: Path, kills: int, losses: Losses) -> None:
    """Kill training while it writes a checkpoint, and begin again from what is left."""
    os.environ["TMPDIR"] = str(temporary)
    before, hits, more = 0, 0, []
    for version in range(kills):
        command = Command(fit(folder, *more), folder / "log")
        checkpoints = folder / f"version_{version}" / "checkpoints"
        last = checkpoints / "last.ckpt"
        wait_for(lambda path=last: path.is_file())
        time.sleep(random.uniform(0, 0.3))
        wait_for(lambda path=checkpoints: any(path.glob(_UNFINISHED)))
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
        hits += any(checkpoints.glob(_UNFINISHED))
        step = step_of(last)
        losses.note(
            f"kill −9 number {version + 1} at a write in {folder}",
            step is not None and step > before,
            f"last.ckpt holds step {step}, after {before}",
        )
        before, more = step or before, ["--ckpt_path", str(last)]
    command = Command(fit(folder, *more, "--trainer.max_steps", str(before + 1)), folder / "log")
    code, litter = command.wait(), [*folder.rglob(_UNFINISHED), *temporary.glob("tmp*")]
    losses.note(
        f"{hits} of {kills} kills left an unfinished file in {folder}",
        code == 0 and not litter,
        f"the next start ended with {code} and left {len(litter)} of them",
    )


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """A folder, and whether it is a file system of its own, of 20 MiB."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "npbench-faults", str(disk)]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, check=False).returncode
    try:
        yield disk, mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def fill_the_disk(folder: Path, losses: Losses) -> None:
    """Fill a small disk, or where none can be mounted limit the size of files, during training."""
    with small_disk(folder) as (disk, mounted):
        command = Command(fit(disk), folder / "log")
        last = disk / "version_0/checkpoints/last.ckpt"
        wait_for(last.is_file)
        if mounted:
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1000))
        else:
            resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        code, step = command.wait(), step_of(last)
        losses.note(
            f"a full disk ({'a tmpfs of 20 MiB' if mounted else 'a limit on the size of files'})",
            code == 1 and step is not None and command.said("cannot be written"),
            f"exit code {code}; last.ckpt holds step {step}",
        )


def give_up_capabilities() -> None:
    """Have permissions count for a superuser's process too."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    for index in (0, 1):  # effective, permitted
        data[index] &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    libc.capset(header, data)


def take_permission(folder: Path, losses: Losses) -> None:
    command = Command(fit(folder), folder / "log", give_up_capabilities)
    last = folder / "version_0/checkpoints/last.ckpt"
    wait_for(last.is_file)
    last.parent.chmod(0o500)
    code, step = command.wait(), step_of(last)
    last.parent.chmod(0o700)
    losses.note(
        "a folder that cannot be written any more",
        code == 1 and step is not None and command.said("last.ckpt cannot be written"),
        f"exit code {code}; last.ckpt holds step {step}",
    )


def losses_of(run: Path) -> pd.Series:
    metrics = pd.read_csv(run / "metrics.csv").dropna(subset="train/loss")
    return metrics.set_index("step")["train/loss"]


def terminate(folder: Path, losses: Losses) -> None:
    """SIGTERM, twice at a random moment; the losses then are those of a run without it."""
    steps, more = 0, []
    for version in range(2):
        command = Command(fit(folder, *more), folder / "log")
        last = folder / f"version_{version}/checkpoints/last.ckpt"
        wait_for(last.is_file)
        time.sleep(random.uniform(0, 0.5))
        os.kill(command.pid, signal.SIGTERM)
        code, step = command.wait(), step_of(last)
        losses.note(
            "SIGTERM",
            code == 143 and step is not None and command.said(f"step {step} is kept in {last}"),
            f"exit code {code}; last.ckpt holds step {step}",
        )
        steps, more = step or 0, ["--ckpt_path", str(last)]
    whole = Command(fit(folder / "whole", "--trainer.max_steps", str(steps)), folder / "log")
    whole.wait()
    parts = pd.concat([losses_of(folder / f"version_{version}") for version in range(2)])
    expected = losses_of(folder / "whole/version_0")
    # The first 200 steps are warm-up, in which the length of the run has no part.
    same = parts.index.equals(expected.index) and np.allclose(parts, expected, rtol=0, atol=1e-5)
    losses.note("the losses of the resumed run", same, f"{len(parts)} of {len(expected)} rows")


def two_at_once(folder: Path, losses: Losses) -> None:
    """Two `condition`, two `query` and two `fit` begin at the same moment."""
    run = Command(fit(folder / "model", "--trainer.max_steps", "2"), folder / "log")
    run.wait()
    ckpt, data = folder / "model/version_0/checkpoints/last.ckpt", folder / "points.parquet"
    generator = np.random.default_rng(0)
    pd.DataFrame(generator.normal(size=(2_000_000, 2)), columns=["x", "y"]).to_parquet(data)
    state, out = folder / "state", folder / "out.parquet"
    both = {
        "condition": ["--ckpt", ckpt, "--data", data, "--x", "x", "--y", "y", "--out", state],
        "query": ["--state", state, "--targets", data, "--out", out],
    }
    for name, arguments in both.items():
        words = [name, *map(str, arguments), "--device", "cpu"]
        commands = [Command(words, folder / f"{name}-{number}") for number in range(2)]
        codes = [command.wait() for command in commands]
        refused = [c for c, code in zip(commands, codes) if code == 1 and c.said("is writing")]
        losses.note(f"two {name} with one --out", sorted(codes) == [0, 1] and len(refused) == 1,
                    f"exit codes {codes}")  # fmt: skip
    model = load(ckpt)
    rows = len(pd.read_parquet(out))
    model.state_class.load(state, model)
    losses.note("both of their files are whole", rows == PointTable(data, ["x"]).num_rows(),
                f"{rows:,} predictions")  # fmt: skip
    root = folder / "trainings"
    commands = [Command(fit(root, "--trainer.max_steps", "2"), folder / "log") for _ in range(4)]
    codes = [command.wait() for command in commands]
    found = sorted(path.parts[-3] for path in root.glob("version_*/checkpoints/last.ckpt"))
    losses.note("four trainings in one folder", codes == [0] * 4 and len(found) == 4,
                f"exit codes {codes}, folders {', '.join(found)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="in all (default: 20)")
    parser.add_argument(
        "--folders", type=Path, nargs=2, default=[Path("/dev/shm"), Path("/tmp")],
        help="two folders on different file systems (default: /dev/shm /tmp)",
    )  # fmt: skip
    options = parser.parse_args()
    devices = [folder.stat().st_dev for folder in options.folders]
    print(f"{options.folders[0]} and {options.folders[1]} are "
          f"{'two file systems' if devices[0] != devices[1] else 'ONE file system'}")  # fmt: skip
    losses = Losses()
    with (
        TemporaryDirectory(dir=options.folders[0]) as a,
        TemporaryDirectory(dir=options.folders[1]) as b,
    ):
        for name, (here, there) in {"kills-a": (a, b), "kills-b": (b, a)}.items():
            folder, temporary = Path(here) / name, Path(there) / f"{name}-temporary"
            folder.mkdir()
            temporary.mkdir()
            kill_at_writes(folder, temporary, options.kills // 2, losses)
        os.environ["TMPDIR"] = a
        for fault in (fill_the_disk, take_permission, terminate, two_at_once):
            folder = Path(b) / fault.__name__
            folder.mkdir()
            fault(folder, losses)
    print(f"{losses.number} faults lost something" if losses.number else "nothing was lost")
    raise SystemExit(losses.number > 0)


if __name__ == "__main__":
    main()
