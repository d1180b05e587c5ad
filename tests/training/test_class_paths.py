"""Checkpoints name a class by the path that users know, and by no other for ever."""

import sys
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from helpers import SIZES, small, small_cmanp

from npbench import models
from npbench.models import CMANP, CMHP, CNP
from npbench.training import EventPrediction, MetaRegression
from npbench.training.class_paths import class_at, public_path

pytestmark = pytest.mark.usefixtures("as_a_user")


class Mine(CMANP):
    """A model outside npbench."""


def test_a_class_of_npbench_is_named_where_it_is_public() -> None:
    for name in models.__all__:
        assert public_path(getattr(models, name)) == f"npbench.models.{name}"
    assert public_path(MetaRegression) == "npbench.training.MetaRegression"


def test_a_class_of_the_same_name_is_not_taken_for_it() -> None:
    class CMANP(models.CMANP):
        """Another one."""

    CMANP.__module__, CMANP.__qualname__ = "npbench.models.other", "CMANP"
    assert public_path(CMANP) == "npbench.models.other.CMANP"


def test_other_classes_keep_the_path_of_their_module() -> None:
    assert public_path(Mine) == f"{__name__}.Mine"
    assert public_path(OrderedDict) == "collections.OrderedDict"
    assert public_path(torch.nn.Linear) == "torch.nn.modules.linear.Linear"


def test_a_path_is_looked_up_without_an_import() -> None:
    assert class_at("npbench.models.cmanp.CMANP") is CMANP
    sys.modules.pop("antigravity", None)
    for path in ("antigravity.geohash", "npbench.models.CMANQ", "npbench.models.cmanp", "CMANP"):
        assert class_at(path) is None
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", [*SIZES, "CMHP", "THP"])
def test_every_model_is_saved_under_its_public_path(name: str) -> None:
    if name in SIZES:
        module = MetaRegression(small(name))
    else:
        module = EventPrediction(getattr(models, name)(num_marks=2, dim_model=8, num_heads=2))
    assert module.hparams["model"]["class_path"] == f"npbench.models.{name}"


def checkpoint_of(module: MetaRegression, class_path: str, **arguments: object) -> dict:
    model = {"class_path": class_path, "init_args": module.hparams["model"]["init_args"]}
    model["init_args"] = {k: v for k, v in model["init_args"].items() if k not in arguments}
    return {"state_dict": module.state_dict(), "hyper_parameters": {"model": model}}


@pytest.mark.parametrize("path", ["npbench.models.CMANP", "npbench.models.cmanp.CMANP"])
def test_an_old_path_and_a_new_one_are_one_class(path: str) -> None:
    checkpoint = checkpoint_of(MetaRegression(small_cmanp(num_latents=7)), path)
    with pytest.raises(ValueError, match=r"another model: num_latents is 7 there and 6 here$"):
        MetaRegression(small_cmanp()).on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("npbench.models.cnp.CNP", small_cmanp),  # a module that is not there any more
        ("gone.CNP", small_cmanp),
        ("npbench.models.conditional.CNP", small_cmanp),
        ("npbench.models.CMANP", lambda: Mine(**small_cmanp(num_latents=7).hparams)),
    ],
)
def test_a_checkpoint_of_another_class_is_refused_in_one_sentence(
    path: str, model: Callable[[], CMANP]
) -> None:
    there = MetaRegression(CNP(dim_x=1, dim_y=1))
    here = MetaRegression(model())
    message = f"another model: it holds {path}, this is {here.hparams['model']['class_path']}$"
    with pytest.raises(ValueError, match=message):
        here.on_load_checkpoint(checkpoint_of(there, path))


def test_an_argument_that_the_checkpoint_is_too_old_for_is_no_difference() -> None:
    checkpoint = checkpoint_of(
        MetaRegression(small_cmanp(num_latents=7)), "npbench.models.CMANP", qk_norm=None
    )
    with pytest.raises(ValueError, match=r"another model: num_latents is 7 there and 6 here$"):
        MetaRegression(small_cmanp()).on_load_checkpoint(checkpoint)


def test_a_checkpoint_without_a_model_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"it holds no model, this is npbench\.models\.CMHP$"):
        EventPrediction(CMHP(num_marks=2)).on_load_checkpoint({"state_dict": {}})
