"""From a table to predictions in its own units, on the command line."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import npbench
from npbench.cli import main
from npbench.training import MetaRegression

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty days of readings, of which some outputs are missing."""
    generator, days = np.random.default_rng(0), []
    for day in range(20):
        hour = np.sort(generator.uniform(0, 24, 20))
        celsius = generator.normal(15, 5) + 4 * np.sin(2 * np.pi * (hour - 9) / 24)
        days.append(pd.DataFrame({"day": f"2024-07-{day:02d}", "hour": hour, "celsius": celsius}))
    frame = pd.concat(days, ignore_index=True)
    frame.loc[::17, "celsius"] = np.nan
    path = tmp_path_factory.mktemp("table") / "mine.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(table: Path) -> Path:
    """The folder of a run that has fine-tuned `gp-1d` on the table for two steps."""
    root = table.parent / "runs"
    words = ["--config", ROOT / "configs/table/finetune.yaml", "--data.path", table,
             "--data.x", "[hour]", "--data.y", "[celsius]", "--data.task", "day",
             "--data.num_val_tasks", "2", "--data.num_test_tasks", "4", "--data.batch_size", "2",
             "--trainer.max_steps", "2", "--trainer.accelerator", "cpu",
             "--trainer.log_every_n_steps", "1", "--model.model.frozen", "[heads.features]",
             "--model.lr_factors", "{heads.logit: 0.0}",
             "--trainer.default_root_dir", root]  # fmt: skip
    assert main(["fit", *map(str, words)]) is None
    return root / "version_0"


@pytest.fixture(scope="module")
def run_of_each(table: Path) -> Path:
    """The folder of a run on two outputs, each a function by itself, of which one is often missing
    and a thousand times as large."""
    frame = pd.read_csv(table)
    frame["sea.hPa"] = np.where(np.arange(len(frame)) % 3, 1000 + frame["hour"], np.nan)
    root = table.parent / "each"
    root.mkdir()
    frame.sample(frac=1, random_state=0).to_csv(root / "mine.csv", index=False)
    words = ["--config", ROOT / "configs/table/finetune.yaml", "--data.path", root / "mine.csv",
             "--data.x", "[hour]", "--data.y", "[celsius, sea.hPa]", "--data.task", "day",
             "--data.each_output", "true", "--data.num_val_tasks", "2",
             "--data.num_test_tasks", "4", "--data.batch_size", "2", "--trainer.max_steps", "4",
             "--trainer.accelerator", "cpu", "--trainer.default_root_dir", root]  # fmt: skip
    assert main(["fit", *map(str, words)]) is None
    return root / "version_0"


def command(name: str, run: Path, *options: str) -> None:
    words = ["--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/last.ckpt"]
    assert main([name, *map(str, words), "--trainer.default_root_dir", str(run / name), *options])\
        is None  # fmt: skip


def test_a_fine_tuned_model_keeps_the_units_and_what_was_frozen(run: Path) -> None:
    assert (run / "figures" / "step-000002.png").is_file()
    model, before = npbench.load(run), npbench.load("gp-1d")
    assert type(model) is type(before)
    assert model.columns == (["hour"], ["celsius"])
    assert 10 < model.scaling.y[0].shift < 20
    loaded = MetaRegression.load_from_checkpoint(run / "checkpoints/last.ckpt").model
    assert loaded.scaling == model.scaling
    assert torch.equal(
        model.state_dict()["heads.logit.theta"], before.state_dict()["heads.logit.theta"]
    )
    changed = {
        name.startswith("heads.features")
        for (name, a), b in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {False}


def test_metrics_and_predictions_are_in_the_units(run: Path, table: Path) -> None:
    command("test", run)
    metrics = pd.read_csv(run / "test/version_0/metrics.csv")
    # Of an error in standard deviations it would be below 1.
    assert 0.3 < metrics["test/rmse"].item() < 15
    file = ["--predictions.path", str(run / "predictions.csv")]
    command("predict", run, *file, "--predictions.quantiles", "[0.1, 0.9]")
    predictions = pd.read_csv(run / "predictions.csv")
    kinds = ["mean", "std", "q0.1", "q0.9"]
    assert list(predictions) == [
        "day", "target", "hour", *(f"celsius_{kind}" for kind in kinds), "celsius"]  # fmt: skip
    assert (predictions["celsius_q0.1"] < predictions["celsius_q0.9"]).all()
    whole = pd.read_csv(table)
    merged = predictions.merge(whole, on=["day", "hour"], suffixes=("", "_there"))
    assert len(merged) == len(predictions)
    np.testing.assert_allclose(merged["celsius"], merged["celsius_there"])


def test_outputs_that_are_functions_by_themselves_are_tested_and_predicted_in_their_units(
    run_of_each: Path,
) -> None:
    command("test", run_of_each)
    metrics = pd.read_csv(run_of_each / "test/version_0/metrics.csv").iloc[-1]
    # The pressure rises by an hPa an hour, and runs from 1000 to 1024.
    for name in ("celsius", "sea.hPa"):
        assert 0.1 < metrics[f"test/rmse/{name}"] < 15
    assert "test/rmse" not in metrics
    file = ["--predictions.path", str(run_of_each / "predictions.csv")]
    command("predict", run_of_each, *file, "--predictions.quantiles", "[0.1]")
    predictions = pd.read_csv(run_of_each / "predictions.csv")
    kinds = ["value_mean", "value_std", "value_q0.1"]
    assert list(predictions) == ["day", "output", "target", "hour", *kinds, "value"]
    whole = pd.read_csv(run_of_each.parent / "mine.csv").melt(
        ["day", "hour"], var_name="output", value_name="there"
    )
    merged = predictions.merge(whole, on=["day", "hour", "output"])
    assert len(merged) == len(predictions)
    np.testing.assert_allclose(merged["value"], merged["there"])
    of_pressure = predictions[predictions["output"] == "sea.hPa"]
    assert of_pressure["value_mean"].between(950, 1070).all()
    days = predictions.groupby("output")["day"].unique().map(set)
    assert days["sea.hPa"] == days["celsius"]


def test_a_model_of_each_output_answers_for_the_output_that_is_named(
    run_of_each: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = npbench.load(run_of_each)
    assert model.columns == (["hour"], ["celsius", "sea.hPa"])
    card, mine = tmp_path / "card.md", tmp_path / "mine"
    card.write_text("Fine-tuned for a test.")
    assert main(["export", str(run_of_each), "--out", str(mine), "--card", str(card)]) is None
    assert npbench.load(mine).scaling == model.scaling
    data, out, state = (
        str(run_of_each.parent / "mine.csv"),
        tmp_path / "out.csv",
        tmp_path / "state",
    )
    frame = pd.read_csv(data).dropna().head(12)
    frame.to_csv(tmp_path / "few.csv", index=False)
    words = ["condition", "--ckpt", str(run_of_each), "--data", str(tmp_path / "few.csv")]
    words += ["--out", str(state)]
    for named in ([], ["--y", "celsius,sea.hPa"]):
        with pytest.raises(SystemExit):
            main([*words, *named])
        assert "celsius, sea.hPa each by itself, in a state of its own: name one" in (
            capsys.readouterr().err
        )
    assert main([*words, "--y", "sea.hPa"]) is None
    few = ["--targets", str(tmp_path / "few.csv"), "--out", str(out)]
    assert main(["query", "--state", str(state), *few]) is None
    x, y = frame[["hour"]].to_numpy(), frame[["celsius", "sea.hPa"]].to_numpy()
    of_pressure = model.of_output("sea.hPa")
    with torch.no_grad():
        expected = of_pressure.marginals(of_pressure.condition(x, y[:, 1:]), x)
    np.testing.assert_allclose(pd.read_csv(out)["sea.hPa_mean"], expected.mean[0, :, 0], 1e-5)
    regressor = npbench.NeuralProcessRegressor(str(run_of_each)).fit(x, y)
    mean, std = regressor.predict(x, return_std=True)
    np.testing.assert_allclose(mean[:, 1], expected.mean[0, :, 0], 1e-5)
    np.testing.assert_allclose(std[:, 1], expected.std[0, :, 0], 1e-3)
    assert (mean[:, 0] < 100).all()
    words = ["--config", f"{run_of_each}/config.yaml", "--sizes", "9", "9", "2"]
    words += ["--device", "cpu", "--part", "celsius", "--out", str(tmp_path)]
    assert main(["compare", "before=gp-1d", f"after={run_of_each}", *words]) is None
    assert (pd.read_csv(tmp_path / "comparison.csv")["rmse"] < 15).all()


def test_a_model_of_two_outputs_does_not_take_each_by_itself(
    run_of_each: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--config", ROOT / "configs/table/fit.yaml", "--data.path",
             run_of_each.parent / "mine.csv", "--data.x", "[hour]", "--data.y",
             "[celsius, sea.hPa]", "--data.task", "day", "--data.each_output", "true",
             "--trainer.accelerator", "cpu",
             "--trainer.default_root_dir", run_of_each.parent]  # fmt: skip
    for options, message in (
        (["--model.model.dim_y", "2"], "1 of outputs, each of them by itself, for a model with"),
        (["--model.compile", "true"], "with each_output every output has units of its own"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", *map(str, words), *options])
        assert message in capsys.readouterr().err


def test_a_state_answers_in_the_units_and_under_the_names_of_the_table(
    run: Path, table: Path, tmp_path: Path
) -> None:
    frame = pd.read_csv(table).dropna().head(15)
    frame.to_csv(tmp_path / "few.csv", index=False)
    few, state, out = (str(tmp_path / name) for name in ("few.csv", "state", "out.csv"))
    assert main(["condition", "--ckpt", str(run), "--data", few, "--out", state]) is None
    words = ["--state", state, "--targets", few, "--quantiles", "0.05,0.95", "--out", out]
    assert main(["query", *words]) is None
    answers = pd.read_csv(out)
    kinds = ["mean", "std", "q0.05", "q0.95"]
    assert list(answers) == [*frame, *(f"celsius_{kind}" for kind in kinds)]
    model = npbench.load(run)
    x, y = frame[["hour"]].to_numpy(), frame[["celsius"]].to_numpy()
    with torch.no_grad():
        expected = model.marginals(model.condition(x, y), x)
    np.testing.assert_allclose(answers["celsius_mean"], expected.mean[0, :, 0], 1e-4)
    np.testing.assert_allclose(answers["celsius_std"], expected.std[0, :, 0], 1e-3)
    assert (answers["celsius_q0.05"] < answers["celsius_q0.95"]).all()


def test_a_model_that_comes_with_npbench_answers_in_the_units_of_a_table(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frame = pd.read_csv(table).dropna().head(40)
    frame.to_csv(tmp_path / "few.csv", index=False)
    few, state, out = (str(tmp_path / name) for name in ("few.csv", "state", "out.csv"))
    first = ["condition", "--ckpt", "gp-1d", "--data", few, "--x", "hour", "--y", "celsius"]
    assert main([*first, "--units", "celsius=standard", "--out", state]) is None
    assert main(["query", "--state", state, "--targets", few, "--out", out]) is None
    regressor = npbench.NeuralProcessRegressor("gp-1d").fit(frame[["hour"]], frame["celsius"])
    mean, std = regressor.predict(frame[["hour"]], return_std=True)
    answers = pd.read_csv(out)
    np.testing.assert_allclose(answers["celsius_mean"], mean, 1e-4)
    np.testing.assert_allclose(answers["celsius_std"], std, 1e-3)
    # More rows are taken in these units, and units are not fitted twice.
    assert main(["condition", "--state", state, "--data", few, "--out", state]) is None
    for words, message in (
        (["--state", state, "--units"], "--units is for a model without units"),
        (
            ["--ckpt", "gp-1d", "--x", "hour", "--y", "celsius", "--units", "day=log"],
            "a scaling of",
        ),
        (
            ["--ckpt", "gp-1d", "--x", "hour", "--y", "celsius", "--units", "hour"],
            "no scaling of a",
        ),
    ):
        with pytest.raises(SystemExit):
            main(["condition", "--data", few, "--out", str(tmp_path / "other"), *words])
        assert message in capsys.readouterr().err


def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By both commands that take one; what is unusual, and can be used, is."""
    hour = np.tile(np.arange(24.0), 4)
    frame = pd.DataFrame({"hour": hour, "celsius": np.sin(hour)})
    form = "; dates are taken where all of a column are written as 2024-01-31 or 2024-01-31 14:05"
    either = {
        "no column": (frame.drop(columns="celsius"), "no column celsius; its columns are hour"),
        "strings": (frame.assign(celsius="warm"), "column celsius, row 1: invalid value 'warm'"),
        "dates": (
            frame.assign(hour=["2024-01-31", "1/2/2024"] * 48),
            f"column hour, row 1: invalid value '2024-01-31', which is no number{form}",
        ),
    }
    nothing = frame.assign(celsius=np.nan)
    condition = {
        **either, "nothing": (nothing, "column celsius of .* has no value in row 1; drop such"),
        "constant": (frame.assign(celsius=3.0), None), "one row": (frame.head(1), None),
        "duplicated": (pd.concat([frame, frame]), None),
    }  # fmt: skip
    fit = {
        **either, "nothing": (nothing, "no row of .* has values of celsius; name other outputs"),
        "one row": (frame.head(1), "the table has 1 rows with known outputs, and blocks"),
    }  # fmt: skip
    data, ckpt = str(tmp_path / "mine.csv"), ["--ckpt", "gp-1d", "--out", str(tmp_path / "state")]
    config = str(ROOT / "configs/table/fit.yaml")
    words = {
        "condition": [*ckpt, "--data", data, "--x", "hour", "--y", "celsius", "--units"],
        "fit": ["--config", config, "--data.path", data, "--data.x", "[hour]",
                "--data.y", "[celsius]", "--trainer.default_root_dir", str(tmp_path),
                "--trainer.accelerator", "cpu"],
    }  # fmt: skip
    for name, cases in (("condition", condition), ("fit", fit)):
        for table, message in cases.values():
            table.to_csv(data, index=False)
            if message is None:
                assert main([name, *words[name]]) is None
                continue
            with pytest.raises(SystemExit):
                main([name, *words[name]])
            (said,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
            assert re.search(message, said), said


def test_models_with_and_without_units_are_compared_in_those_of_the_table(
    run: Path, tmp_path: Path
) -> None:
    words = ["before=gp-1d", f"after={run}", "--config", f"{run}/config.yaml"]
    out = ["--out", str(tmp_path), "--sizes", "9", "9", "2", "--device", "cpu"]
    assert main(["compare", *words, *out]) is None
    table = pd.read_csv(tmp_path / "comparison.csv", index_col="model")
    assert (table["rmse"] > 0.3).all()
    assert (table["rmse"] < 15).all()
    assert table["crps"].notna().all()


def test_an_exported_model_is_the_model(run: Path, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("Fine-tuned for a test.")
    words = ["export", run, "--out", tmp_path / "mine", "--card", tmp_path / "card.md"]
    assert main(list(map(str, words))) is None
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {
        "model.yaml", "model.safetensors", "README.md"}  # fmt: skip
    first, second = npbench.load(run), npbench.load(tmp_path / "mine")
    assert (first.scaling, first.columns) == (second.scaling, second.columns)
    for a, b in zip(first.watch.ranges.tensors(), second.watch.ranges.tensors(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_is_no_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gp-9d is neither .* comes with npbench \(gp-1d"):
        npbench.load("gp-9d")
    with pytest.raises(ValueError, match=r"has no part decoder to freeze; its parts are heads"):
        npbench.load("gp-1d", frozen=["decoder"])
    model = npbench.load("gp-1d")
    from npbench.pretrained import export

    cases = {
        "format": ("model.yaml", "class_path: os.system", "describes no model that npbench has"),
        "code": (
            "model.yaml", "format: npbench-model\nclass_path: os.system\ninit_args: {}",
            "names os.system, which is no class that it may choose",
        ),
        "yaml": ("model.yaml", "!!python/object/apply:os.system [ls]", "describes no model"),
        "weights": ("model.safetensors", "no tensors", "is damaged"),
    }  # fmt: skip
    for name, (file, text, message) in cases.items():
        export(model, tmp_path / name, "A card.")
        (tmp_path / name / file).write_text(text)
        with pytest.raises(ValueError, match=message):
            npbench.load(tmp_path / name)
