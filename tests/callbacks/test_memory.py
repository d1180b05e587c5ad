from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from helpers import small_cmanp

from datamodules import GPDataModule
from npbench.callbacks import PeakMemoryProfiler
from npbench.models import NP, NeuralProcess
from npbench.profiling import LiveTensors, Measurement, phases, profile
from npbench.training import MetaRegression


def train(tmp_path: Path, model: NeuralProcess, *callbacks: L.Callback) -> MetaRegression:
    torch.manual_seed(5)
    data = GPDataModule(batch_size=2, steps_per_epoch=3, num_val_tasks=4)
    module = MetaRegression(model)
    logger = L.pytorch.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=logger, callbacks=[*callbacks],
                        enable_progress_bar=False, enable_model_summary=False,
                        enable_checkpointing=False)  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


@pytest.mark.slow
def test_a_run_with_it_is_bitwise_the_run_without(tmp_path: Path) -> None:
    """With dropout, whose random numbers it must not take, and a frozen layer."""
    modules = []
    for name, callbacks in {"with": [PeakMemoryProfiler([5, 20], 7)], "without": []}.items():
        torch.manual_seed(0)
        model = small_cmanp(dropout=0.3)
        model.embed_points.requires_grad_(False)
        modules.append(train(tmp_path / name, model, *callbacks))
    mine, theirs = modules
    for first, second in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(first, second)
    assert len(list((tmp_path / "with").rglob("memory.csv"))) == 1


def test_it_writes_a_row_for_each_epoch_size_and_phase(tmp_path: Path) -> None:
    train(tmp_path, small_cmanp(), PeakMemoryProfiler([20, 5], 7, ["condition", "train"]))
    table = pd.read_csv(tmp_path / "run/memory.csv")
    expected = [(e, n, p) for e in (0, 1) for n in (5, 20) for p in ("condition", "train")]
    assert list(table[["epoch", "num_context", "phase"]].itertuples(index=False)) == expected
    assert (table[["peak_bytes", "seconds"]] > 0).all(axis=None)


def test_it_can_measure_now_and_then(tmp_path: Path) -> None:
    train(tmp_path, small_cmanp(), PeakMemoryProfiler([5], 7, ["update"], every_n_epochs=2))
    assert pd.read_csv(tmp_path / "run/memory.csv")["epoch"].tolist() == [1]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.slow
def test_profiling_leaves_the_model_and_the_random_state_alone(training: bool) -> None:
    model = NP(1, 1, dim_hidden=8, dim_latent=4).train(training)
    model(*torch.randn(3, 1, 4, 1)).mean.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state = torch.random.get_rng_state()
    rows = list(profile(model, [4, 40], num_targets=6))
    assert len(rows) == 8
    assert model.training == model.encoder.training == training
    assert torch.equal(torch.random.get_rng_state(), state)
    now = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(now, gradients, strict=True))


def test_the_phases_are_those_of_the_model() -> None:
    model = small_cmanp()
    rows = {row["phase"]: row for row in profile(model, [50], num_targets=30)}
    x, y = torch.randn(2, 1, 50, 1)
    with torch.no_grad(), LiveTensors() as live:
        state = model.condition(x, y)
    assert rows["condition"]["peak_bytes"] == live.peak_bytes
    with torch.no_grad(), LiveTensors() as live:
        model.update(state, x[:, :1], y[:, :1])
    assert rows["update"]["peak_bytes"] == live.peak_bytes
    assert rows["train"]["peak_bytes"] > rows["query"]["peak_bytes"]


@pytest.mark.slow
def test_running_out_of_memory_is_a_row_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_cmanp()

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "loss", fail)
    rows = list(profile(model, [5, 10], num_targets=3))
    assert [row["peak_bytes"] is None for row in rows] == [False, False, False, True] * 2
    monkeypatch.setattr(model, "_condition", fail)
    assert all(row["seconds"] is None for row in profile(model, [5], num_targets=3))


def test_a_size_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"condition": 1.0, "update": 0.001}
    monkeypatch.setattr(
        phases, "_measure_phase", lambda _, phase, *rest: Measurement(1, slow[phase])
    )
    rows = profile(small_cmanp(), [10, 20, 40, 80], phases=["condition", "update"], time_limit=5.0)
    measured = [(row["num_context"], row["phase"]) for row in rows]
    assert (20, "condition") in measured
    assert (40, "condition") in measured
    sizes = [size for size, phase in measured if phase == "update"]
    assert sizes == [10, 20, 40, 80]


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context_sizes": []}, r"context_sizes=\[\] must be sizes of 1 or more"),
        ({"context_sizes": [0, 5]}, r"context_sizes=\[0, 5\] must be"),
        ({"num_targets": 0}, "num_targets=0"),
        ({"every_n_epochs": 0}, "every_n_epochs=0"),
        (
            {"phases": ["query", "quary"]},
            r"unknown phase\(s\) \['quary'\]; known: condition, query",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PeakMemoryProfiler(**arguments)
