"""Every configuration trains for two steps and evaluates."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import yaml
from helpers.image_files import write_celeba, write_cifar10, write_emnist, write_mnist

from npbench.cli import main
from npbench.commands.sections import instantiate

ROOT = Path(__file__).parents[1]
# Those of the trainer are no experiments: tests/test_clusters.py.
KERNELS = sorted((ROOT / "configs").glob("*/kernels/*.yaml"))
CONFIGS = sorted(
    set((ROOT / "configs").rglob("*.yaml"))
    - set((ROOT / "configs/trainer").iterdir())
    - set(KERNELS)
)
FAST = ["--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "2", "--data.batch_size", "2",
        "--trainer.enable_model_summary", "false",
        "--trainer.enable_progress_bar", "false"]  # fmt: skip


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Options that put small data sets in the place of the official ones, by folder of configs."""
    write = {
        "emnist": write_emnist,
        "celeba": write_celeba,
        "mnist": write_mnist,
        "cifar10": write_cifar10,
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in write}
    for name, folder in folders.items():
        write[name](folder)
    few = ["--data.num_val_tasks", "4", "--data.eval_batch_size", "2"]
    options = {name: ["--data.root", str(folder), *few] for name, folder in folders.items()}
    badges = tmp_path_factory.mktemp("stackoverflow")
    write_badges(badges)
    options["stackoverflow"] = ["--data.path", str(badges), "--data.val_share", "0.4"]
    options["sir"] = ["--data.size", "16", "--data.min_context", "8", "--data.max_context", "32",
                      "--data.num_targets", "64", *few]  # fmt: skip
    options["gp2d"] = ["--data.num_targets", "16", "--data.max_num_points", "40", *few]
    options["pretrained"] = options["gp2d"]
    cache = tmp_path_factory.mktemp("listops")
    options["listops"] = ["--data.num_train", "8", "--data.num_val", "4", "--data.num_test", "4",
                          "--data.max_depth", "5", "--data.max_length", "60",
                          "--data.min_length", "30", "--data.cache_dir", str(cache),
                          "--data.eval_batch_size", "2"]  # fmt: skip
    points = np.random.default_rng(0).normal(size=(400, 2)).cumsum(axis=0)
    np.savetxt(folders["emnist"] / "table.csv", points, delimiter=",", header="x,y", comments="")
    options["pretrained"] = ["--data.max_num_points", "60", *few]
    options["table"] = ["--data.path", str(folders["emnist"] / "table.csv"), *few]
    options["hawkes"] = ["--data.num_train", "8", "--data.num_val", "4", "--data.num_test", "4"]
    return options


def write_badges(folder: Path) -> None:
    """Five folds of four users, who have 22 badges of different kinds, in different orders."""
    for fold in range(1, 6):
        users = [np.random.default_rng([fold, user]) for user in range(4)]
        events = [user.permutation(22) + 1 for user in users]
        times = [1.3e9 + user.exponential(86400.0, 22).cumsum() for user in users]
        for name, rows in {"event": events, "time": times}.items():
            lines = [" ".join(str(value) for value in row) for row in rows]
            (folder / f"{name}-{fold}-test.txt").write_text("\n".join(lines) + "\n")


def test_the_badges_of_stack_overflow_are_counted_in_days(
    small_data: dict[str, list[str]],
) -> None:
    config = ROOT / "configs/events/stackoverflow/thp.yaml"
    data = instantiate(config, "data", L.LightningDataModule, small_data["stackoverflow"])
    assert data.num_marks == 22
    assert 0.5 < data.interval_statistics.mean < 2.0


@pytest.mark.parametrize("name", ["stackoverflow", "hawkes"])
def test_the_models_of_events_are_compared_on_the_same_data(name: str) -> None:
    """And trained alike."""
    cmhp, thp = (
        yaml.safe_load((ROOT / f"configs/events/{name}/{model}.yaml").read_text())
        for model in ("cmhp", "thp")
    )
    for config in (cmhp, thp):
        model = config["model"]["init_args"].pop("model")
        root = config["trainer"].pop("default_root_dir")
        assert root == f"runs/events/{name}/{model['class_path'].rpartition('.')[2].lower()}"
    assert cmhp == thp


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_configuration_trains_and_evaluates(
    config: Path, tmp_path: Path, small_data: dict[str, list[str]]
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), *small_data.get(config.parent.name, [])]
    assert main(["fit", "--config", str(config), *FAST, *root]) is None


@pytest.mark.parametrize(("resolution", "most"), [(32, 200), (64, 800), (128, 1600)])
def test_the_resolution_of_celeba_is_one_field(
    small_data: dict[str, list[str]], resolution: int, most: int
) -> None:
    options = [*small_data["celeba"], "--data.resolution", str(resolution)]
    config = ROOT / "configs/celeba/cmanp.yaml"
    data = instantiate(config, "data", L.LightningDataModule, options)
    assert data.max_num_points == most
    assert data.completion_task().xt.shape == (1, resolution**2 - 50, 2)


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs/gp2d").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_tasks_of_several_inputs_have_the_paper_s_sizes_and_exact_answers(
    config: Path,
) -> None:
    data = instantiate(config, "data", L.LightningDataModule, [])
    assert (data.sizes.min, data.sizes.most_context) == (12, 127)
    task = data.evaluation_batch(range(2))
    assert task.xt.shape[-1] == (3 if config.stem.endswith("3d") else 2)
    assert task.exact.log_likelihood.isfinite().all()
    on_grid = ((task.xt + 2) * 31 / 4 - ((task.xt + 2) * 31 / 4).round()).abs() < 1e-4
    assert on_grid[task.target_mask].all() == config.stem.endswith("grid")


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs/celeba").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_paper_s_configurations_resize_faces_as_a_whole(
    config: Path, small_data: dict[str, list[str]]
) -> None:
    data = instantiate(config, "data", L.LightningDataModule, small_data["celeba"])
    assert not data.decoder.center_crop
    options = [*small_data["celeba"], "--data.center_crop", "true"]
    assert instantiate(config, "data", L.LightningDataModule, options).decoder.center_crop


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("celeba/cmanp", ["--data.resolution", "33"], "resolution=33 must be 32, 64 or 128"),
        ("celeba/cmanp", ["--data.root", "nowhere"], "nowhere lacks list_eval_partition.txt, "),
        ("celeba/cmanp", ["--data.on_corrupt", "skpi"], "on_corrupt"),
        ("mnist/cmanp", ["--data.root", "nowhere"], "nowhere/MNIST/raw lacks train-images-idx3-"),
        ("cifar10/cmanp", ["--data.root", "nowhere"], "nowhere/cifar-10-batches-py lacks data_bat"),
        ("emnist/cmanp", ["--data.root", "nowhere"], "nowhere/EMNIST/raw lacks emnist-balanced-"),
        ("emnist/cmanp", ["--data.class_range", "[0, 48]"], "the classes are 0–46"),
        ("emnist/cmanp", ["--data.classes", "[0, 10]"], "classes"),
        ("events/stackoverflow/thp", ["--data.path", "nowhere"], "there is no nowhere"),
        ("events/stackoverflow/thp", ["--data.on_disorder", "srot"], "on_disorder"),
        ("events/stackoverflow/thp", ["--data.time_unti", "60"], "did you mean time_unit?"),
        ("events/hawkes/thp", ["--data.num_trian", "9"], "did you mean num_train?"),
        ("events/hawkes/thp", ["--model.model.num_mark", "9"], "num_mark"),
    ],
    ids=[
        "resolution",
        "celeba",
        "on_corrupt",
        "mnist",
        "cifar10",
        "emnist",
        "class_range",
        "field",
        "stackoverflow",
        "on_disorder",
        "time_unit",
        "num_train",
        "num_marks",
    ],
)
def test_a_mistake_in_the_data_ends_in_one_sentence(
    config: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["fit", "--config", f"{ROOT}/configs/{config}.yaml", *options, *FAST[:6], *root])
    output = capsys.readouterr().err
    assert "Traceback" not in output
    (sentence,) = (line for line in output.splitlines() if line.startswith("npbench: error: "))
    assert message in sentence


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_a_kernel_replaces_the_default(kernel: Path, tmp_path: Path) -> None:
    config = ["--config", str(ROOT / "configs/gp/cnp.yaml"), "--data.kernel", str(kernel)]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", *config, *FAST, *root]) is None
