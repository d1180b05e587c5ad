from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.image_files import write_emnist

from npbench.cli import main
from npbench.commands.compare import comparison_figure
from npbench.models import CNP, NP, TNPND, NeuralProcess
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained

pytestmark = pytest.mark.usefixtures("as_a_user")


def make_run(folder: Path, model: NeuralProcess) -> Path:
    """The folder of a run, as `npbench fit` leaves it."""
    save_untrained(MetaRegression(model), folder / "checkpoints/best.ckpt")
    data = {"num_test_tasks": 20, "eval_batch_size": 8}
    section = {"class_path": "datamodules.GPDataModule", "init_args": data}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": section}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    models = [CNP(1, 1, dim_hidden=8), NP(1, 1, dim_hidden=8, dim_latent=4)]
    return [str(make_run(tmp_path / type(m).__name__.lower(), m)) for m in models]


def compare(*arguments: str, out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    sizes = ["--sizes", "20", "10", "3"]
    assert main(["compare", *arguments, "--out", str(out), "--device", "cpu", *sizes]) is None
    assert (out / "comparison.png").stat().st_size > 1000
    return (
        pd.read_csv(out / "comparison.csv", index_col="model"),
        pd.read_csv(out / "tasks.csv", index_col="task"),
    )


def test_a_model_s_numbers_are_those_of_test(runs: list[str], tmp_path: Path) -> None:
    table, tasks = compare(*runs, out=tmp_path)
    assert len(tasks) == 20
    for name, folder in zip(["NP", "CNP"], reversed(runs)):
        checkpoint = ["--ckpt_path", f"{folder}/checkpoints/best.ckpt"]
        module = MetaRegression.load_from_checkpoint(checkpoint[1])
        assert table.loc[name, "log_likelihood"] == pytest.approx(tasks[name].mean(), rel=1e-4)
        assert table.loc[name, "log_likelihood_stderr"] == pytest.approx(tasks[name].sem(), 1e-3)
        assert table.loc[name, "parameters"] == sum(p.numel() for p in module.parameters())
    arguments = {"model": module.hparams["model"]}
    sections = {
        "model": {"class_path": "npbench.training.MetaRegression", "init_args": arguments},
        "data": yaml.safe_load(Path(runs[0], "config.yaml").read_text())["data"],
        "trainer": {"default_root_dir": str(tmp_path), "accelerator": "cpu"},
    }
    config = tmp_path / "test.yaml"
    config.write_text(yaml.safe_dump(sections))
    main(["test", "--config", str(config), *checkpoint])
    tested = pd.read_csv(next(tmp_path.glob("version_*/metrics.csv"))).iloc[-1]
    for name in ("log_likelihood", "log_likelihood_stderr", "gap", "rmse", "coverage_80"):
        assert tested[f"test/{name}"] == pytest.approx(table.loc["CNP", name], rel=1e-4)


def test_differences_are_paired_by_task_and_the_best_comes_first(
    runs: list[str], tmp_path: Path
) -> None:
    table, tasks = compare(*runs, out=tmp_path)
    best, other = table.index
    assert table.loc[best, "log_likelihood"] > table.loc[other, "log_likelihood"]
    assert table.loc[best, "difference"] == 0
    difference = tasks[other] - tasks[best]
    assert table.loc[other, "difference"] == pytest.approx(difference.mean(), rel=1e-3)
    assert table.loc[other, "difference_stderr"] == pytest.approx(difference.sem(), rel=1e-3)


def test_a_random_model_differs_from_itself_by_nothing(runs: list[str], tmp_path: Path) -> None:
    table, _ = compare(f"one={runs[1]}", f"two={runs[1]}", out=tmp_path)
    assert table["difference"].tolist() == [0, 0]
    assert table["difference_stderr"].tolist() == [0, 0]


def test_the_gap_of_a_joint_model_is_to_the_joint_ceiling(runs: list[str], tmp_path: Path) -> None:
    sizes = {"dim_model": 8, "num_heads": 2, "num_layers": 1, "dim_feedforward": 8}
    joint = make_run(tmp_path / "joint", TNPND(1, 1, **sizes, covariance="lowrank"))
    table, tasks = compare(runs[0], str(joint), out=tmp_path)
    for name, ceiling in {"CNP": "exact", "TNPND": "exact jointly"}.items():
        gap = tasks[ceiling].mean() - tasks[name].mean()
        assert table.loc[name, "gap"] == pytest.approx(gap, rel=1e-3)


def test_fields_of_the_data_can_be_set(runs: list[str], tmp_path: Path) -> None:
    kernel = Path(__file__).parents[2] / "configs/gp/kernels/matern52.yaml"
    _, rbf = compare(runs[0], "--data.num_test_tasks", "6", out=tmp_path)
    _, matern = compare(
        runs[0], "--data.num_test_tasks", "6", "--data.kernel", str(kernel), out=tmp_path
    )
    assert len(rbf) == len(matern) == 6
    assert rbf["num_context"].equals(matern["num_context"])
    assert (rbf["exact"] > matern["exact"]).any()
    assert not torch.allclose(torch.tensor(rbf["exact"]), torch.tensor(matern["exact"]))


@pytest.mark.parametrize(("sizes", "points"), [([20], 1), ([5, 20], 2), (range(64), 8)])
def test_the_figure_has_a_point_for_each_size_or_group_of_sizes(
    sizes: list[int], points: int
) -> None:
    num_context = pd.Series([*sizes] * 2)
    tasks = pd.DataFrame({"num_context": num_context, "CNP": 0.5 * num_context})
    table = pd.DataFrame({"log_likelihood": [1.0], "log_likelihood_stderr": [0.1]}, index=["CNP"])
    _, by_size = comparison_figure(table, tasks).axes
    x, y = by_size.lines[0].get_data()
    assert len(x) == points
    np.testing.assert_allclose(y, 0.5 * np.asarray(x), rtol=1e-12)


def test_mistakes_end_in_one_sentence(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "a" / "bare.ckpt"
    bare.parent.mkdir()
    Path(runs[0], "checkpoints/best.ckpt").rename(bare)
    for arguments, message in {
        (str(tmp_path / "none"),): "is neither a checkpoint nor the folder of a run with one",
        (runs[0],): "is neither a checkpoint nor the folder of a run with one",
        (str(bare),): "name a file with a data section by --config",
        (f"A={runs[1]}", f"A={runs[1]}"): "two runs have one name: A, A",
        (runs[1], "--data.num_test_taskz", "3"): "did you mean num_test_tasks?",
        (runs[1], "--device", "gpuu"): "there is no device gpuu",
        (runs[1], "--sizes", "10", "-3", "5"): "-3 is no number of points",
    }.items():
        with pytest.raises(SystemExit) as exit_:
            main(["compare", *arguments, "--out", str(tmp_path / "out")])
        assert exit_.value.code in (1, 2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_of_several_sets_of_test_tasks_one_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_emnist(tmp_path / "data")
    folder = make_run(tmp_path / "cnp", CNP(2, 1, dim_hidden=8))
    section = {"class_path": "datamodules.EMNISTDataModule", "init_args": {"num_val_tasks": 8}}
    section["init_args"]["root"] = str(tmp_path / "data")
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": section}))
    sizes = {
        part: len(compare(str(folder), "--part", part, out=tmp_path / part)[1])
        for part in ("seen", "unseen")
    }
    assert sizes == {"seen": 40, "unseen": 20}
    with pytest.raises(SystemExit):
        main(["compare", str(folder), "--device", "cpu", "--out", str(tmp_path / "none")])
    assert "--part is missing: choose one of seen, unseen" in capsys.readouterr().err
