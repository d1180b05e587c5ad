"""What pip installs works without the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is in the wheel, and nothing else of this checkout."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("src", "wheels", "site"))
    # A copy, as building leaves files in its folder.
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    return site


@pytest.mark.slow
def test_it_trains_conditions_and_predicts(installed: Path, tmp_path: Path) -> None:
    """By the script with which the hosted CI checks a wheel in an environment of its own."""
    script = (ROOT / ".github/check_install.py").read_text()
    (tmp_path / "check_install.py").write_text(script)
    command = [sys.executable, "check_install.py"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    printed = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert Path(printed.splitlines()[-1]).is_relative_to(installed)
