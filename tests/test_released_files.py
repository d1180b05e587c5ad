"""Files of earlier releases still do what they did.

Each release leaves a folder in `tests/released/` which its own code has made, and which stays as it
is. All are of tiny models:

- `run.ckpt` and `config.yaml`: of `npbench fit` on `configs/gp/cmanp-small.yaml`, after two steps;
- `events.ckpt` and `events.yaml`: of `npbench fit` on `configs/events/hawkes/cmhp.yaml`, likewise;
- `python.ckpt`: a CMANP, saved from Python by a trainer;
- `state.safetensors`: that model's state of the context below, saved with the model;
- `official.ckpt`: of `npbench import-official`;
- `facts.json`: what the models predicted then.
"""

import json
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_close
from torch import Tensor

from datamodules import GPDataModule
from npbench.cli import main
from npbench.models import CMANP, CMHP, CMANPState, NeuralProcess
from npbench.training import EventPrediction, MetaRegression

pytestmark = pytest.mark.usefixtures("as_a_user")

RELEASES = sorted((Path(__file__).parent / "released").iterdir())
TOLERANCE = 1e-6

X = torch.linspace(-2, 2, 6).reshape(1, -1, 1)
Y = torch.sin(3 * X)
XT = torch.linspace(-1.9, 1.9, 5).reshape(1, -1, 1)
TIMES, MARKS = torch.tensor([[0.5, 1.0, 2.5, 2.75]]), torch.tensor([[0, 1, 1, 0]])

# The facts that hold of each checkpoint of regression.
FACTS = {
    "python": {"mean": "mean", "stddev": "std"},
    "run": {"mean": "run_mean"},
    "official": {"mean": "official_mean"},
}
RUNS = {"run": "config.yaml", "events": "events.yaml"}


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the folder of a release."""
    return Path(shutil.copytree(request.param, tmp_path / "release"))


def assert_as_then(release: Path, name: str, values: Tensor | np.ndarray | pd.Series) -> None:
    expected = json.loads((release / "facts.json").read_text())[name]
    actual = np.asarray(values).flatten()
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def module_of(checkpoint: Path) -> MetaRegression:
    loaded = MetaRegression.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    return loaded.eval()


def python_model(release: Path) -> NeuralProcess:
    return module_of(release / "python.ckpt").model


def trainer(folder: Path, **options: object) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)


def small_data() -> GPDataModule:
    return GPDataModule(batch_size=4, steps_per_epoch=2, num_val_tasks=4, num_test_tasks=8)


def command(name: str, release: Path, run: str, *options: str) -> Path:
    """A command of the trainer on a run's own configuration and checkpoint; the new folder."""
    root = release.with_name(f"{name}-{run}")
    arguments = [
        "--config", str(release / RUNS[run]), "--ckpt_path", str(release / f"{run}.ckpt"),
        "--trainer.default_root_dir", str(root),
    ]  # fmt: skip
    if run == "run":
        arguments += ["--data.num_test_tasks", "8"]
    assert main([name, *arguments, *options]) is None
    return root / "version_0"


@pytest.mark.parametrize("name", FACTS)
def test_a_checkpoint_predicts_as_it_did(name: str, release: Path) -> None:
    model = module_of(release / f"{name}.ckpt").model
    assert type(model) is CMANP
    with torch.no_grad():
        prediction = model.query(model.condition(X, Y), XT)
    for statistic, fact in FACTS[name].items():
        assert_as_then(release, fact, getattr(prediction, statistic))


def test_a_checkpoint_of_events_predicts_as_it_did(release: Path) -> None:
    loaded = EventPrediction.load_from_checkpoint(release / "events.ckpt", weights_only=True)
    model = loaded.model.cpu().eval()
    assert type(model) is CMHP
    with torch.no_grad():
        prediction = model.query(model.condition(TIMES, MARKS))
    assert_as_then(release, "events_median", prediction.median)
    assert_as_then(release, "events_mark_probs", prediction.mark_probs)


@pytest.mark.parametrize("name", FACTS)
def test_a_checkpoint_is_tested_and_trained_further_from_python(name: str, release: Path) -> None:
    """With the optimiser that Python would take, where the checkpoint has no state of another."""
    path = release / f"{name}.ckpt"
    module = MetaRegression(type(module_of(path).model)(**module_of(path).model.hparams))
    options = {"ckpt_path": path, "weights_only": True}
    (results,) = trainer(release).test(module, small_data(), **options)
    assert np.isfinite(list(results.values())).all()
    for mine, theirs in zip(module.parameters(), module_of(path).parameters(), strict=True):
        assert torch.equal(mine, theirs)
    if name != "run":  # whose optimiser is in its configuration
        run = trainer(release, max_steps=2, limit_val_batches=0)
        run.fit(module, small_data(), **options)
        assert run.global_step == 2


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_tested_by_its_own_configuration(run: str, release: Path) -> None:
    folder = command("test", release, run)
    metrics = pd.read_csv(folder / "metrics.csv")
    assert np.isfinite(metrics.filter(like="test/")).all(axis=None)
    assert metrics.filter(like="test/").size


@pytest.mark.parametrize("run", RUNS)
def test_a_run_goes_on_where_it_was(run: str, release: Path) -> None:
    options = ["--trainer.max_steps", "5", "--trainer.log_every_n_steps", "1"]
    folder = command("fit", release, run, *options)
    before, after = (
        torch.load(path, weights_only=True)
        for path in (release / f"{run}.ckpt", folder / "checkpoints" / "last.ckpt")
    )
    assert (before["global_step"], after["global_step"]) == (2, 5)
    losses = pd.read_csv(folder / "metrics.csv")["train/loss"].dropna()
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert before["state_dict"].keys() == after["state_dict"].keys()
    there = [checkpoint["hyper_parameters"]["model"] for checkpoint in (before, after)]
    assert there[0]["init_args"].items() <= there[1]["init_args"].items()
    assert there[1]["class_path"] == f"npbench.models.{there[0]['class_path'].rpartition('.')[2]}"


def test_a_state_is_loaded_with_its_model_and_answers_as_it_did(release: Path) -> None:
    model, path = python_model(release), release / "state.safetensors"
    with torch.no_grad():
        state = CMANPState.load(path, model)
        for each in (state, CMANPState.load(path)):
            prediction = model.query(each, XT)
            assert_as_then(release, "mean", prediction.mean)
            assert_as_then(release, "std", prediction.stddev)
        updated = model.update(state, X + 0.1, Y)
    updated.save(path, model)
    assert CMANPState.load(path, model).batch_size == 1


def test_a_state_of_another_model_is_refused(release: Path) -> None:
    model = python_model(release)
    with torch.no_grad():
        model.latents[0, 0] += 1e-6
    for other in (model, module_of(release / "official.ckpt").model):
        with pytest.raises(ValueError, match="of another model, or of other weights"):
            CMANPState.load(release / "state.safetensors", other)


def query(release: Path, state: Path) -> pd.DataFrame:
    """`npbench query` at the targets."""
    targets, out = release / "targets.csv", release / "predictions.csv"
    pd.DataFrame({"x": XT.flatten().double()}).to_csv(targets, index=False)
    files = ["--ckpt", release / "python.ckpt", "--state", state, "--targets", targets]
    arguments = [*files, "--out", out, "--x", "x", "--device", "cpu"]
    assert main(["query", *map(str, arguments)]) is None
    return pd.read_csv(out)


def test_a_state_is_queried_by_the_command(release: Path) -> None:
    predictions = query(release, release / "state.safetensors")
    assert_as_then(release, "mean", predictions["y0_mean"])
    assert_as_then(release, "std", predictions["y0_std"])


def condition(release: Path, first: int, *options: object) -> Path:
    """`npbench condition` on the context from a point on; the new state."""
    data, out = release / "points.csv", release / "new.safetensors"
    points = pd.DataFrame({"x": X.flatten().double(), "y": Y.flatten().double()})
    points[first:].to_csv(data, index=False)
    arguments = ["--data", data, "--ckpt", release / "python.ckpt", "--out", out, *options]
    columns = ["--x", "x", "--y", "y", "--device", "cpu"]
    assert main(["condition", *map(str, arguments), *columns]) is None
    return out


def test_a_checkpoint_conditions_on_a_table_as_it_did(release: Path) -> None:
    predictions = query(release, condition(release, 0))
    assert_as_then(release, "mean", predictions["y_mean"])
    assert_as_then(release, "std", predictions["y_std"])


def test_points_are_added_to_a_state_by_the_command(release: Path) -> None:
    model, path = python_model(release), release / "state.safetensors"
    state = CMANPState.load(condition(release, 2, "--state", path), model)
    with torch.no_grad():
        expected = model.update(CMANPState.load(path, model), X[:, 2:], Y[:, 2:])
    assert_close(model.query(state, XT).mean, model.query(expected, XT).mean)
