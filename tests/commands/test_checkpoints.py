"""Models from checkpoints, without Lightning."""

import json
from pathlib import Path

import pytest
import torch
from helpers import SIZES

from npbench import models
from npbench.commands import checkpoints
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_checkpoint_s_model_is_the_one_that_lightning_loads(name: str, tmp_path: Path) -> None:
    model = getattr(models, name)(dim_x=1, dim_y=1, **SIZES[name])
    save_untrained(MetaRegression(model), tmp_path / "model.ckpt")
    loaded = checkpoints.load(tmp_path / "model.ckpt")
    theirs = MetaRegression.load_from_checkpoint(tmp_path / "model.ckpt").model
    assert type(loaded) is type(theirs)
    # Lightning makes lists of tuples.
    assert json.dumps(loaded.hparams) == json.dumps(theirs.hparams)
    torch.testing.assert_close(loaded.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert loaded.training == theirs.training
