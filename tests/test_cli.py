"""The command as a user meets it."""

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from npbench.cli import main
from npbench.commands import COMMANDS
from npbench.messages import explain, quieten
from npbench.optim import MuonAdam
from npbench.training import MetaRegression

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/gp/cmanp-small.yaml")
SMALL = [
    "--config", CONFIG, "--model.model.num_layers", "1", "--model.model.num_latents", "4",
    "--model.model.num_block_latents", "4", "--data.steps_per_epoch", "10",
    "--data.num_val_tasks", "16", "--data.num_test_tasks", "16", "--trainer.accelerator", "cpu",
    "--trainer.log_every_n_steps", "1", "--trainer.enable_model_summary", "false",
]  # fmt: skip


def error_of(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code not in (0, None)
    output = capsys.readouterr().err
    assert "Traceback" not in output
    (message,) = (line for line in output.splitlines() if line.startswith("npbench: error: "))
    return message


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a command is missing; choose from fit, validate, test, predict, compare, profile, "),
        (["import-oficial", "ckpt.tar"], "did you mean import-official?"),
        (["tets", "--config", CONFIG], "did you mean test?"),
        (["fit", "--config", "no.yaml"], "File does not exist"),
        (["fit", *SMALL, "--trainer.max_stepz", "1"], "did you mean trainer.max_steps?"),
        (["fit", *SMALL, "--model.model.num_layerz", "1"], "did you mean num_layers?"),
        (["fit", *SMALL, "--model.model.num_layers", "two"], "num_layers"),
        (["fit", *SMALL, "--model.model.num_heads", "5"], "does not split into num_heads=5"),
        (["fit", *SMALL, "--data.batch_size", "0"], "batch_size=0 must be 1 or more"),
        (["fit", *SMALL, "--ckpt_path", "no.ckpt"], "no.ckpt"),
        (["test", *SMALL, "--ckpt_path", "no.ckpt"], "no.ckpt"),
        (["fit", *SMALL, "--model.model", "npbench.models.NoModel"], "no attribute 'NoModel'"),
        (["fit", *SMALL, "--model.model", "npbench.models.CMAPN"], "mean npbench.models.CMANP?"),
        (["fit", *SMALL, "--model.model", "mine.Model"], "change to the folder that holds mine, "),
        (["fit", *SMALL, "--data.batch_size", "null"], "data.batch_size is null, and takes a value "
         "of type int; leave it out for its default"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) and len(value) > 1 else None,
)  # fmt: skip
def test_a_mistake_ends_in_one_clear_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    if arguments:
        arguments = [*arguments, "--trainer.default_root_dir", str(tmp_path)]
    assert message in error_of(arguments, capsys)


@pytest.mark.usefixtures("as_a_user")
def test_a_misspelt_field_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text(Path(CONFIG).read_text().replace("max_steps", "max_step"))
    for name in ("rbf", "rbf-smooth"):
        kernel = Path(CONFIG).parent / f"kernels/{name}.yaml"
        (tmp_path / "kernels").mkdir(exist_ok=True)
        (tmp_path / f"kernels/{name}.yaml").write_text(kernel.read_text())
    message = error_of(["fit", "--config", str(config)], capsys)
    assert "trainer.max_step'" in message
    assert "did you mean trainer.max_steps?" in message


@pytest.mark.usefixtures("as_a_user")
def test_a_folder_that_cannot_be_written_is_named_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    arguments = ["fit", *SMALL, "--trainer.default_root_dir", str(blocked / "runs")]
    assert str(blocked) in error_of(arguments, capsys)


def test_explain_keeps_what_says_something() -> None:
    report = (
        "Does not validate against any of the Union subtypes\nErrors:\n  - width=0 must be 1 or "
        "more\n  - Expected a <class 'NoneType'>\nGiven value type: <class 'Namespace'>"
    )
    assert explain(report) == "width=0 must be 1 or more"


def help_of(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_the_help_and_a_refusal_name_all_commands(capsys: pytest.CaptureFixture) -> None:
    output, refusal = help_of(["--help"], capsys), error_of(["no-command"], capsys)
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", output, re.MULTILINE)
        assert f" {name}," in refusal or refusal.endswith(f" {name}")
    assert "npbench fit --config configs/gp/cmanp-small.yaml\n" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command: str, capsys: pytest.CaptureFixture) -> None:
    assert help_of([command, "--help"], capsys).startswith(f"usage: npbench {command} ")


def test_the_help_of_fit_shows_npbench_s_options_and_help_trainer_those_of_lightning(
    capsys: pytest.CaptureFixture,
) -> None:
    own, all_ = help_of(["fit", "--help"], capsys), help_of(["fit", "--help-trainer"], capsys)
    assert own.count("\n") < 150 < all_.count("\n")
    assert "Train a model, with validation." in own
    for option in ("--config", "--model", "--data", "--ckpt_path", "--help-trainer"):
        assert f"\n  {option}" in own.replace("-c CONFIG, ", "")
    assert "  --trainer.accelerator" not in own
    assert "  --trainer.accelerator" in all_


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--config", CONFIG, "--model.model.help", "npbench.models.CMANP"], "--model.num_latents"),
        (["--model.help", "npbench.training.MetaRegression"], "--model.warmup_steps"),
        (["--data.help", "datamodules.GPDataModule"], "--data.batch_size"),
    ],
)
def test_the_help_of_fit_says_how_to_list_fields(
    arguments: list[str], field: str, capsys: pytest.CaptureFixture
) -> None:
    assert " ".join(arguments[-2:]) in help_of(["fit", "--help"], capsys)
    assert field in help_of(["fit", *arguments], capsys)


def test_lightning_s_lines_that_tell_nothing_are_left_out() -> None:
    quieten()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def is_shown(message: str) -> bool:
        return bool(logger.filter(logging.makeLogRecord({"msg": message})))

    assert is_shown("GPU available: False, used: False")
    assert not is_shown("TPU available: False, using: 0 TPU cores")
    assert not is_shown("Loaded model weights from the checkpoint at best.ckpt")


@pytest.mark.usefixtures("as_a_user")
def test_fit_ends_with_the_run_and_the_command_that_tests_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path / "a folder")]
    main(["fit", *SMALL, *root, "--trainer.max_steps", "10"])
    *_, where, command = capsys.readouterr().out.splitlines()
    assert where == f"the run is in {tmp_path}/a folder/version_0; test it by"
    program, *arguments = shlex.split(command)
    assert (program, arguments[0]) == ("npbench", "test")
    main(arguments)
    (rmse,) = re.findall(r"rmse +(\S+)", capsys.readouterr().out)
    metrics = pd.read_csv(tmp_path / "a folder/version_1/metrics.csv")
    assert rmse == f"{metrics['test/rmse'].item():.4g}"


@pytest.mark.usefixtures("as_a_user")
def test_fit_test_and_predict_leave_their_files(tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path)]
    main(["fit", *SMALL, *root, "--trainer.max_steps", "20"])
    run = tmp_path / "version_0"
    files = ["config.yaml", "metrics.csv", "figures/step-000020.png"]
    for name in [*files, "checkpoints/best.ckpt", "checkpoints/last.ckpt"]:
        assert (run / name).is_file(), name
    assert list(run.glob("events.out.tfevents.*"))
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["val/log_likelihood"].count() == 2

    best = str(run / "checkpoints/best.ckpt")
    module = MetaRegression.load_from_checkpoint(best)
    optimizer = module.optimizer(module.model.parameters())
    assert isinstance(optimizer, MuonAdam)
    assert optimizer.param_groups[0]["lr"] == 0.01
    main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", best])
    assert "test/gap" in pd.read_csv(tmp_path / "version_1/metrics.csv")
    out = tmp_path / "predictions.parquet"
    main(["predict", "--config", str(run / "config.yaml"), "--ckpt_path", best,
          "--predictions.path", str(out)])  # fmt: skip
    assert pd.read_parquet(out)["task"].nunique() == 16


@pytest.mark.usefixtures("as_a_user")
def test_class_paths_may_name_modules_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_alone.py").write_text("from npbench.models import CNP as MyModel\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    model = ["--model.model", "mine_alone.MyModel", "--model.model.dim_x", "1",
             "--model.model.dim_y", "1"]  # fmt: skip
    options = ["--config", CONFIG, "--data.num_val_tasks", "4", "--trainer.callbacks", "null"]
    main(["fit", *options, *model, "--trainer.default_root_dir", str(tmp_path),
          "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"])  # fmt: skip
    assert (tmp_path / "version_0/checkpoints/last.ckpt").is_file()


def losses(run: Path) -> pd.Series:
    metrics = pd.read_csv(run / "metrics.csv").dropna(subset="train/loss")
    return metrics.set_index("step")["train/loss"]


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_losses_of_the_uninterrupted_one(tmp_path: Path) -> None:
    options = ["--trainer.max_steps", "60", "--last_checkpoint.every_n_train_steps", "7",
               "--model.model.dropout", "0.1"]  # fmt: skip
    command = [sys.executable, "-m", "npbench", "fit", *SMALL, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str, *more: str) -> subprocess.Popen:
        root = ["--trainer.default_root_dir", str(tmp_path / name)]
        return subprocess.Popen(
            [*command, *root, *more], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )

    whole, cut = start("whole"), start("cut")
    last = tmp_path / "cut/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    cut.send_signal(signal.SIGKILL)
    assert cut.wait() == -signal.SIGKILL
    assert whole.wait() == 0
    assert start("cut", "--ckpt_path", str(last)).wait() == 0
    resumed = losses(tmp_path / "cut/version_1")
    assert 0 < len(resumed) < 60
    pd.testing.assert_series_equal(
        resumed, losses(tmp_path / "whole/version_0").loc[resumed.index], rtol=0, atol=1e-6
    )


@pytest.mark.slow
def test_two_processes_train_and_evaluate_to_the_result_of_one(tmp_path: Path) -> None:
    def run(command: str, *more: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-m", "npbench", command, *SMALL, *more], cwd=ROOT, timeout=150,
            env=environment, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip

    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    root = ["--trainer.default_root_dir", str(tmp_path), "--data.num_test_tasks", "19"]
    run("fit", *root, *two, "--trainer.max_steps", "4")
    ckpt = ["--ckpt_path", str(tmp_path / "version_0/checkpoints/best.ckpt")]
    run("test", *root, *two, *ckpt)
    run("test", *root, *ckpt)
    results = [pd.read_csv(tmp_path / f"version_{i}/metrics.csv").iloc[0] for i in (1, 2)]
    pd.testing.assert_series_equal(*results, rtol=1e-5)


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("npbench.commands.compare.run", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main(["compare"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "npbench: interrupted\n"
