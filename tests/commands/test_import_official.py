import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import assert_same_prediction, random_points

from npbench.cli import main
from npbench.interop import official
from npbench.training import MetaRegression

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture
def golden(shared: Path, tmp_path: Path) -> Any:
    """An official model of this name, its checkpoint, and our configuration of it."""

    def make(name: str) -> tuple[Any, Path, Path]:
        with np.load(shared / "golden" / f"{name}.npz") as file:
            hparams = json.loads(str(file["hparams"]))
            weights = {k[2:]: torch.from_numpy(file[k]) for k in file.files if k[:2] == "w/"}
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
    golden: Any, name: str, tmp_path: Path
) -> None:
    model, checkpoint, config = golden(name)
    arguments = [str(checkpoint), "--model", name, "--config", str(config)]
    assert main(["import-official", *arguments]) is None
    imported = tmp_path / f"npbench-{name}.ckpt"
    assert not list(tmp_path.glob("*.partial"))

    ours = MetaRegression.load_from_checkpoint(imported).model.eval()
    x, y = random_points(2, 6)
    predictions = []
    for each in (ours, model):
        torch.manual_seed(0)
        predictions.append(each(x, y, x))
    assert_same_prediction(*predictions, 0.0)

    assert main(["test", "--config", str(config), "--ckpt_path", str(imported)]) is None


def test_mistakes_end_in_one_sentence(
    golden: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, checkpoint, config = golden("bnp")
    text = checkpoint.with_name("notes.txt")
    text.write_text("no checkpoint")
    wide = tmp_path / "wide.yaml"
    wide.write_text(config.read_text().replace("dim_hidden: 32", "dim_hidden: 16"))
    for (path, name, described), message in {
        (checkpoint, "bnq", config): "unknown official model 'bnq'; known: cmanp,",
        (checkpoint, "cnp", config): "cnp is a CNP, not a BNP",
        (checkpoint, "bnp", wide): "of another shape: encoder.pre.0.0.weight [32, 2], not [16, 2]",
        (tmp_path / "none.tar", "bnp", config): "none.tar",
        (text, "bnp", config): "holds more than tensors, or is no checkpoint",
        (checkpoint, "bnp", tmp_path / "none.yaml"): "none.yaml",
    }.items():
        out = tmp_path / "out.ckpt"
        arguments = [str(path), "--model", name, "--config", str(described), "--out", str(out)]
        with pytest.raises(SystemExit) as exit_:
            main(["import-official", *arguments])
        assert exit_.value.code == 1
        assert message in capsys.readouterr().err
        assert not out.exists()
