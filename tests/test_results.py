"""The results: a cell is made once, and the pages say what the cells hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.results import cell as cells
from benchmarks.results.__main__ import run
from benchmarks.results.report import load_results, markdown, with_summary
from benchmarks.results.rivals import RIVALS
from benchmarks.results.tasks import BENCHMARKS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, benchmark in BENCHMARKS.items():
        monkeypatch.setitem(BENCHMARKS, name, replace(benchmark, num_tasks=4))


@pytest.mark.usefixtures("few_tasks")
def test_a_finished_cell_is_not_trained_again_and_another_seed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rbf" / "CNP.json"
    run(file, seconds=0.05, seed=0)
    record = json.loads(file.read_text())
    assert record["steps"] >= 1
    assert record["exact"] == pytest.approx(
        record["metrics"]["log_likelihood"] + record["metrics"]["gap"]
    )
    trained: list[int] = []
    monkeypatch.setattr(
        "benchmarks.results.__main__.cell",
        lambda task, name, seconds, seed: trained.append(seed) or record | {"seed": seed},
    )
    run(file, seconds=0.05, seed=0)
    assert trained == []
    run(file, seconds=0.05, seed=1)
    assert trained == [1]
    assert list(file.parent.iterdir()) == [file], "nothing but whole cells"


@pytest.mark.usefixtures("few_tasks")
def test_what_a_model_cannot_do_is_a_dash(tmp_path: Path) -> None:
    for name in ("CNP", "SecondMomentNP"):
        run(tmp_path / "sir" / f"{name}.json", seconds=0.05, seed=0)
    results = load_results(tmp_path)
    assert results["sir"]["SecondMomentNP"]["metrics"] is None
    (row,) = [line for line in markdown(results, "").splitlines() if line.startswith("| epidemics")]
    values = [value.strip() for value in row.strip("|").split("|")]
    assert values[1] == "–", "nobody knows the exact answer"
    by_name = dict(zip(RIVALS, values[2:], strict=True))
    assert by_name["SecondMomentNP"] == "–"
    assert by_name["TNP-D"] == "", "not trained yet"
    assert by_name["CNP"].startswith("**")


@pytest.mark.parametrize("task", ["rbf", "sir", "digits"])
def test_models_of_a_task_train_on_the_same_batches(task: str) -> None:
    first, second = (BENCHMARKS[task].data(0).training_batch(0) for _ in range(2))
    assert (first.xc == second.xc).all()
    assert first.context_mask is not None, "each task has its own number of context points"
    assert first.target_mask is None, "and all have the same number of targets"


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [cells.factor(progress / 100) for progress in range(101)]
    assert rates.index(max(rates)) in (4, 5)
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates[-1] == 0.0


@pytest.mark.skipif(not RESULTS.is_dir(), reason="there are no results")
def test_the_pages_are_made_of_the_cells() -> None:
    results = load_results(RESULTS)
    assert RESULTS.with_suffix(".md").read_text() == markdown(results, "results.png")
    readme = (ROOT / "README.md").read_text()
    assert readme == with_summary(readme, results)
