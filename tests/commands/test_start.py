"""The trainer's commands start from the weights that are meant, or say that there are none."""

import sys
from pathlib import Path

import jaxtyping
import lightning as L
import pandas as pd
import pytest
import torch
from helpers import random_task
from torch.utils.data import DataLoader

from npbench.cli import main
from npbench.training import MetaRegression

pytestmark = pytest.mark.usefixtures("as_a_user")

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config", str(ROOT / "configs/gp/cmanp-small.yaml"), "--model.model.num_layers", "1",
    "--model.model.num_latents", "4", "--model.model.num_block_latents", "4",
    "--data.num_val_tasks", "4", "--data.num_test_tasks", "4", "--trainer.accelerator", "cpu",
    "--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false",
    "--trainer.callbacks", "null", "--trainer.log_every_n_steps", "1",
]  # fmt: skip


class OtherData(L.LightningDataModule):
    """Tasks from loaders without a state, as data modules of other packages have them."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader([random_task() for _ in range(4)], batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()


def root(folder: Path) -> list[str]:
    return ["--trainer.default_root_dir", str(folder)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["npbench"])
        patched.setattr(jaxtyping.config, "jaxtyping_disable", True)
        main(["fit", *SMALL, *root(folder), "--trainer.max_steps", "2"])
    return folder / "version_0"


@pytest.fixture
def on_other_data(run: Path, tmp_path: Path) -> list[str]:
    """The configuration of that run, on other data."""
    config = tmp_path / "other.yaml"
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    start = lines.index("data:\n")
    stop = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(" "))
    sys.modules["other_data"] = sys.modules[__name__]
    lines[start:stop] = ["data:\n", "  class_path: other_data.OtherData\n"]
    config.write_text("".join(lines))
    return ["--config", str(config), *root(tmp_path)]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 1
    message, hint = capsys.readouterr().err.splitlines()[-2:]
    assert hint == "(NPBENCH_TRACEBACK=1 shows where it arose)"
    return message


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_random_weights_are_not_evaluated(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert error_of([command, *SMALL, *root(tmp_path)], capsys) == (
        f"npbench: error: npbench {command} takes the weights of a checkpoint, and none was given: "
        f"add --ckpt_path RUN/checkpoints/best.ckpt, or --ckpt_path none for random weights"
    )
    assert not list(tmp_path.iterdir())


def test_random_weights_are_evaluated_where_they_are_meant(tmp_path: Path) -> None:
    main(["test", *SMALL, *root(tmp_path), "--ckpt_path", "none"])
    metrics = pd.read_csv(tmp_path / "version_0/metrics.csv")
    assert metrics["test/log_likelihood"].notna().any()


def test_a_command_takes_the_configuration_of_a_run_of_every_other(
    run: Path, tmp_path: Path
) -> None:
    """Which holds the arguments of that command too, such as `verbose` of `test`."""
    best = ["--ckpt_path", str(run / "checkpoints/best.ckpt")]
    config = run / "config.yaml"
    for command in ("test", "predict"):
        main([command, "--config", str(config), *best, *root(tmp_path / command)])
        config = max((tmp_path / command).glob("*/config.yaml"), key=lambda path: path.parent.name)
    steps = ["--trainer.max_steps", "1", "--ckpt_path", "none"]
    main(["fit", "--config", str(config), *root(tmp_path / "fit"), *steps])


def test_a_new_run_begins_with_the_weights_alone(
    run: Path, on_other_data: list[str], tmp_path: Path
) -> None:
    still = ["--trainer.max_steps", "1", "--model.optimizer.lr", "0", "--model.optimizer.adam_lr",
             "0"]  # fmt: skip
    for start in (run, run / "checkpoints/best.ckpt"):
        main(["fit", *on_other_data, *still, "--init_from", str(start)])
        (last,) = tmp_path.glob("version_*/checkpoints/last.ckpt")
        content = torch.load(last, weights_only=True)
        assert content["global_step"] == 1
        expected = weights(run / "checkpoints/best.ckpt")
        assert all(torch.equal(content["state_dict"][name], expected[name]) for name in expected)
        config = last.parents[1] / "config.yaml"
        last = last.rename(tmp_path / "last.ckpt")
    # Its own configuration, which names where it began, takes it up where it was.
    more = ["--trainer.max_steps", "2", "--ckpt_path", str(last)]
    main(["fit", "--config", str(config), *more])
    (last,) = tmp_path.glob("version_*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_a_run_goes_on_with_its_own_data_only(
    run: Path, on_other_data: list[str], capsys: pytest.CaptureFixture
) -> None:
    last = str(run / "checkpoints/last.ckpt")
    message = error_of(["fit", *on_other_data, "--ckpt_path", last], capsys)
    assert "of a run on datamodules.GPDataModule, and this run's data is " in message
    assert "give --init_from CKPT in place of --ckpt_path CKPT" in message


@pytest.mark.parametrize("change", ["data", "optimizer"])
def test_where_a_checkpoint_cannot_be_resumed_the_way_out_is_named(
    change: str, run: Path, on_other_data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of a release that does not say what data it was on; and with another optimiser."""
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    del content["data"]
    last = tmp_path / "last.ckpt"
    torch.save(content, last)
    changed = on_other_data
    if change == "optimizer":
        changed = [*SMALL, *root(tmp_path), "--model.optimizer", "torch.optim.SGD"]
    message = error_of(
        ["fit", *changed, "--trainer.max_steps", "4", "--ckpt_path", str(last)], capsys
    )
    assert message.startswith(f"npbench: error: {last} cannot be resumed from with this config")
    assert message.endswith(f"; --init_from {last} begins a new run with its weights alone")


def test_what_no_run_can_begin_with_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit = ["fit", *SMALL, *root(tmp_path)]
    best, damaged = str(run / "checkpoints/best.ckpt"), tmp_path / "damaged.ckpt"
    damaged.write_text("nothing")
    larger = error_of([*fit, "--init_from", best, "--model.model.num_latents", "5"], capsys)
    assert "the checkpoint is of another model: num_latents is 4 there and 5 here" in larger
    assert f"{damaged} is damaged" in error_of([*fit, "--init_from", str(damaged)], capsys)
    assert "is neither a checkpoint" in error_of([*fit, "--init_from", "no.ckpt"], capsys)


def test_an_error_after_resuming_is_no_matter_of_the_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(MetaRegression, "training_step", fail)
    options = ["--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.max_steps", "4"]
    with pytest.raises(RuntimeError, match="a bug"):
        main(["fit", *SMALL, *root(tmp_path), *options])


def test_from_python_any_data_may_be_tested_on(run: Path, tmp_path: Path) -> None:
    best = run / "checkpoints/best.ckpt"
    module = MetaRegression.load_from_checkpoint(best, weights_only=True)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.validate(module, datamodule=OtherData(), ckpt_path=best, weights_only=True)
