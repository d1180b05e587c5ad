"""Every configuration trains for two steps and evaluates."""

from pathlib import Path

import pytest

from npbench.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
KERNELS = sorted((ROOT / "configs/gp/kernels").glob("*.yaml"))
FAST = ["--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "2", "--data.batch_size", "2",
        "--trainer.enable_model_summary", "false",
        "--trainer.enable_progress_bar", "false"]  # fmt: skip


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_configuration_trains_and_evaluates(config: Path, tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", str(config), *FAST, *root]) is None


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.stem)
def test_a_kernel_replaces_the_default(kernel: Path, tmp_path: Path) -> None:
    config = ["--config", str(ROOT / "configs/gp/cnp.yaml"), "--data.kernel", str(kernel)]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", *config, *FAST, *root]) is None
