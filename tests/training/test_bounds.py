"""What a checkpoint announces is bounded by what it holds, before anything is made of it."""

import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZES, small, small_cmanp

from npbench import models
from npbench.blocks import Places
from npbench.errors import InputError
from npbench.models import CMANP
from npbench.training import EventPrediction, MetaRegression
from npbench.training.bounds import WithinWeights, check_numbers
from npbench.training.class_paths import check_class_paths
from npbench.training.lightning_parts import save_untrained

pytestmark = pytest.mark.usefixtures("as_a_user")


class Mine(CMANP):
    """A model outside npbench, which whoever runs the tests has imported."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_untrained(MetaRegression(small_cmanp()), tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def change(path: Path, *keys: str, to: Any) -> None:
    """Change a hyper-parameter in a checkpoint."""
    content = torch.load(path, weights_only=True)
    section = content["hyper_parameters"]
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = to
    torch.save(content, path)


@pytest.mark.parametrize("name", [*SIZES, "CMHP", "THP"])
def test_every_model_is_loaded_within_the_bounds_of_its_own_weights(
    name: str, tmp_path: Path
) -> None:
    if name in SIZES:
        module = MetaRegression(small(name))
    else:
        module = EventPrediction(getattr(models, name)(num_marks=2, dim_model=8, num_heads=2))
    save_untrained(module, tmp_path / "model.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "model.ckpt").state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim_model", 2_000_000_000), ("dim_model", 100_000), ("num_latents", 10**12),
        ("num_layers", 10**9), ("num_layers", 10**5), ("embed_depth", 2_000_000_000),
        ("dim_feedforward", 10**10), ("dim_x", 10**11),
    ],
)  # fmt: skip
def test_a_small_file_that_announces_a_large_model_takes_no_memory(
    name: str, value: int, path: Path
) -> None:
    change(path, "model", "init_args", name, to=value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"model.ckpt announces|of another model"):
        MetaRegression.load_from_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize("places", [{"number": 10**9}, {"spacing": 1e-9}])
@pytest.mark.parametrize("dim_x", [1, 2, 3])
def test_places_are_bounded_too(dim_x: int, places: dict[str, float]) -> None:
    weights = small("LocatedCMANP").state_dict()

    def build() -> None:
        check_numbers({"places": places}, weights, "file")
        with WithinWeights(weights, "file"):
            models.LocatedCMANP(dim_x, 1, places=Places(**places))

    with pytest.raises(ValueError, match=r"announces|at most|Overflow"):
        build()


# A checkpoint chooses no code.


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["model", "class_path"], "antigravity.geohash"),
        (["model"], "antigravity.geohash"),
        (["model"], {"class_path": " antigravity.geohash ", "init_args": {}}),
        (["optimizer"], {"class_path": "antigravity.geohash", "init_args": {}}),
        (["optimizer"], "antigravity.geohash"),
        (["lr_scheduler"], [{"antigravity.geohash": 1}]),
        (["model", "init_args", "likelihood"], "antigravity.geohash"),
        (["_class_path"], "antigravity.geohash"),
    ],
)
def test_a_class_path_is_refused_before_anything_is_imported(
    keys: list[str], value: Any, path: Path
) -> None:
    sys.modules.pop("antigravity", None)
    change(path, *keys, to=value)
    with pytest.raises(InputError, match=r"names antigravity.geohash, which is no class"):
        MetaRegression.load_from_checkpoint(path)
    assert "antigravity" not in sys.modules


def test_texts_with_a_dot_that_name_no_module_are_texts() -> None:
    check_class_paths({"model": {"class_path": "npbench.models.CMANP", "words": "words.txt"}})
    with pytest.raises(InputError, match=r"names this\.s"):
        check_class_paths({"model": {"class_path": "npbench.models.CMANP", "words": "this.s"}})
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "name", ["subprocess.Popen", "os.system", "builtins.eval", "torch.load", "torch.nn.Linear"]
)
def test_what_is_imported_already_is_refused_too_if_it_is_no_model(name: str, path: Path) -> None:
    change(path, "model", "class_path", to=name)
    with pytest.raises(InputError, match=f"names {name}, which is no class that it may choose"):
        MetaRegression.load_from_checkpoint(path)


@pytest.mark.parametrize("name", ["npbench.__main__.main", "npbench.nothing.CNP", "npbench.cli.os"])
def test_of_npbench_itself_classes_alone_may_be_named(name: str, path: Path) -> None:
    change(path, "model", "class_path", to=name)
    with pytest.raises(InputError, match=f"names {name}, which this npbench does not have"):
        MetaRegression.load_from_checkpoint(path)
    assert "npbench.__main__" not in sys.modules


@pytest.mark.parametrize("named", ["os.system", "builtins.eval", None, ["os.system"]])
def test_another_instantiator_is_refused(named: Any, path: Path) -> None:
    change(path, "_instantiator", to=named)
    with pytest.raises(InputError, match="to be run, and was not loaded"):
        MetaRegression.load_from_checkpoint(path)


def test_a_model_of_mine_that_i_have_imported_is_loaded(tmp_path: Path) -> None:
    save_untrained(MetaRegression(Mine(**small_cmanp().hparams)), tmp_path / "mine.ckpt")
    assert type(MetaRegression.load_from_checkpoint(tmp_path / "mine.ckpt").model) is Mine


def nested(levels: int, width: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] * width  # the same list again and again: small in the file
    return value


@pytest.mark.parametrize(("levels", "width"), [(5000, 1), (60, 2), (7, 10)])
def test_hyper_parameters_that_are_nested_too_deeply_are_refused(
    levels: int, width: int, path: Path
) -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        check_class_paths({"model": nested(levels, width)})
    if levels < 100:  # torch does not write what is deeper
        change(path, "more", to=nested(levels, width))
        with pytest.raises(InputError, match="nested too deeply"):
            MetaRegression.load_from_checkpoint(path)
