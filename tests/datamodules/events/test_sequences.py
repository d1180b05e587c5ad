"""Event sequences from files: splits, marks, and what is not in order."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from helpers.event_files import (
    Events,
    easytpp,
    events,
    long_table,
    random_events,
    rows,
    whole,
    write_folds,
    write_text,
)

from datamodules import EventSequenceDataModule
from datamodules.loading import Part


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of 40 sequences of 2 to 12 events, of marks 1, 2 and 3."""
    return write_folds(tmp_path_factory.mktemp("events") / "folds")


# Splits


def test_validation_is_a_share_that_neither_order_nor_others_move(tmp_path: Path) -> None:
    """Within 4 standard errors."""
    sequences = random_events(400)
    write_text(tmp_path, train_1=sequences, test_1=random_events(9, seed=5))
    before = set(rows(whole(events(tmp_path, val_share=0.3), Part.VALIDATE)))
    assert abs(len(before) - 120) < 4 * (0.3 * 0.7 * 400) ** 0.5
    Random(0).shuffle(sequences)
    write_text(tmp_path, train_1=sequences + random_events(50, seed=3))
    data = events(tmp_path, val_share=0.3)
    after = set(rows(whole(data, Part.VALIDATE)))
    assert before < after
    assert not before & set(rows(whole(data, Part.TRAIN)))


def test_a_table_is_split_by_the_names_of_its_sequences(tmp_path: Path) -> None:
    """Whatever happens in them; shares within 4 standard errors."""
    frame = long_table(random_events(500))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.assign(time=frame["time"] * 2).to_csv(tmp_path / "b.csv", index=False)
    sizes = {}
    for part, share in ((Part.TRAIN, 0.5), (Part.VALIDATE, 0.2), (Part.TEST, 0.3)):
        first, second = (
            events(tmp_path / name, val_share=0.2, test_share=0.3) for name in ("a.csv", "b.csv")
        )
        sizes[part] = len(first.windows(part))
        assert abs(sizes[part] - 500 * share) < 4 * (share * (1 - share) * 500) ** 0.5
        marks = [{marks for _, marks in rows(whole(data, part))} for data in (first, second)]
        assert marks[0] == marks[1]
    assert sum(sizes.values()) == 500


def test_a_validation_set_of_the_data_is_taken(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "dev", "test")):
        content = easytpp(random_events(5 + seed, seed=seed))
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    data = events(tmp_path)
    assert [len(data.windows(part)) for part in (Part.TRAIN, Part.VALIDATE, Part.TEST)] == [
        5,
        6,
        7,
    ]
    assert data.num_marks == 4
    assert data.vocabulary == [0, 1, 2, 3]


# Marks


def tiny(folder: Path, marks: list, test: list | None = None, **options: object) -> object:
    """A data module of sequences of these marks, at times 1, 2, …, as tables."""
    folder.mkdir(exist_ok=True)
    for name, kinds in (("train", marks), ("val", marks), ("test", test or marks)):
        times = np.arange(1.0, len(kinds) + 1).tolist()
        long_table([(times, kinds)]).to_csv(folder / f"{name}.csv", index=False)
    return events(folder, **options)


@pytest.mark.parametrize(
    ("marks", "vocabulary", "indices"),
    [
        ([30, -7, 30, 4], [-7, 4, 30], (2, 0, 2, 1)),
        (["sell", "buy", "10", "9"], ["10", "9", "buy", "sell"], (3, 2, 0, 1)),
    ],
    ids=["numbers", "text"],
)
def test_marks_are_indexed_by_the_training_split(
    tmp_path: Path, marks: list, vocabulary: list, indices: tuple
) -> None:
    data = tiny(tmp_path, marks, test=marks[::-1])
    assert data.vocabulary == vocabulary
    assert data.num_marks == len(vocabulary)
    assert rows(whole(data, Part.TRAIN))[0][1] == indices
    assert rows(whole(data))[0][1] == indices[::-1]


def test_marks_of_what_is_held_out_are_known(tmp_path: Path) -> None:
    sequences = [([1.0, 2.0 + mark], [mark, mark]) for mark in range(50)]
    long_table(sequences).to_csv(tmp_path / "a.csv", index=False)
    write_text(tmp_path / "text", train_1=sequences, test_1=sequences[:5])
    for path in (tmp_path / "a.csv", tmp_path / "text"):
        data = events(path)
        data.setup()
        assert data.vocabulary == list(range(50))
        for _, marks in rows(whole(data, Part.VALIDATE)):
            assert marks[0] not in {first for _, (first, _) in rows(whole(data, Part.TRAIN))}


def test_an_unknown_mark_is_named_or_left_out(tmp_path: Path) -> None:
    message = (
        r"test\.csv, line 4: mark 'hold' is none of the 2 of the training sequences \(buy, sell\); "
        r"mend the file, or set unknown_marks to drop"
    )
    test = ["sell", "buy", "hold", "buy"]
    data = tiny(tmp_path, ["buy", "sell"], test)
    data.setup("fit")
    with pytest.raises(ValueError, match=message):
        data.train_dataloader()
    batch = whole(events(tmp_path, unknown_marks="drop"))
    assert rows(batch) == [((0.0, 1.0, 3.0), (1, 0, 0))]


def test_an_unknown_mark_of_text_files_is_named(tmp_path: Path) -> None:
    write_text(tmp_path, train_1=random_events(40), test_1=[([1.0, 2.0], [1, 2]), ([1.0], [9])])
    message = (
        r"time-1-test\.txt \(with event-1-test\.txt\), line 2, event 1: mark 9 is none of the 3 of "
        r"the training sequences \(1, 2, 3\)"
    )
    with pytest.raises(ValueError, match=message):
        events(tmp_path).setup()


def test_a_mark_beyond_those_that_are_announced_is_named(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        content = easytpp([([0.0, 1.0], [0, 7])], num_marks=7)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    message = r"json, sequence 1, event 2: mark 7 is none of the 7 of .* \(0, 1, 2, …, 6\)"
    with pytest.raises(ValueError, match=message):
        events(tmp_path).setup()


def test_marks_of_numbers_are_text_where_others_are(tmp_path: Path) -> None:
    data = tiny(tmp_path, ["1", "x", "2"], test=[2, 1])
    assert rows(whole(data))[0][1] == (1, 0)


def test_a_vocabulary_that_is_set_holds(tmp_path: Path) -> None:
    """For data with fewer marks, or with more in the test than in the training."""
    vocabulary = tiny(tmp_path / "first", ["a", "b", "c", "d"]).vocabulary
    assert vocabulary == ["a", "b", "c", "d"]
    data = tiny(tmp_path / "second", ["d", "b"], test=["b", "c", "d"])
    data.prepare_data()
    data.setup("test")
    assert data.num_marks == 2
    assert rows(whole(data, Part.TRAIN))[0][1] == (1, 0)
    data.vocabulary = vocabulary
    assert data.num_marks == 4
    assert rows(whole(data, Part.TRAIN))[0][1] == (3, 1)
    assert rows(whole(data))[0][1] == (1, 2, 3)
    other = tiny(tmp_path / "third", ["a", "z"])
    other.vocabulary = vocabulary
    message = r"train\.csv, line 3: mark 'z' is none of the 4 of the model \(a, b, c, …, d\)"
    with pytest.raises(ValueError, match=message):
        other.train_dataloader()


# Times that are not in order


def in_test(folder: Path, sequence: Events, **options: object) -> EventSequenceDataModule:
    """With a second test sequence."""
    write_text(folder, train_1=random_events(40), test_1=[([1.0, 2.0, 3.0], [1, 2, 3]), sequence])
    return events(folder, **options)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([5.0, 7.0, 6.5], "event 3: time 6.5 lies before 7.0, the time of the event before; mend"),
        ([5.0, 7.0, 7.0], "event 3: time 7.0 is that of the event before; mend the file, or set o"),
        ([5.0, float("nan"), 7.0], "event 2: time nan is not finite"),
        ([5.0, 6.0, float("inf")], "event 3: time inf is not finite"),
    ],
    ids=["fall", "stand", "nan", "inf"],
)
def test_times_out_of_order_are_named(tmp_path: Path, times: list[float], message: str) -> None:
    data = in_test(tmp_path, (times, [1, 2, 3]))
    with pytest.raises(ValueError, match=rf"time-1-test\.txt .*, line 2, {message}"):
        data.setup()


@pytest.mark.parametrize(
    ("on_disorder", "on_duplicates", "times", "marks"),
    [
        ("sort", "keep", (0.0, 1.0, 1.0, 2.0, 2.0), (2, 1, 0, 0, 1)),
        ("sort", "drop", (0.0, 1.0, 2.0), (2, 1, 0)),
    ],
)
def test_times_out_of_order_may_be_mended(
    tmp_path: Path, on_disorder: str, on_duplicates: str, times: tuple, marks: tuple
) -> None:
    sequence = [2.5, 2.5, 1.5, 3.5, 3.5], [2, 1, 3, 1, 2]
    data = in_test(tmp_path, sequence, on_disorder=on_disorder, on_duplicates=on_duplicates)
    found = rows(*data.predict_dataloader())
    assert found == [((0.0, 1.0, 2.0), (0, 1, 2)), (times, marks)]


def test_sorting_leaves_duplicates_to_be_named(tmp_path: Path) -> None:
    """By the place where they were."""
    data = in_test(tmp_path, ([6.0, 5.0, 6.0], [1, 1, 1]), on_disorder="sort")
    with pytest.raises(ValueError, match=r"line 2, event 3: time 6\.0 is that of the event before"):
        data.setup()


def test_the_time_of_one_sequence_may_lie_before_that_of_another(tmp_path: Path) -> None:
    assert len(in_test(tmp_path, ([1.0, 2.0], [1, 1])).windows(Part.TEST)) == 2
    assert len(in_test(tmp_path, ([3.0, 4.0], [1, 1])).windows(Part.TEST)) == 2


@pytest.mark.parametrize(("end", "number"), [(None, 1), (9.0, 2)])
def test_a_single_event_is_left_out_but_where_its_end_is_known(
    tmp_path: Path, end: float | None, number: int
) -> None:
    write_text(tmp_path, train_1=[([1.0 + n / 99, 2.0], [1, 2]) for n in range(40)])
    write_text(tmp_path, test_1=[([3.0], [1]), ([], []), ([1.0, 2.0], [1, 2])])
    batch = whole(events(tmp_path, end=end))
    assert batch.batch_size == number
    if end is not None:
        assert batch.mask.tolist() == [[True, False], [True, True]]
        assert batch.end.tolist() == [6.0, 8.0]


def test_an_event_behind_the_end_is_named(tmp_path: Path) -> None:
    write_text(tmp_path, train_1=[([1.0 + n / 99, 2.0], [1, 2]) for n in range(40)])
    write_text(tmp_path, test_1=[([1.0, 2.5], [1, 2]), ([1.0, 3.0], [1, 2])])
    message = r"line 2, event 2: time 3\.0 lies behind end=2\.5, until when every sequence was obs"
    with pytest.raises(ValueError, match=message):
        events(tmp_path, end=2.5, time_unit=10.0).setup()


# Bad input


def test_a_split_without_sequences_is_named(tmp_path: Path) -> None:
    write_text(tmp_path, train_1=random_events(40), test_1=[([1.0], [1]), ([2.0], [1])])
    message = "has 2 sequences for testing, none of two events or more; add some"
    with pytest.raises(ValueError, match=message):
        events(tmp_path).setup()
    write_text(tmp_path, train_1=random_events(1), test_1=random_events(3))
    with pytest.raises(ValueError, match=r"has [01] sequences for (training|validation), none of"):
        events(tmp_path).setup()


def test_each_part_of_few_sequences_has_one(tmp_path: Path) -> None:
    for seed in range(5):
        folder = write_text(
            tmp_path / f"{seed}", train_1=random_events(2, seed), test_1=random_events(1)
        )
        data = events(folder)
        assert len(data.windows(Part.VALIDATE)) == len(data.windows(Part.TRAIN)) == 1
        long_table(random_events(3), f"{seed}").to_csv(tmp_path / f"{seed}.csv", index=False)
        data = events(tmp_path / f"{seed}.csv")
        assert [len(data.windows(part)) for part in (Part.TRAIN, Part.VALIDATE, Part.TEST)] == [
            1,
            1,
            1,
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 0}, "fold=0 must be 1 or more"),
        ({"max_length": 1}, "max_length=1 must be 2 or more: the first is history"),
        ({"time_unit": 0.0}, "time_unit=0.0 must be above 0"),
        ({"val_share": 0.0}, "val_share=0.0 and test_share=0.1 must be above 0"),
        ({"val_share": 0.6, "test_share": 0.4}, "leave some sequences to train on"),
        ({"columns": ("time", "mark")}, r"columns=\('time', 'mark'\) must be those of sequence"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"eval_batch_size": 0}, "eval_batch_size=0 must be 1 or more"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_batches_are_refused(
    root: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        events(root, **arguments)


# Stack Overflow


def test_stack_overflow_is_read_as_it_is(shared: Path) -> None:
    """6,630 sequences of five folds of 1,326, and 485,843 events."""
    data = events(shared / "data" / "events" / "stackoverflow", fold=2, time_unit=86400.0)
    data.setup()
    assert data.num_marks == 22
    assert data.vocabulary == list(range(1, 23))
    sizes = [len(data.windows(part)) for part in (Part.TRAIN, Part.VALIDATE, Part.TEST)]
    assert sum(sizes) == 6630
    assert sizes[2] == 1326
    batches = [*data.val_dataloader(), *data.test_dataloader(), whole(data, Part.TRAIN)]
    assert sum(batch.num_predicted for batch in batches) == 485843 - 6630
    assert sum(batch.num_predicted for batch in data.test_dataloader()) == 97775 - 1326
    first = next(iter(data.predict_dataloader()))
    line = (shared / "data/events/stackoverflow/time-2-test.txt").read_text().splitlines()[0]
    times = np.array(line.split(), dtype=np.float64)
    assert first.times[0][first.mask[0]].numpy() == pytest.approx((times - times[0]) / 86400)
