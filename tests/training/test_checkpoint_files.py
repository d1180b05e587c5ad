"""A checkpoint is whole or not there, and what is not whole is not taken for one."""

import errno
import os
import shutil
import signal
import tempfile
import zipfile
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.training import data, module

from npbench.callbacks import BestCheckpoint, LastCheckpoint
from npbench.errors import InputError
from npbench.training import MetaRegression
from npbench.training.checkpoint_files import check_whole, checkpoint_to_resume, load_checkpoint

pytestmark = pytest.mark.usefixtures("as_a_user")


def trainer(root: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    return L.Trainer(
        default_root_dir=root, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, callbacks=[*callbacks], **options,
    )  # fmt: skip


def trained(root: Path, max_steps: int = 4) -> Path:
    checkpoints = BestCheckpoint(), LastCheckpoint(every_n_train_steps=2)
    trainer(root, *checkpoints, max_steps=max_steps).fit(module(), data())
    return root / "checkpoints"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def last(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "checkpoints")) / "last.ckpt"


def test_every_checkpoint_of_a_run_is_renamed_within_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the folder of temporary files, on whatever file system, has no part in it."""
    replace, targets = os.replace, []

    def rename(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent
        targets.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no folder"))
    folder = trained(tmp_path)
    assert set(targets) == {"best.ckpt", "last.ckpt"} == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_one_before_stays(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes, calls = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        calls.append(path)
        if len(calls) > 2:
            write_bytes(path, bytes(content[:100]))
            raise OSError(number, os.strerror(number))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    checkpoints = LastCheckpoint(every_n_train_steps=1)
    message = rf"last.ckpt cannot be written \({os.strerror(number)}\)"
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, checkpoints, max_steps=9).fit(module(), data())
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert load_checkpoint(left)["global_step"] == 2


def test_a_run_removes_what_killed_runs_of_its_root_were_writing(tmp_path: Path) -> None:
    folders = [tmp_path / f"version_{version}/checkpoints" for version in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in (".last.ckpt.0123abcd", ".best.ckpt.00000000", "notes"):
            (folder / name).touch()
    trained(tmp_path / "version_2")
    assert [[path.name for path in folder.iterdir()] for folder in folders] == [["notes"]] * 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    weights = torch.load(path, weights_only=True)["state_dict"]
    largest = max(weights.values(), key=torch.Tensor.numel)
    content[content.index(largest.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


def deflate(path: Path) -> None:
    parts = zipfile.ZipFile(path)
    with zipfile.ZipFile(path.with_name("zip"), "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in parts.namelist():
            deflated.writestr(name, parts.read(name))
    path.with_name("zip").replace(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# What can happen to a checkpoint, and what is said then.
DAMAGE = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-500]), "is damaged, or no check"),
    "text": (lambda path: path.write_text("a model\n" * 99), "is damaged, or no checkpoint"),
    "a byte changed": (flip, "is damaged: .* is not what was written"),
    "compressed": (deflate, "is no checkpoint of npbench fit: it is compressed"),
    "a folder": (folder, "is a folder, and no checkpoint"),
    "missing": (Path.unlink, "there is no checkpoint"),
    "a symbolic link to itself": (loop, "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_is_refused_in_one_sentence(damage: str, last: Path) -> None:
    check_whole(last)
    do, message = DAMAGE[damage]
    do(last)
    for load in (check_whole, load_checkpoint, MetaRegression.load_from_checkpoint):
        with pytest.raises(InputError, match=message):
            load(last)


# What is whole, and still nothing to load.
FOREIGN = {
    "weights": (lambda content: content["state_dict"], "it holds no training module"),
    "a list": (lambda content: [content], "it holds no training module"),
    "code": (lambda content: content | {"more": print}, "which could run code, and was not loaded"),
    "no weights": (lambda content: content | {"state_dict": [1]}, "its state_dict is not weights"),
    "weights that are no numbers": (
        lambda content: content
        | {"state_dict": content["state_dict"] | {"model.bias": torch.tensor([1.0, torch.nan])}},
        "holds a model.bias that is not finite",
    ),
    "weights that are not in the file": (
        lambda content: content
        | {"state_dict": content["state_dict"] | {"w": torch.zeros(1).expand(10**6, 10**6)}},
        "announces more numbers for w than it holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_refused_in_one_sentence(kind: str, last: Path) -> None:
    change, message = FOREIGN[kind]
    torch.save(change(torch.load(last, weights_only=True)), last)
    for load in (load_checkpoint, MetaRegression.load_from_checkpoint):
        with pytest.raises(InputError, match=message):
            load(last)
    with pytest.raises(InputError, match=message):
        trainer(last.parent, LastCheckpoint(), max_steps=9).fit(module(), data(), ckpt_path=last)


@pytest.mark.parametrize("damage", ["empty", "cut off", "a byte changed"])
def test_resuming_skips_what_is_not_whole_and_takes_the_newest_that_is(
    damage: str, last: Path
) -> None:
    best = last.with_name("best.ckpt")
    assert checkpoint_to_resume(last) == (last, None)
    do, message = DAMAGE[damage]
    do(last)
    found, remark = checkpoint_to_resume(last)
    assert found == best
    assert remark.endswith(f"; going on from {best}")
    with pytest.raises(InputError, match=message):
        raise InputError(remark)
    do(best)
    with pytest.raises(InputError, match=f"{message}.*; no other checkpoint in .* is whole"):
        checkpoint_to_resume(last)


def test_of_a_folder_of_runs_the_newest_last_checkpoint_is_resumed(
    last: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for version in range(3):
        shutil.copytree(last.parent, runs / f"version_{version}/checkpoints")
        for name in ("best", "last"):
            time = version if name == "last" else version + 10
            os.utime(runs / f"version_{version}/checkpoints/{name}.ckpt", (time, time))
    (runs / "version_3/checkpoints").mkdir(parents=True)
    newest, older = (runs / f"version_{version}/checkpoints/last.ckpt" for version in (2, 1))
    assert checkpoint_to_resume(runs) == (newest, None)
    newest.write_bytes(b"")
    assert checkpoint_to_resume(runs) == (older, f"{newest} is empty: whoever wrote it was cut off"
                                          f"; going on from {older}")  # fmt: skip
    with pytest.raises(InputError, match="there is no checkpoint in"):
        checkpoint_to_resume(runs / "version_3")
    with pytest.raises(InputError, match="there is no checkpoint"):
        checkpoint_to_resume(runs / "version_4/checkpoints/last.ckpt")


def test_weights_alone_are_nothing_to_resume_from(last: Path) -> None:
    content = torch.load(last, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, last)
    with pytest.raises(InputError, match="cannot be resumed from: it has no optimizer_states"):
        trainer(last.parent, LastCheckpoint(), max_steps=9).fit(module(), data(), ckpt_path=last)


class Losses(L.Callback):
    """Records the losses, and ends the run at a step as SLURM would."""

    def __init__(self, end_at: int | None = None) -> None:
        self.by_step: dict[int, float] = {}
        self.end_at = end_at

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step == self.end_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: dict, *_: object
    ) -> None:
        self.by_step[trainer.global_step] = float(outputs["loss"])


def test_sigterm_saves_the_step_and_ends_with_143_and_the_run_goes_on_as_if_uninterrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    whole, cut, resumed = Losses(), Losses(end_at=4), Losses()
    trainer(tmp_path / "whole", LastCheckpoint(), whole, max_steps=8).fit(module(), data())
    with pytest.raises(SystemExit) as ended:
        trainer(tmp_path, LastCheckpoint(), cut, max_steps=8).fit(module(), data())
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    last = tmp_path / "checkpoints/last.ckpt"
    assert f"SIGTERM: step 5 is kept in {last}" in capsys.readouterr().out
    assert load_checkpoint(last)["global_step"] == 5
    trainer(tmp_path / "again", LastCheckpoint(), resumed, max_steps=8).fit(
        module(), data(), ckpt_path=last
    )
    assert cut.by_step | resumed.by_step == whole.by_step
    assert set(resumed.by_step) == {6, 7, 8}
