"""A program of torch alone answers as the model does, in a process that has no npbench."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small, small_cmanp
from safetensors.torch import save_file

from npbench.cli import main
from npbench.errors import InputError
from npbench.interop.export import state_tensors, write_query
from npbench.models import NeuralProcess, State
from npbench.models.contracts.process import evaluating
from npbench.scaling import Column, Scaling
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained

pytestmark = pytest.mark.usefixtures("as_a_user")  # runtime checks of shapes cannot be traced

LEVELS = [0.1, 0.9]
UNITS = Scaling(
    (Column("x", "min-max", 3.0, 2.0), Column("z", "standard", 1.0, 4.0)),
    (Column("a", "log", 0.1, 0.2), Column("b", "standard", 5.0, 2.0), Column("c")),
)
_RELOADED = """
import sys
import torch
from safetensors.torch import load_file

folder, state, *names = sys.argv[1:]
for name in names:
    program = torch.export.load(f"{folder}/{name}.pt2").module()
    for case in ("one", "many"):
        tensors = load_file(f"{folder}/{name}.{case}")
        given = {k.removeprefix("state/"): z for k, z in tensors.items() if "state/" in k}
        answers = program(given, tensors["xt"])
        for key, value in answers.items():
            torch.testing.assert_close(value, tensors[f"out/{key}"], rtol=1e-6, atol=1e-6)
            assert not value.requires_grad
        assert set(answers) == {k.removeprefix("out/") for k in tensors if "out/" in k}
extra = {"npbench.json": ""}
program = torch.export.load(f"{state}.pt2", extra_files=extra).module()
print(extra["npbench.json"], program(load_file(state), torch.zeros(1, 4, 2))["mean"].shape)
assert "npbench" not in sys.modules
"""


def export(model: NeuralProcess, path: Path, levels: list[float]) -> None:
    """Write a program, and what the model answers of one target and of many."""
    write_query(path.with_suffix(".pt2"), model, quantiles=levels)
    for case, batch, context, target in (("one", 1, 9, 1), ("many", 3, 5, 600)):
        x, y = torch.randn(batch, context, model.dim_x), torch.rand(batch, context, 3) + 0.5
        xt = torch.randn(batch, target, model.dim_x)
        if model.scaling is not None:
            xt = xt.double()
        with evaluating(model):
            state = model.condition(x, y)
            answers = dict(model.marginals(state, xt)._asdict())
            if levels:
                answers["quantiles"] = model.quantiles(state, xt, levels)
        tensors = {f"state/{name}": z for name, z in state_tensors(state).items()}
        tensors |= {"xt": xt, **{f"out/{name}": z for name, z in answers.items()}}
        save_file({k: z.clone() for k, z in tensors.items()}, path.with_suffix(f".{case}"))


@pytest.mark.slow
def test_a_program_predicts_for_any_number_of_tasks_and_targets(tmp_path: Path) -> None:
    names = ["CMANP", "LocatedCMANP", "SecondMomentNP", "TNPD"]
    for name in names:
        small_one = small(name).float()
        if name == "CMANP":
            small_one.scaling = UNITS
            small_one.context_chunk_size = 4
        export(small_one, tmp_path / name, LEVELS if name == "CMANP" else [])
    model, checkpoint, state = small_cmanp(2), tmp_path / "ckpt", tmp_path / "state"
    save_untrained(MetaRegression(model), checkpoint)
    with torch.no_grad():
        model.condition(torch.randn(1, 5, 2), torch.randn(1, 5, 1)).save(state, model)
    main(["export", str(checkpoint), "--state", str(state), "--out", f"{state}.pt2"])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RELOADED, str(tmp_path), str(state), *names],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert '"x": ["x0", "x1"], "y": ["y0"]' in result.stdout
    assert "torch.Size([1, 4, 1])" in result.stdout


def test_a_state_is_named_as_in_its_file() -> None:
    model = small("SecondMomentNP")
    state: State = model.condition(torch.randn(1, 5, 2), torch.randn(1, 5, 3))
    assert list(state_tensors(state)) == [
        "moments.squares", "moments.count", "moments.products", "moments.targets",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_model_that_predicts_block_by_block_is_no_single_program(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CMANPAND takes other steps for other tasks and targets"):
        write_query(tmp_path / "model.pt2", small("CMANPAND"))
    assert not (tmp_path / "model.pt2").exists()


def test_options_of_a_folder_are_none_of_a_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, folder = str(tmp_path / "model.pt2"), str(tmp_path / "model")
    for words, said in (
        (["--out", program, "--card", "card.md"], "--card is of a folder"),
        (["--out", folder, "--quantiles", "0.1"], "--state and --quantiles are of a program"),
        (["--out", folder], "--card is missing"),
    ):
        with pytest.raises(SystemExit):
            main(["export", "gp-1d", *words])
        assert said in capsys.readouterr().err
