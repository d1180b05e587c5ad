"""Tests run with jaxtyping's runtime checks on: a shape that breaks a signature is an error."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook(["npbench", "datamodules"], "beartype.beartype")

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _the_same_start_for_every_test(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # LightningCLI warns where it is given arguments beside pytest's own.
    monkeypatch.setattr("sys.argv", ["npbench"])


@pytest.fixture
def shared() -> Path:
    """The folder of data and golden values beside the checkout, which a fork does not have."""
    if not SHARED.is_dir():
        message = "needs the folder ../shared beside the checkout"
        # `.ci/run` has that folder: there a test that skips for it would hide something.
        if os.environ.get("NPBENCH_REQUIRE_SHARED"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture
def as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the runtime checks, so that the library's own messages are what is seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
