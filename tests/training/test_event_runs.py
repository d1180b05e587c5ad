"""Event models under the command, as a user meets them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from helpers.event_files import long_table, random_events
from test_cli import error_of
from torch import Tensor

from datamodules import EventSequenceDataModule
from npbench import EventSequences
from npbench.cli import main
from npbench.training import EventPrediction

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/events/hawkes/thp.yaml")
FEW = [
    "--data.num_train", "33", "--data.num_val", "7", "--data.num_test", "7",
    "--data.num_events", "12", "--data.batch_size", "4", "--data.eval_batch_size", "3",
    "--model.model.dim_model", "8", "--model.model.num_components", "3",
    "--model.model.dropout", "0.1", "--trainer.accelerator", "cpu",
    "--trainer.log_every_n_steps", "1", "--trainer.enable_model_summary", "false",
]  # fmt: skip
SMALL = ["--config", CONFIG, *FEW]
STEPS = ["--trainer.max_steps", "30", "--last_checkpoint.every_n_train_steps", "7"]


@pytest.fixture(scope="module")
def run_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained for some passes over the data."""
    root = tmp_path_factory.mktemp("events")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtyping.config.jaxtyping_disable", True)
        patch.setattr("sys.argv", ["npbench"])
        main(["fit", *SMALL, *STEPS, "--trainer.default_root_dir", str(root)])
    return root / "version_0"


def test_fit_leaves_its_files(run_: Path) -> None:
    for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (run_ / name).is_file(), name


def validations(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "metrics.csv").dropna(subset="val/nll")


def test_the_best_checkpoint_is_that_of_the_least_nll(run_: Path) -> None:
    by_step = validations(run_).set_index("step")["val/nll"]
    assert len(by_step) == 3
    best = torch.load(run_ / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == by_step.idxmin() + 1


@pytest.mark.usefixtures("as_a_user")
def test_a_checkpoint_has_the_nll_that_validation_found(run_: Path, tmp_path: Path) -> None:
    """In the data's units, whatever those of the data at hand."""
    root = ["--trainer.default_root_dir", str(tmp_path), "--data.seed", "5"]
    checkpoint = ["--ckpt_path", str(run_ / "checkpoints/best.ckpt")]
    main(["validate", "--config", str(run_ / "config.yaml"), *root, *checkpoint])
    (again,) = validations(tmp_path / "version_0").filter(like="val/").to_dict("records")
    best = validations(run_).nsmallest(1, "val/nll").filter(like="val/")
    assert again == pytest.approx(best.iloc[0].to_dict(), rel=1e-5)


@pytest.mark.usefixtures("as_a_user")
def test_test_and_predict_agree(run_: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(run_ / "config.yaml"),
                 "--ckpt_path", str(run_ / "checkpoints/best.ckpt"),
                 "--trainer.default_root_dir", str(tmp_path)]  # fmt: skip
    main(["test", *arguments])
    results = pd.read_csv(tmp_path / "version_0/metrics.csv").iloc[0]
    main(["predict", *arguments, "--predictions.path", str(tmp_path / "out.parquet")])
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert frame.groupby("sequence").size().tolist() == [12] * 7
    known = frame.dropna(subset="interval")
    assert len(known) == 7 * 11
    found = {
        "nll": -known["log_likelihood"].mean(),
        "accuracy": (known["mark"] == known["mark_predicted"]).mean(),
        "rmse": ((known["interval_mean"] - known["interval"]) ** 2).mean() ** 0.5,
        "median_absolute_error": (known["interval_median"] - known["interval"]).abs().median(),
    }
    for name, value in found.items():
        assert value == pytest.approx(results[f"test/{name}"], rel=1e-5), name


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("max_length", ["null", "5"])
def test_predictions_of_a_table_are_in_its_own_terms(tmp_path: Path, max_length: str) -> None:
    """However it is cut into windows."""
    frame = long_table(random_events(30))
    frame["sequence"] = "user" + frame["sequence"].astype(str)
    frame["mark"] = frame["mark"].map({1: "buy", 2: "look", 3: "sell"})
    frame.to_csv(tmp_path / "events.csv", index=False)
    config = ["--config", str(ROOT / "configs/events/stackoverflow/thp.yaml"), *FEW[8:],
              "--data.path", str(tmp_path / "events.csv"), "--data.max_length", max_length,
              "--data.time_unit", "2", "--model.model.num_marks", "3", "--data.test_share", "0.4",
              "--trainer.default_root_dir", str(tmp_path)]  # fmt: skip
    main(["fit", *config, "--trainer.max_steps", "2"])
    checkpoint = str(tmp_path / "version_0/checkpoints/last.ckpt")
    out = tmp_path / "out.parquet"
    main(["predict", *config, "--ckpt_path", checkpoint, "--predictions.path", str(out)])
    found = pd.read_parquet(out)
    assert found["mark_predicted"].isin(["buy", "look", "sell"]).all()
    frame["event"] = frame.groupby("sequence").cumcount()
    frame["interval"] = frame.groupby("sequence")["time"].diff() / 2
    frame["time"] /= 2
    expected = frame[frame["sequence"].isin(found["sequence"]) & (frame["event"] > 0)]
    places, values = ["sequence", "event"], ["time", "mark", "interval"]
    known = found.dropna(subset="time").set_index(places)
    expected = expected.set_index(places).loc[known.index, values]
    pd.testing.assert_frame_equal(known[values], expected, check_dtype=False)
    assert 3 <= found["sequence"].nunique() < 30
    counts = frame.groupby("sequence").size()
    ahead = found[found["time"].isna()].set_index("sequence")["event"]
    assert ahead.to_dict() == counts[ahead.index].to_dict()
    assert len(found) == counts[ahead.index].sum()


@pytest.mark.usefixtures("as_a_user")
def test_marks_keep_their_meaning_on_other_data(tmp_path: Path) -> None:
    """Of a model that is loaded for a table with fewer marks, all of which is predicted."""
    words = {1: "buy", 2: "look", 3: "sell"}
    frame = long_table(random_events(30)).replace({"mark": words})
    frame.to_csv(tmp_path / "first.csv", index=False)
    later = frame[frame["mark"] != "buy"].assign(sequence=lambda rows: rows["sequence"] + "'")
    # Of one sequence there is but one event.
    later = later[(later["sequence"] != "user0'") | ~later.duplicated("sequence")]
    later.to_csv(tmp_path / "second.csv", index=False)
    config = ["--config", str(ROOT / "configs/events/stackoverflow/thp.yaml"), *FEW[8:],
              "--model.model.num_marks", "3",
              "--trainer.default_root_dir", str(tmp_path)]  # fmt: skip
    main(["fit", *config, "--trainer.max_steps", "20", "--data.path", str(tmp_path / "first.csv")])
    checkpoint = tmp_path / "version_0/checkpoints/last.ckpt"
    out = tmp_path / "out.parquet"
    main(["predict", *config, "--data.path", str(tmp_path / "second.csv"), "--data.test_share", "1",
          "--ckpt_path", str(checkpoint), "--predictions.path", str(out)])  # fmt: skip
    found = pd.read_parquet(out)
    sizes = later.groupby("sequence").size()
    assert found.groupby("sequence").size().to_dict() == sizes.to_dict()
    assert sizes["user0'"] == 1
    assert found["mark"].dropna().isin(["look", "sell"]).all()

    module = EventPrediction.load_from_checkpoint(checkpoint, weights_only=True)
    assert module.vocabulary == ["buy", "look", "sell"]
    other = {"path": tmp_path / "second.csv", "time_unit": 86400.0, "test_share": 1.0}
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    (results,) = trainer.test(module, EventSequenceDataModule(**other), verbose=False)
    nll = -found["log_likelihood"].mean()
    assert results["test/nll"] == pytest.approx(nll, rel=1e-5)
    new = pd.DataFrame({"sequence": "x", "time": [1.0, 2.0], "mark": ["buy", "hold"]})
    new.to_csv(tmp_path / "third.csv", index=False)
    data = EventSequenceDataModule(tmp_path / "third.csv", test_share=1.0)
    with pytest.raises(ValueError, match=r"'hold' is none of the 3 of the model \(buy, look, sell"):
        trainer.test(module, data)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(("cut", "workers"), [(9, 0), (9, 1), (16, 0)])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    run_: Path, tmp_path: Path, cut: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: in the middle of the first pass or the second, with dropout and a cosine."""
    root = ["--trainer.default_root_dir", str(tmp_path), "--data.num_workers", str(workers)]
    arguments = ["fit", *SMALL, *STEPS, *root]
    training_step = EventPrediction.training_step

    def fails_in_the_end(module: EventPrediction, batch: EventSequences, batch_idx: int) -> Tensor:
        if module.global_step == cut:
            raise RuntimeError("out of memory")
        return training_step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(EventPrediction, "training_step", fails_in_the_end)
        with pytest.raises(RuntimeError, match="out of memory"):
            main(arguments)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == cut - cut % 7
    main([*arguments, "--ckpt_path", str(last)])
    whole, resumed = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        for run in (run_, tmp_path / "version_1")
    )
    assert whole["global_step"] == resumed["global_step"] == 30
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name


SEVERAL = """
import json, sys
from npbench.cli import main
for arguments in json.loads(sys.argv[1]):
    main(arguments)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_user")
def test_two_processes_train_evaluate_and_predict_to_the_result_of_one(
    run_: Path, tmp_path: Path
) -> None:
    """Of seven sequences one has four, the other three."""
    ckpt = ["--ckpt_path", str(run_ / "checkpoints/best.ckpt")]

    def arguments(command: str, name: str, *options: str) -> list[str]:
        out = ["--predictions.path", str(tmp_path / f"{name}.csv")]
        root = ["--trainer.default_root_dir", str(tmp_path / name / command)]
        return [command, *SMALL, *out, *root, *options]

    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    commands = [
        arguments("test", "two", *two, *ckpt),
        arguments("predict", "two", *two, *ckpt),
        arguments("fit", "two", *two, "--trainer.max_steps", "4"),
    ]
    (tmp_path / "several.py").write_text(SEVERAL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(tmp_path / "several.py"), json.dumps(commands)],
        cwd=ROOT, timeout=180, stdout=subprocess.DEVNULL, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    main(arguments("test", "one", *ckpt))
    results = [
        pd.read_csv(tmp_path / name / "test/version_0/metrics.csv").iloc[0]
        for name in ("one", "two")
    ]
    assert {"test/nll", "test/median_absolute_error", "test/ks"} <= set(results[0].index)
    pd.testing.assert_series_equal(*results, rtol=1e-5)

    main(arguments("predict", "one", *ckpt))
    ranks = [pd.read_csv(tmp_path / name) for name in ("two.csv", "two-rank1.csv")]
    assert [sorted(set(rank["sequence"])) for rank in ranks] == [[0, 2, 4, 6], [1, 3, 5]]
    together = pd.concat(ranks).sort_values(["sequence", "event"], ignore_index=True)
    pd.testing.assert_frame_equal(together, pd.read_csv(tmp_path / "one.csv"), rtol=1e-4)

    trained = tmp_path / "two/fit/version_0"
    best = ["--ckpt_path", str(trained / "checkpoints/best.ckpt")]
    main(arguments("validate", "one", *best))
    (again,) = validations(tmp_path / "one/validate/version_0")["val/nll"]
    (found,) = validations(trained)["val/nll"]
    assert again == pytest.approx(found, rel=1e-5)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("fit", ["--model.model.num_marks", "3"], "set the model's num_marks to 2"),
        ("test", ["--model.model.num_marks", "3"], "num_marks is 2 there and 3 here"),
        ("test", ["--model.model.num_layers", "1"], "num_layers is 2 there and 1 here"),
        ("test", ["--model.model", "npbench.models.CMHP", "--model.model.num_marks", "2"],
         "it holds npbench.models.THP, this is npbench.models.CMHP"),
        ("fit", ["--model.model", "npbench.models.CNP"], "EventModel"),
        ("fit", ["--best_checkpoint.monitor", "val/rmse"], "monitor='val/rmse' needs a mode"),
        ("fit", ["--model.decya", "linear"], "decya"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)  # fmt: skip
def test_a_mistake_ends_in_one_clear_message(
    command: str, options: list[str], message: str, run_: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    arguments = [command, *SMALL, *options, "--trainer.default_root_dir", str(tmp_path)]
    if command == "test":
        arguments += ["--ckpt_path", str(run_ / "checkpoints/best.ckpt")]
    assert message in error_of(arguments, capsys)


@pytest.mark.usefixtures("as_a_user")
def test_a_checkpoint_of_regression_is_refused(
    run_: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """And those of events, by the commands for regression."""
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    few = ["--trainer.max_steps", "1", "--data.num_val_tasks", "2", "--data.batch_size", "2"]
    main(["fit", "--config", str(ROOT / "configs/gp/cnp.yaml"), *root, *few,
          "--trainer.enable_model_summary", "false"])  # fmt: skip
    regression, events = tmp_path / "version_0", run_ / "checkpoints/best.ckpt"
    message = error_of(
        ["test", *SMALL, "--ckpt_path", str(regression / "checkpoints/best.ckpt"), *root], capsys
    )
    assert "it holds npbench.models.CNP, this is npbench.models.THP" in message
    (tmp_path / "points.csv").write_text("x,y\n1,2\n")
    holds = f"{events} holds a THP, which predicts events; this command takes models of regression"
    assert holds in error_of(["compare", str(regression), str(run_)], capsys)
    condition = ["condition", "--ckpt", str(run_), "--data", str(tmp_path / "points.csv")]
    out = ["--x", "x", "--y", "y", "--out", str(tmp_path / "state.safetensors")]
    assert holds in error_of([*condition, *out], capsys)
    compare = ["compare", str(regression), "--config", str(run_ / "config.yaml")]
    message = error_of([*compare, "--out", str(tmp_path / "comparison")], capsys)
    assert "the data module gives EventSequences; npbench compare takes models and tasks" in message
