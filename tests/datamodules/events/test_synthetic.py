"""Sequences of a known process are fixed data sets that come with their exact answers."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same_record

from datamodules import (
    HawkesProcess,
    PointProcess,
    PoissonProcess,
    RenewalProcess,
    SyntheticEventDataModule,
)
from datamodules.loading import Part
from npbench import EventSequences
from npbench.commands.sections import instantiate

HAWKES = HawkesProcess([0.3, 0.1], [[0.3, 0.5], [0.1, 0.2]], 1.5)


def synthetic(process: PointProcess = HAWKES, **options: object) -> SyntheticEventDataModule:
    sizes = {"num_train": 40, "num_val": 20, "num_test": 30, "batch_size": 8, "num_events": 10}
    return SyntheticEventDataModule(process, **(sizes | {"eval_batch_size": 7} | options))


def rows(batches: list[EventSequences]) -> list[tuple[list[float], list[int], list[float]]]:
    """Each sequence of some batches, without padding, and its exact answers."""
    return [
        (times[mask].tolist(), marks[mask].tolist(), exact[mask[1:]].tolist())
        for batch in batches
        for times, marks, mask, exact in zip(batch.times, batch.marks, batch.mask, batch.exact)
    ]


@pytest.mark.parametrize("extent", [{"num_events": 12}, {"end": 9.0}], ids=["number", "end"])
@pytest.mark.parametrize(
    "process", [HAWKES, PoissonProcess(0.7, 0.9, 3.0), RenewalProcess()], ids=lambda p: type(p)
)
def test_exact_answers_are_the_process_s(process: PointProcess, extent: dict) -> None:
    data = synthetic(process, **extent)
    for kind in ("train", "val", "test", "predict"):
        for batch in getattr(data, f"{kind}_dataloader")():
            assert_close(batch.exact, process.log_likelihood(batch))
            assert (batch.exact[~batch.predicted] == 0).all()
            assert (batch.times[:, 0] > 0).all()


def test_the_ceiling_of_a_constant_rate_is_known() -> None:
    """NLL 1 − log λ, within 4 standard errors, as λτ has variance 1."""
    batch = synthetic(PoissonProcess(3.0), num_test=200).evaluation_batch(range(200))
    nll = -batch.exact.sum().item() / batch.num_predicted
    assert abs(nll - (1 - math.log(3))) < 4 / batch.num_predicted**0.5


def test_sequences_have_the_number_of_events() -> None:
    batch = synthetic(num_events=12).evaluation_batch(range(30))
    assert batch.times.shape == (30, 12)
    assert batch.mask.all()
    assert batch.end is None


def test_sequences_observed_until_an_end_keep_it() -> None:
    """Also those of one event, which say that no other came; but none without any."""
    data = synthetic(end=4.0, num_test=600)
    batch = data.evaluation_batch(range(len(data.windows(Part.TEST))))
    lengths = batch.mask.sum(1)
    assert 0 < (lengths == 1).sum() < len(lengths) < 600
    assert torch.equal(batch.end, torch.full([len(lengths)], 4.0, dtype=torch.float64))
    assert (batch.times <= 4).all()
    alone = data.evaluation_batch(range(1))
    assert alone.mask.tolist() == [[True, False]]
    assert alone.exact.tolist() == [[0.0]]
    # HAWKES has 0.4 events a time unit at first: none until the end with probability exp(−1.6).
    share = math.exp(-1.6)
    error = (share * (1 - share) / 600) ** 0.5
    assert abs(1 - len(lengths) / 600 - share) < 4 * error


def test_a_larger_training_set_begins_with_the_smaller() -> None:
    small, large = (synthetic(num_train=number).windows(Part.TRAIN) for number in (300, 600))
    assert len(small) == 300
    assert len(large) == len(set(large.times[::10].tolist())) == 600
    for name in ("times", "marks", "exact"):
        assert np.array_equal(getattr(small, name), getattr(large, name)[: 300 * 10])


@pytest.mark.parametrize("kind", ["val", "test", "predict"])
@pytest.mark.parametrize(
    "change",
    [{"eval_batch_size": 1}, {"num_workers": 2, "eval_batch_size": 4}, {"seed": 3, "num_train": 9}],
    ids=["alone", "workers", "training"],
)
def test_evaluation_sequences_are_functions_of_eval_seed(kind: str, change: dict) -> None:
    loader = f"{kind}_dataloader"
    expected = rows(list(getattr(synthetic(eval_seed=2, end=9.0), loader)()))
    torch.manual_seed(77)
    changed = synthetic(eval_seed=2, end=9.0, **change)
    assert rows(list(getattr(changed, loader)())) == expected
    assert rows(list(getattr(synthetic(eval_seed=3, end=9.0), loader)())) != expected


def test_splits_and_seeds_differ() -> None:
    first = [synthetic().windows(part).times[0] for part in (Part.TRAIN, Part.VALIDATE, Part.TEST)]
    first += [synthetic(seed=1).windows(Part.TRAIN).times[0]]
    first += [synthetic(eval_seed=1).windows(part).times[0] for part in (Part.VALIDATE, Part.TEST)]
    assert len(set(first)) == 6


def test_prediction_takes_the_test_sequences_as_they_were_drawn() -> None:
    data = synthetic(end=9.0)
    everything = range(len(data.windows(Part.TEST)))
    predicted, tested = (
        rows([data.evaluation_batch(everything, s)]) for s in (Part.PREDICT, Part.TEST)
    )
    assert sorted(predicted) == sorted(tested)
    assert predicted != tested
    assert [len(times) for times, *_ in tested] == sorted(len(times) for times, *_ in predicted)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_do_not_depend_on_the_number_of_workers(num_workers: int) -> None:
    batches = list(synthetic(num_workers=num_workers, seed=4).train_dataloader())
    assert len(batches) == 5
    data = synthetic(seed=4)
    for index, batch in enumerate(batches):
        assert_same_record(batch, data.training_batch(index))


def test_ranks_train_on_different_sequences() -> None:
    data = synthetic(num_train=48)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)
    seen = rows([data.training_batch(index, rank) for index in range(3) for rank in range(2)])
    assert len({times[0] for times, *_ in seen}) == 48


def test_drawing_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    data = synthetic()
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.test_dataloader()):
        list(loader)
    assert torch.equal(torch.rand(3), expected)


def test_models_learn_the_marks_and_the_scale_of_time_from_it() -> None:
    data = synthetic(RenewalProcess("lognormal", 2.0, 1.0, [0.5, 0.2, 0.3]), num_train=3000)
    assert data.num_marks == 3
    variance = math.log(1.25)
    expected = 2.0, math.log(2) - variance / 2, variance**0.5
    assert data.interval_statistics == pytest.approx(expected, abs=0.02)


def test_processes_are_configured_in_yaml(tmp_path: Path) -> None:
    process = """{class_path: datamodules.HawkesProcess, init_args:
        {baseline: [0.2, 1], excitation: [[0.3, 0.2], [0.1, 0.4]], decay: 2}}"""
    (tmp_path / "a.yaml").write_text(
        f"data: {{class_path: datamodules.SyntheticEventDataModule, init_args: {{num_train: 7, "
        f"process: {process}}}}}"
    )
    data = instantiate(tmp_path / "a.yaml", "data", SyntheticEventDataModule)
    assert data.process.baseline.tolist() == [0.2, 1.0]
    assert data.process.excitation.tolist() == [[0.3, 0.2], [0.1, 0.4]]
    assert data.process.decay == 2
    assert data.num_train == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_events": 1}, "num_events=1 must be 2 or more: the first is history"),
        ({"end": 0.0}, "end=0.0 must be above 0"),
        ({"num_train": 0}, "num_train=0 must be 1 or more"),
        ({"num_val": 0}, "num_val=0 must be 1 or more"),
        ({"num_test": 0}, "num_test=0 must be 1 or more"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"eval_batch_size": 0}, "eval_batch_size=0 must be 1 or more"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_sequences_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic(**arguments)


def test_a_window_too_short_for_any_event_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sequence has an event until end=1e-09; take a later"):
        synthetic(end=1e-9).setup()
