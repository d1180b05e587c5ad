"""Nothing is lost, as the commands are used: docs/reliability.md promises what is tested here."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from helpers.training import data, module
from lightning.pytorch.loggers import CSVLogger

from npbench.callbacks import LastCheckpoint, PeakMemoryProfiler, PosteriorFigures
from npbench.cli import main
from npbench.commands.trainer import new_version
from npbench.errors import InputError
from npbench.files import only_writer
from npbench.models import CMANP
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained

pytestmark = pytest.mark.usefixtures("as_a_user")

ROOT = Path(__file__).parents[1]
SMALL = [
    "--config", str(ROOT / "configs/gp/cmanp-small.yaml"), "--model.model.num_layers", "1",
    "--model.model.num_latents", "4", "--model.model.num_block_latents", "4",
    "--data.steps_per_epoch", "10", "--data.num_val_tasks", "16", "--trainer.callbacks", "[]",
    "--data.batch_size", "2", "--trainer.accelerator", "cpu",
    "--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false",
    "--last_checkpoint.every_n_train_steps", "2",
]  # fmt: skip


def error_of(arguments: list[str], capsys: pytest.CaptureFixture, code: int = 1) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == code
    (message,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    return message


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs in which one has ended after four steps."""
    root = tmp_path_factory.mktemp("runs")
    main(["fit", *SMALL, "--trainer.max_steps", "4", "--trainer.default_root_dir", str(root)])
    return root


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs"))


@pytest.fixture
def last(runs: Path) -> Path:
    return runs / "version_0/checkpoints/last.ckpt"


# Checkpoints.


def test_fit_skips_a_checkpoint_that_is_not_whole_with_one_sentence(
    last: Path, runs: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(last.parent, runs / "version_1/checkpoints")
    newest = runs / "version_1/checkpoints/last.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    options = ["--trainer.default_root_dir", str(runs), "--trainer.max_steps", "6"]
    capsys.readouterr()
    main(["fit", *SMALL, *options, "--ckpt_path", str(runs)])
    said = f"npbench: {newest} is damaged, or no checkpoint of npbench fit; going on from {last}"
    assert said in capsys.readouterr().err.splitlines()
    resumed = torch.load(runs / "version_2/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 6


def test_the_last_checkpoint_is_found_and_there_may_be_none(
    last: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    best = last.with_name("best.ckpt")
    best.write_bytes(best.read_bytes())  # newer, and not what a run goes on from
    root = ["--trainer.max_steps", "5", "--ckpt_path", "last", "--trainer.default_root_dir"]
    main(["fit", *SMALL, *root, str(runs)])
    resumed = torch.load(runs / "version_1/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 5
    steps = pd.read_csv(runs / "version_1/metrics.csv")["step"]
    assert steps.min() >= 4
    capsys.readouterr()
    main(["fit", *SMALL, *root, str(tmp_path / "none")])
    said = f"npbench: there is no checkpoint in {tmp_path}/none; training begins anew"
    assert said in capsys.readouterr().err.splitlines()


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty file": (lambda path: path.write_bytes(b""), "is empty"),
    "half a file": (lambda path: path.write_bytes(path.read_bytes()[:9000]), "is damaged, or no"),
    "a text": (lambda path: path.write_text("weights"), "is damaged, or no checkpoint"),
    "a state dict": (
        lambda path: torch.save(torch.load(path, weights_only=True)["state_dict"], path),
        "is no checkpoint of npbench fit",
    ),
    "code": (lambda path: torch.save({"state_dict": print}, path), "could run code"),
    "another project's": (
        lambda path: torch.save(
            torch.load(path, weights_only=True) | {"state_dict": {"w": torch.zeros(1)}}, path
        ),
        "the checkpoint is of another model",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_damaged_or_foreign_checkpoint_to_resume_from_is_one_sentence(
    kind: str, last: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make, message = FOREIGN[kind]
    last.with_name("best.ckpt").unlink()
    make(last)
    options = ["--trainer.default_root_dir", str(tmp_path), "--ckpt_path", str(last)]
    assert message in error_of(["fit", *SMALL, *options], capsys)


def test_sigterm_ends_fit_with_143_and_a_checkpoint_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def ended(module: L.LightningModule, batch: object, batch_idx: int) -> None:
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetaRegression, "on_train_batch_start", ended)
    options = ["--trainer.max_steps", "9", "--trainer.default_root_dir", str(tmp_path)]
    options += ["--trainer.log_every_n_steps", "1"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *SMALL, *options])
    assert exit_.value.code == 143
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    said = capsys.readouterr()
    assert f"step 3 is kept in {last}" in said.out
    assert said.err.splitlines()[-1] == "npbench: ended by SIGTERM"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    metrics = pd.read_csv(tmp_path / "version_0/metrics.csv")
    assert metrics["train/loss"].count() == 3  # the last step's too


# Metrics, figures and predictions.


class Blocks(L.Callback):
    """Makes a folder of a run unwritable after a step: a file takes its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 2:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.touch()


def fit(root: Path, *callbacks: L.Callback, datamodule: object = None, max_steps: int = 5) -> None:
    L.Trainer(
        max_steps=max_steps, accelerator="cpu", logger=CSVLogger(root, name="", version="run"),
        callbacks=[*callbacks], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, LastCheckpoint) for c in callbacks),
        log_every_n_steps=1,
    ).fit(module(), datamodule or data())  # fmt: skip


@pytest.mark.parametrize(
    ("callbacks", "folder"),
    [
        ([], "run"),
        ([LastCheckpoint(every_n_train_steps=1)], "run/checkpoints"),
        ([PosteriorFigures(num_tasks=1)], "run/figures"),
    ],
    ids=["metrics", "checkpoints", "figures"],
)
def test_what_cannot_be_written_any_more_ends_the_run_with_an_error(
    callbacks: list[L.Callback], folder: str, tmp_path: Path
) -> None:
    with pytest.raises((OSError, InputError)):
        fit(tmp_path, *callbacks, Blocks(tmp_path / folder))


def test_predictions_that_cannot_be_written_end_the_command_with_an_error(
    last: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    options = ["--trainer.default_root_dir", str(tmp_path), "--ckpt_path", str(last)]
    path = tmp_path / "file/predictions.parquet"
    message = error_of(["predict", *SMALL, *options, "--predictions.path", str(path)], capsys)
    assert f"{path} cannot be written" in message


# Two at once.


def test_commands_that_start_at_once_never_take_the_same_version(tmp_path: Path) -> None:
    (tmp_path / "version_7").mkdir()
    (tmp_path / "version_x").mkdir()
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: new_version(tmp_path), range(40)))
    assert sorted(versions) == list(range(8, 48))


@pytest.mark.parametrize("command", ["condition", "query", "forget", "merge", "compare", "profile"])
def test_what_another_process_is_writing_is_refused_in_one_sentence(
    command: str, last: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    points = tmp_path / "points.csv"
    pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0]}).to_csv(points, index=False)
    config, state, out = SMALL[1], tmp_path / "state", tmp_path / "out.csv"
    columns = ["--data", str(points), "--x", "x", "--y", "y"]
    if command in ("query", "forget", "merge"):
        main(["condition", "--ckpt", str(last), *columns, "--out", str(state)])
    arguments = {
        "condition": ["--ckpt", str(last), *columns],
        "query": ["--state", str(state), "--targets", str(points)],
        "forget": ["--state", str(state), *columns],
        "merge": [str(state), str(state)],
        "compare": [str(last), "--config", config, "--data.num_test_tasks", "16"],
        "profile": ["--config", config, "--context-sizes", "10", "--phases", "query"],
    }[command]
    out.write_text("what the other one writes")
    with only_writer(out):
        message = error_of([command, *arguments, "--out", str(out)], capsys)
    assert message == (
        f"npbench: error: another process is writing {out}; wait for it to end, or choose another "
        f"name"
    )
    assert out.read_text() == "what the other one writes"


# Classes of one's own.


def test_a_model_of_mine_is_loaded_where_i_allow_it_by_name_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own.py").write_text(
        "from npbench.models import CMANP\nclass Model(CMANP):\n    pass\n"
    )
    arguments = {"num_layers": 1, "num_latents": 4, "num_block_latents": 4}
    save_untrained(MetaRegression(CMANP(1, 1, **arguments)), tmp_path / "my.ckpt")
    content = torch.load(tmp_path / "my.ckpt", weights_only=True)
    content["hyper_parameters"]["model"]["class_path"] = "my_own.Model"
    torch.save(content, tmp_path / "my.ckpt")
    pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0]}).to_csv("points.csv", index=False)
    command = ["condition", "--ckpt", "my.ckpt", "--data", "points.csv", "--x", "x", "--y", "y",
               "--out", "state"]  # fmt: skip
    message = error_of(command, capsys)
    assert "my.ckpt names my_own.Model" in message
    assert "(--allow my_own.Model) if you trust its code" in message
    assert "my_own" not in sys.modules
    assert "cannot be imported" in error_of([*command, "--allow", "my_own.Modell"], capsys, code=2)
    monkeypatch.delitem(sys.modules, "my_own")
    main([*command, "--allow", "my_own.Model"])
    assert (tmp_path / "state").is_file()


# Callbacks that only look.


class Plain(L.LightningDataModule):
    """Has nothing to draw."""

    def train_dataloader(self) -> object:
        raise AssertionError("training has begun")


def test_a_figure_that_the_data_do_not_offer_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs a data module with figure_task.*Plain"):
        fit(tmp_path, PosteriorFigures(), datamodule=Plain())


@pytest.mark.parametrize("callback", [PosteriorFigures, PeakMemoryProfiler])
def test_a_callback_that_only_looks_warns_once_when_it_fails_and_the_run_goes_on(
    callback: type[L.Callback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory for this")

    for name in ("regression.posterior_figure", "memory.profile"):
        monkeypatch.setattr(f"npbench.callbacks.{name}", fail)
    message = rf"{callback.__name__} failed \(RuntimeError: no memory for this\) and stands aside"
    with pytest.warns(UserWarning, match=message) as warned:
        fit(tmp_path, callback(), LastCheckpoint(), max_steps=12)
    assert sum("stands aside" in str(each.message) for each in warned) == 1
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 12
