import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import assert_same_prediction, golden, random_points

from npbench.cli import main
from npbench.interop import official
from npbench.training import MetaRegression

pytestmark = pytest.mark.usefixtures("as_a_user")


def error_of(arguments: list[str], code: int, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["import-official", *arguments])
    assert exit_.value.code == code
    message, _ = capsys.readouterr().err.splitlines()
    assert message.startswith("npbench: error: ")
    return message


@pytest.fixture
def imported(tmp_path: Path) -> Any:
    """An official model of this name, its checkpoint, and our configuration of it."""

    def make(name: str) -> tuple[Any, Path, Path]:
        hparams, weights, *_ = golden(name)
        model = official.load(name, hparams, weights)
        checkpoint = tmp_path / "ckpt.tar"
        torch.save({"model": weights, "epoch": 3}, checkpoint)
        described = {
            "class_path": f"npbench.models.{type(model).__name__}",
            "init_args": model.hparams,
        }
        module = {"class_path": "npbench.training.MetaRegression", "init_args": {}}
        module["init_args"]["model"] = described
        config = tmp_path / "config.yaml"
        data = {"num_test_tasks": 4, "eval_batch_size": 4}
        config.write_text(
            yaml.safe_dump(
                {
                    "model": module,
                    "data": {"class_path": "datamodules.GPDataModule", "init_args": data},
                    "trainer": {"default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu"},
                }
            )
        )
        return model, checkpoint, config

    return make


@pytest.mark.parametrize("name", ["cmanpand", "lbanp", "tnpnd", "banp"])
def test_an_imported_checkpoint_is_the_official_model(
    imported: Any, name: str, tmp_path: Path
) -> None:
    model, checkpoint, config = imported(name)
    arguments = [str(checkpoint), "--model", name, "--config", str(config)]
    assert main(["import-official", *arguments]) is None
    imported = tmp_path / f"npbench-{name}.ckpt"

    ours = MetaRegression.load_from_checkpoint(imported).model.eval()
    x, y = random_points(2, 6)
    predictions = []
    for each in (ours, model):
        torch.manual_seed(0)
        predictions.append(each(x, y, x))
    assert_same_prediction(*predictions, 0.0)

    assert main(["test", "--config", str(config), "--ckpt_path", str(imported)]) is None


def test_fields_of_the_model_can_be_set(
    imported: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, checkpoint, config = imported("cnp")
    config.write_text(config.read_text().replace("dim_hidden: 32", "dim_hidden: 16"))
    fields = ["--model.model.dim_hidden", "32"]
    out = tmp_path / "new folder" / "cnp.ckpt"
    arguments = [str(checkpoint), "--model", "cnp", "--config", str(config), "--out", str(out)]
    assert main(["import-official", *arguments, *fields]) is None
    assert MetaRegression.load_from_checkpoint(out).model.hparams["dim_hidden"] == 32

    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert printed == ["npbench", "test", "--config", str(config), *fields, "--ckpt_path", str(out)]
    assert main(printed[1:]) is None


def test_training_starts_from_an_imported_checkpoint(imported: Any, tmp_path: Path) -> None:
    model, checkpoint, config = imported("cnp")
    described = ["--config", str(config)]
    main(["import-official", str(checkpoint), "--model", "cnp", *described])
    assert set(tmp_path.iterdir()) == {checkpoint, config, tmp_path / "npbench-cnp.ckpt"}
    still = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    main(["fit", *described, "--ckpt_path", str(tmp_path / "npbench-cnp.ckpt"),
          "--trainer.max_steps", "2", "--data.num_val_tasks", "4",
          "--trainer.enable_model_summary", "false",
          "--model.optimizer", json.dumps(still)])  # fmt: skip
    last = next(tmp_path.rglob("last.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 2
    trained = MetaRegression.load_from_checkpoint(last).model.state_dict()
    assert all(torch.equal(trained[k], v) for k, v in model.state_dict().items())


def test_mistakes_end_in_one_sentence(
    imported: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, checkpoint, config = imported("bnp")
    text = checkpoint.with_name("notes.txt")
    text.write_text("no checkpoint")
    wide = tmp_path / "wide.yaml"
    wide.write_text(config.read_text().replace("dim_hidden: 32", "dim_hidden: 16"))
    deep = tmp_path / "deep.yaml"
    deep.write_text(f"model: {'[' * 5000}{']' * 5000}")
    other = tmp_path / "other.yaml"
    other.write_text("model: {class_path: npbench.models.BNP, init_args: {dim_x: 1, dim_y: 1}}")
    for (path, name, described), message in {
        (checkpoint, "bnq", config): "unknown official model 'bnq'; known: cmanp,",
        (checkpoint, "cnp", config): "cnp is a CNP, not a BNP",
        (checkpoint, "bnp", wide): "of another shape: encoder.pre.0.0.weight [32, 2], not [16, 2]",
        (tmp_path / "none.tar", "bnp", config): "none.tar",
        (text, "bnp", config): "holds more than tensors, or is no checkpoint",
        (tmp_path, "bnp", config): "Is a directory",
        (checkpoint, "bnp", tmp_path / "none.yaml"): "there is no",
        (checkpoint, "bnp", text): "notes.txt has no model section",
        (checkpoint, "bnp", checkpoint): "ckpt.tar is no YAML file",
        (checkpoint, "bnp", deep): "deep.yaml is nested too deeply for a configuration",
        (checkpoint, "bnp", other): "does not correspond to a subclass of MetaRegression",
    }.items():
        out = tmp_path / "out.ckpt"
        arguments = [str(path), "--model", name, "--config", str(described), "--out", str(out)]
        assert message in error_of(arguments, 1, capsys)
        assert not out.exists()


def test_a_place_that_cannot_be_written_is_named(
    imported: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, checkpoint, config = imported("cnp")
    content, folder = checkpoint.read_bytes(), tmp_path / "folder"
    folder.mkdir()
    before = set(tmp_path.iterdir())
    for out, message in {
        checkpoint: "is the official checkpoint itself",
        folder: f"{folder} cannot be written (Is a directory); what was there is as it was",
        config / "cnp.ckpt": "cnp.ckpt cannot be written",
    }.items():
        arguments = [str(checkpoint), "--model", "cnp", "--config", str(config), "--out", str(out)]
        assert message in error_of(arguments, 1, capsys)
    assert set(tmp_path.iterdir()) == before
    assert not list(folder.iterdir())
    assert checkpoint.read_bytes() == content


def test_wrong_options_end_in_one_sentence(
    imported: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, checkpoint, config = imported("cnp")
    arguments = [str(checkpoint), "--model", "cnp", "--config", str(config)]
    assert "did you mean out?" in error_of([*arguments, "--ouut", "x.ckpt"], 2, capsys)
    assert "are required: --config" in error_of(arguments[:3], 2, capsys)
    assert "more.tar" in error_of([*arguments, "more.tar"], 2, capsys)
    field = ["--model.model.dim_hiden", "32"]
    assert "did you mean dim_hidden?" in error_of([*arguments, *field], 1, capsys)


def test_a_failure_halfway_leaves_the_file_as_it_was(
    imported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, checkpoint, config = imported("cnp")
    out = tmp_path / "npbench-cnp.ckpt"
    out.write_text("the last one")
    before = set(tmp_path.iterdir())

    def write_half(path: Path, content: bytes) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(SystemExit):
        main(["import-official", str(checkpoint), "--model", "cnp", "--config", str(config)])
    assert out.read_text() == "the last one"
    assert set(tmp_path.iterdir()) == before
