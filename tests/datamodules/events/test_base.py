"""What event data modules promise: every event predicted once, and the same batches for all."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_same_record, few_examples
from helpers.event_files import (
    Events,
    events,
    random_events,
    rows,
    whole,
    write_folds,
    write_text,
)
from hypothesis import given
from hypothesis import strategies as st

from datamodules.events.base import EventWindows
from datamodules.loading import Part
from npbench import EventSequences


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of 40 sequences of 2 to 12 events, of marks 1, 2 and 3."""
    return write_folds(tmp_path_factory.mktemp("events") / "folds")


def predicted_events(*batches: EventSequences) -> Counter:
    """How often each interval is predicted, with the mark that ends it."""
    return Counter(
        (round(interval, 6), mark)
        for times, marks in rows(*batches)
        for interval, mark in zip(np.diff(times).tolist(), marks[1:])
    )


def ranks(path: Path, world_size: int, ready: int = 0, **options: object) -> list:
    """The same data module on each rank, at batch `ready` of its run."""
    copies = []
    total = SimpleNamespace(ready=ready)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=total)))
    for rank in range(world_size):
        copy = events(path, seed=1, **options)
        copy.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, fit_loop=loop, max_steps=-1,
            accumulate_grad_batches=1,
        )  # fmt: skip
        copies.append(copy)
    return copies


# Windows


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8),
    max_length=st.none() | st.integers(2, 8),
    end=st.none() | st.just(1000.0),
)
@few_examples
def test_windows_predict_every_event_but_the_first_of_a_sequence_once(
    lengths: list[int], max_length: int | None, end: float | None
) -> None:
    # Intervals 1, 2, 3, … tell the events apart; marks are their numbers.
    times = np.cumsum(np.arange(sum(lengths), dtype=np.float64))
    marks = np.arange(sum(lengths))
    windows = EventWindows.cut(times, marks, np.array(lengths), max_length, end)
    if not len(windows):
        assert max(lengths) < (2 if end is None else 1)
        return
    batch = windows.batch(np.arange(len(windows)))
    found = [mark for _, marks in rows(batch) for mark in marks[1:]]
    starts = np.cumsum(lengths) - lengths
    expected = set(range(sum(lengths))) - set(starts[np.array(lengths) > 0].tolist())
    assert sorted(found) == sorted(expected)
    lasts = {start + length - 1 for start, length in zip(starts.tolist(), lengths)}
    for row, (window, kinds) in enumerate(rows(batch)):
        assert len(window) <= (max_length or 20)
        assert window == tuple(times[list(kinds)] - times[kinds[0]])
        assert kinds == tuple(range(kinds[0], kinds[0] + len(kinds)))
        if end is not None:
            until = end if kinds[-1] in lasts else times[kinds[-1]]
            assert batch.end[row].item() == until - times[kinds[0]]
    assert (batch.end is None) == (end is None)
    assert batch.times.shape[1] == max(2, *(len(window) for window, _ in rows(batch)))
    padding = ~batch.mask
    assert (batch.marks[padding] == 0).all()
    assert (batch.intervals[~batch.predicted] == 0).all()


def test_seconds_since_1970_and_milliseconds_between_events(tmp_path: Path) -> None:
    sequences = [([1.4e9, 1.4e9 + 0.001, 1.4e9 + 0.003], [1, 2, 3])] * 30
    data = events(write_text(tmp_path, train_1=random_events(30), test_1=sequences))
    batch = data.evaluation_batch(range(30))
    assert batch.times.dtype == torch.float64
    assert torch.allclose(batch.times, torch.tensor([0, 0.001, 0.003]).double(), rtol=0, atol=3e-7)


def test_times_may_have_another_unit(root: Path) -> None:
    seconds, minutes = (events(root, time_unit=unit, end=2e9) for unit in (1.0, 60.0))
    for first, second in zip(seconds.val_dataloader(), minutes.val_dataloader()):
        torch.testing.assert_close(first.times / 60, second.times, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(first.end / 60, second.end)
    ratio = seconds.interval_statistics.mean / minutes.interval_statistics.mean
    assert ratio == pytest.approx(60, rel=1e-6)


@pytest.mark.parametrize("max_length", [None, 4])
def test_statistics_are_those_of_the_training_intervals(root: Path, max_length: int | None) -> None:
    data = events(root, max_length=max_length)
    intervals = np.concatenate([np.diff(times) for times, _ in rows(whole(data, Part.TRAIN))])
    logs = np.log(intervals)
    expected = intervals.mean(), logs.mean(), logs.std()
    assert data.interval_statistics == pytest.approx(expected, rel=1e-9)


def test_statistics_of_equal_or_no_intervals_are_finite(tmp_path: Path) -> None:
    regular = [([1.0, 3.0, 5.0], [1, 1, 1]), ([2.0, 4.0], [1, 1])] * 20
    data = events(write_text(tmp_path, train_1=regular, test_1=regular))
    assert data.interval_statistics == pytest.approx((2.0, np.log(2), 1.0))
    at_once = [([float(number)] * 2, [1, 1]) for number in range(40)]
    write_text(tmp_path, train_1=at_once)
    data = events(tmp_path, on_duplicates="keep")
    assert data.interval_statistics == pytest.approx((0.0, np.log(1e-8), 1.0))


# Training batches


def test_a_training_batch_is_a_function_of_seed_rank_and_index(root: Path) -> None:
    data, other_rank = ranks(root, 2)
    batch = data.training_batch(3, rank=1)
    torch.rand(3)
    assert_same_record(other_rank.training_batch(3, rank=1), batch)
    (other_seed, _) = ranks(root, 2)
    other_seed.seed = 2
    for other in (
        data.training_batch(4, 1),
        data.training_batch(3, 0),
        other_seed.training_batch(3, 1),
    ):
        assert set(rows(other)) != set(rows(batch))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_do_not_depend_on_the_number_of_workers(
    root: Path, num_workers: int
) -> None:
    data = events(root, num_workers=num_workers)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.windows(Part.TRAIN)) // 8
    for index, batch in enumerate(batches):
        assert_same_record(batch, data.training_batch(index))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_pass_takes_every_training_sequence_once(root: Path, world_size: int) -> None:
    """But for fewer than would fill a batch on every rank, others in each pass."""
    copies = ranks(root, world_size)
    number = len(copies[0].windows(Part.TRAIN))
    steps = number // (8 * world_size)
    passes = [
        rows(
            *(
                copy.training_batch(index, copy.trainer.global_rank)
                for index in range(first, first + steps)
                for copy in copies
            )
        )
        for first in (0, steps, 2 * steps)
    ]
    everything = set(rows(whole(copies[0], Part.TRAIN)))
    assert len(everything) == number
    for each in passes:
        assert len(set(each)) == len(each) == steps * 8 * world_size
        assert set(each) <= everything
    assert passes[0] != passes[1]
    assert number % 8 == 0 or len({frozenset(each) for each in passes}) > 1
    assert all(len(copy.train_dataloader()) == steps for copy in copies)


def test_sequences_of_like_length_come_together_in_changing_batches(tmp_path: Path) -> None:
    data = events(write_folds(tmp_path / "long", number=300, longest=100), batch_size=10)
    batches = list(data.train_dataloader())
    real, padded = (
        sum(f(batch) for batch in batches)
        for f in (lambda batch: batch.mask.sum(), lambda batch: batch.mask.numel())
    )
    assert real / padded > 0.95
    # Not sorted as a whole: long and short batches come in any order, and ties are broken anew.
    lengths = [batch.times.shape[1] for batch in batches]
    falls = sum(first > second for first, second in pairwise(lengths))
    assert 0.3 < falls / len(lengths) < 0.7
    steps = len(batches)
    together = [{frozenset(rows(data.training_batch(i + n * steps))) for i in range(steps)}
                for n in range(2)]  # fmt: skip
    assert len(together[0] & together[1]) < steps / 10


def test_batches_are_of_pools_not_of_all_sequences(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.passes._POOL", 1)
    batches = list(events(root, seed=11).train_dataloader())
    assert all((np.diff(batch.mask.sum(1)) >= 0).all() for batch in batches)
    assert np.mean([batch.mask.float().mean() for batch in batches]) < 0.8


def test_a_data_set_smaller_than_a_batch_is_taken_again(root: Path) -> None:
    data = events(root, batch_size=200)
    assert len(data.train_dataloader()) == 1
    counts = Counter(rows(data.training_batch(0)))
    assert sum(counts.values()) == 200
    assert len(counts) == len(data.windows(Part.TRAIN))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_an_epoch_begins_where_the_trainer_is(root: Path) -> None:
    (data,) = ranks(root, world_size=1, ready=5)
    for step, batch in enumerate(data.train_dataloader()):
        assert_same_record(batch, data.training_batch(5 + step))


def test_loading_leaves_the_global_random_state_alone(root: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    data = events(root)
    data.prepare_data()
    data.setup("fit")
    list(data.train_dataloader())
    list(data.test_dataloader())
    assert torch.equal(torch.rand(3), expected)


# Evaluation


def expected_events(sequences: list[Events]) -> Counter:
    return Counter(
        (round(after - before, 6), mark - 1)
        for times, marks in sequences
        for before, after, mark in zip(times, times[1:], marks[1:])
    )


@pytest.mark.parametrize("max_length", [None, 2, 5])
@pytest.mark.parametrize("loader", ["test", "predict"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_test_event_is_predicted_once(
    root: Path, loader: str, max_length: int | None, world_size: int
) -> None:
    batches = [
        batch
        for copy in ranks(root, world_size, max_length=max_length)
        for batch in getattr(copy, f"{loader}_dataloader")()
    ]
    assert predicted_events(*batches) == expected_events(random_events(40, seed=1))


@pytest.mark.parametrize("loader", ["val", "test", "predict"])
@pytest.mark.parametrize(
    "change",
    [{"eval_batch_size": 1}, {"eval_batch_size": 50, "num_workers": 2}, {"seed": 9}],
    ids=["alone", "workers", "training"],
)
def test_evaluation_does_not_depend_on_how_it_is_loaded(
    root: Path, loader: str, change: dict
) -> None:
    expected = rows(*getattr(events(root), f"{loader}_dataloader")())
    assert rows(*getattr(events(root, **change), f"{loader}_dataloader")()) == expected


def test_evaluation_goes_by_length_and_prediction_by_the_file(root: Path) -> None:
    data = events(root)
    for part in (Part.VALIDATE, Part.TEST):
        lengths = [len(times) for times, _ in rows(whole(data, part))]
        assert lengths == sorted(lengths)
    written = [tuple(mark - 1 for mark in marks) for _, marks in random_events(40, seed=1)]
    assert [marks for _, marks in rows(*data.predict_dataloader())] == written


def test_training_sequences_are_not_evaluated(root: Path) -> None:
    data = events(root)
    parts = [set(rows(whole(data, part))) for part in (Part.TRAIN, Part.VALIDATE, Part.TEST)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 120
    assert len(parts[2]) == 40
