"""Keep files of this release in tests/released/VERSION, which the tests of later ones read.

    python .github/keep_files.py

Run it once for each release, from the root of the checkout. What each file is stands in
tests/test_released_files.py. A folder that is there already stays as it is.
"""

import json
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from npbench.cli import main as npbench
from npbench.interop import official
from npbench.models import CMANP
from npbench.training import EventPrediction, MetaRegression
from npbench.training.lightning_parts import save_untrained

ROOT = Path(__file__).parents[1]
# Of the checkout come this release's own code, and the golden values of the official weights.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
_TINY = {"dim_model": 8, "num_heads": 2, "num_layers": 1, "dim_feedforward": 8}
_LATENTS = {"num_latents": 4, "num_block_latents": 4}
_SHORT = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--data.batch_size", "2",
          "--data.num_val_tasks", "4", "--trainer.enable_progress_bar", "false",
          "--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "null",
          "--trainer.enable_model_summary", "false"]  # fmt: skip

X = torch.linspace(-2, 2, 6).reshape(1, -1, 1)
Y = torch.sin(3 * X)
XT = torch.linspace(-1.9, 1.9, 5).reshape(1, -1, 1)
TIMES, MARKS = torch.tensor([[0.5, 1.0, 2.5, 2.75]]), torch.tensor([[0, 1, 1, 0]])


def main() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    kept = ROOT / "tests/released" / version
    kept.mkdir()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as runs:
        options = _SHORT + fields(_TINY | _LATENTS) + ["--data.steps_per_epoch", "2"]
        train("configs/gp/cmanp-small.yaml", Path(runs), options, kept / "run.ckpt")
        events = [word.replace("num_val_tasks", "num_val") for word in _SHORT]
        events += fields(_TINY | {"num_latents": 2, "num_block_latents": 2, "num_components": 2})
        events += ["--data.num_train", "8", "--data.num_test", "4"]
        train("configs/events/hawkes/cmhp.yaml", Path(runs), events, kept / "events.ckpt")
    (kept / "run.yaml").rename(kept / "config.yaml")

    model = CMANP(1, 1, **_TINY, **_LATENTS, embed_depth=2).eval()
    save_untrained(MetaRegression(model), kept / "python.ckpt")
    with torch.no_grad():
        model.condition(X, Y).save(kept / "state.safetensors", model)
        facts = {"mean": model(X, Y, XT).mean, "std": model(X, Y, XT).stddev}
    import_official(kept)
    for name in ("official", "run"):
        other = MetaRegression.load_from_checkpoint(kept / f"{name}.ckpt").model.cpu().eval()
        with torch.no_grad():
            facts[f"{name}_mean"] = other(X, Y, XT).mean
    forecaster = EventPrediction.load_from_checkpoint(kept / "events.ckpt").model.cpu().eval()
    with torch.no_grad():
        forecast = forecaster.query(forecaster.condition(TIMES, MARKS))
    facts |= {"events_median": forecast.median, "events_mark_probs": forecast.mark_probs}
    listed = {name: as_list(value) for name, value in facts.items()}
    (kept / "facts.json").write_text(json.dumps(listed, indent=1) + "\n")


def fields(values: dict[str, Any]) -> list[str]:
    """Options of the command line that set fields of the model."""
    return [word for key, value in values.items() for word in (f"--model.model.{key}", str(value))]


def train(config: str, runs: Path, options: list[str], kept: Path) -> None:
    """Keep the checkpoint of a run of two steps, and beside it the run's configuration."""
    folder = runs / kept.stem
    npbench(["fit", "--config", config, "--trainer.default_root_dir", str(folder), *options])
    shutil.copy(folder / "version_0/checkpoints/last.ckpt", kept)
    content = (folder / "version_0/config.yaml").read_text()
    kept.with_suffix(".yaml").write_text(content.replace(str(runs), "runs"))


def import_official(kept: Path) -> None:
    """The checkpoint that `npbench import-official` makes of the weights in tests/golden."""
    from helpers import golden  # below tests/, which is found as soon as this file runs

    hparams, weights, *_ = golden("cmanp")
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model": weights}, Path(folder, "ckpt.tar"))
        sizes = official.load("cmanp", hparams, weights).hparams
        model = {"class_path": "npbench.models.CMANP", "init_args": dict(sizes)}
        module = {"class_path": "npbench.training.MetaRegression", "init_args": {"model": model}}
        Path(folder, "config.yaml").write_text(yaml.safe_dump({"model": module}))
        npbench(["import-official", f"{folder}/ckpt.tar", "--model", "cmanp",
                 "--config", f"{folder}/config.yaml",
                 "--out", f"{kept}/official.ckpt"])  # fmt: skip


def as_list(values: Tensor) -> list[float]:
    return values.flatten().tolist()


if __name__ == "__main__":
    main()
