"""Every format is read as it is written; what is wrong in a file is named by its place."""

import gzip
import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from helpers.event_files import (
    Events,
    easytpp,
    gatech,
    long_table,
    random_events,
    write_folds,
    write_text,
)

from datamodules.events.formats.detect import load_events
from datamodules.events.formats.event_table import EventTable
from datamodules.loading import Part
from npbench.errors import InputError

TRAIN, VAL, TEST = (random_events(number, seed=number) for number in (9, 4, 5))


def events_in(table: EventTable) -> list[Events]:
    cuts = np.cumsum(table.lengths)[:-1]
    parts = zip(np.split(table.times, cuts), np.split(table.marks, cuts))
    return [(times.tolist(), marks.tolist()) for times, marks in parts]


def from_start(sequences: list[Events]) -> list[Events]:
    return [([time - times[0] for time in times], marks) for times, marks in sequences]


def assert_read(
    found: dict[Part, EventTable], convert: object = lambda sequences: sequences
) -> None:
    """All three parts, as they were written."""
    assert {part: events_in(table) for part, table in found.items()} == {
        Part.TRAIN: convert(TRAIN), Part.VALIDATE: convert(VAL), Part.TEST: convert(TEST)
    }  # fmt: skip


# Text pairs


def test_text_pairs_with_training_files(tmp_path: Path) -> None:
    write_text(tmp_path, train_2=TRAIN, test_2=TEST, test_1=VAL)
    found = load_events(tmp_path, fold=2)
    assert events_in(found[Part.TRAIN]) == TRAIN
    assert events_in(found[Part.TEST]) == TEST


def test_text_pairs_without_are_trained_on_all_other_folds(tmp_path: Path) -> None:
    write_text(tmp_path, test_1=TRAIN, test_2=VAL, test_10=TEST)
    found = load_events(tmp_path, "text", fold=2)
    assert events_in(found[Part.TRAIN]) == TRAIN + TEST
    assert events_in(found[Part.TEST]) == VAL


def test_lines_may_be_empty_or_end_in_spaces(tmp_path: Path) -> None:
    write_text(tmp_path, train_1=TRAIN, test_1=[])
    (tmp_path / "time-1-test.txt").write_text("1.5 2.5 \n\n3e0\n\n")
    (tmp_path / "event-1-test.txt").write_text("7 8\n\n-9 ")
    assert events_in(load_events(tmp_path)[Part.TEST]) == [
        ([1.5, 2.5], [7, 8]),
        ([], []),
        ([3], [-9]),
    ]


@pytest.mark.parametrize(
    ("times", "marks", "message"),
    [
        ("1 2\n3", "1 2", r"time-1-test\.txt has 2 lines and event-1-test\.txt 1: line 2 is missi"),
        ("1 2", "1 2\n3\n4", r"has 1 lines and event-1-test\.txt 3: line 2 is missing from one"),
        ("1 2\n3 4", "1 2\n3", r"event-1-test\.txt, line 2: 1 marks, where time-1-test\.txt has 2"),
        ("1 2\n3 x", "1 2\n3 4", r"time-1-test\.txt, line 2, event 2: 'x' is no number"),
        ("1 2\n3 4", "1 2\n3.5 4", r"event-1-test\.txt, line 2, event 1: '3.5' is no whole number"),
        ("1 2", "1 99999999999999999999", r"line 1, event 2: '9+' is no whole number"),
    ],
    ids=["short", "long", "ragged", "time", "mark", "huge"],
)
def test_pairs_that_do_not_fit_are_named(
    tmp_path: Path, times: str, marks: str, message: str
) -> None:
    write_text(tmp_path, train_1=TRAIN)
    (tmp_path / "time-1-test.txt").write_text(times)
    (tmp_path / "event-1-test.txt").write_text(marks)
    with pytest.raises(ValueError, match=message):
        load_events(tmp_path)


def test_text_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_text(tmp_path, train_1=TRAIN, test_1=TEST)
    for file in tmp_path.glob("*-test.txt"):
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert events_in(load_events(tmp_path)[Part.TEST]) == TEST


def test_text_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    write_text(tmp_path, test_2=TEST)
    with pytest.raises(FileNotFoundError, match=r"no time-1-test.txt; set fold to one of \[2\]"):
        load_events(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks time-2-train.txt, and has no other fold"):
        load_events(tmp_path, fold=2)
    (tmp_path / "event-2-test.txt").unlink()
    write_text(tmp_path, train_2=TRAIN)
    with pytest.raises(FileNotFoundError, match=r"time-2-test.txt has no event-2-test.txt beside"):
        load_events(tmp_path, fold=2)


# JSON and pickles


def write_parts(folder: Path, suffix: str, names: tuple[str, ...], form: object = easytpp) -> Path:
    for name, sequences in zip(names, (TRAIN, VAL, TEST)):
        if suffix == ".pkl":
            content = {"dim_process": 4, "args": None, name: form(sequences), "other": []}
            (folder / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
        elif suffix == ".jsonl":
            lines = [json.dumps(sequence) for sequence in form(sequences)]
            (folder / f"{name}{suffix}").write_text("\n".join(lines))
        else:
            (folder / f"{name}{suffix}").write_text(json.dumps(form(sequences)))
    return folder


@pytest.mark.parametrize("form", [easytpp, gatech], ids=["easytpp", "gatech"])
@pytest.mark.parametrize("validation", ["dev", "val", "valid", "validation"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".pkl"])
def test_a_folder_of_objects(tmp_path: Path, suffix: str, validation: str, form: object) -> None:
    write_parts(tmp_path, suffix, ("train", validation, "test"), form)
    found = load_events(tmp_path)
    assert_read(found, from_start)
    announced = form is easytpp or suffix == ".pkl"
    assert found[Part.TRAIN].num_marks == (4 if announced else None)


@pytest.mark.parametrize("suffix", [".json", ".pkl"])
def test_one_file_of_all_splits(tmp_path: Path, suffix: str) -> None:
    content = {"dim_process": 4, "train": gatech(TRAIN), "dev": gatech(VAL), "test": gatech(TEST)}
    file = tmp_path / f"data{suffix}"
    file.write_bytes(json.dumps(content).encode() if suffix == ".json" else pickle.dumps(content))
    assert_read(load_events(file), from_start)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".pkl"])
@pytest.mark.parametrize("levels", [900, 100_000])
def test_what_is_nested_deeply_is_refused_in_one_sentence(
    tmp_path: Path, suffix: str, levels: int
) -> None:
    file = tmp_path / f"data{suffix}"
    nested = b"[" * levels + b"]" * levels
    if suffix == ".jsonl":
        nested = b"[]\n" + nested
    if suffix == ".pkl":  # empty lists, each then put into the one before
        nested = b"\x80\x04" + b"]" * levels + b"a" * (levels - 1) + b"."
    file.write_bytes(nested)
    with pytest.raises(InputError, match=r"nested too deeply|neither an object|no list of num"):
        load_events(file)


def test_one_list_is_split_later(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(easytpp(TRAIN)))
    found = load_events(tmp_path / "data.json")
    assert events_in(found) == from_start(TRAIN)


def test_one_sequence_is_a_file_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(easytpp(TRAIN)[0]))
    assert events_in(load_events(tmp_path / "data.jsonl")) == from_start(TRAIN[:1])


def changed(**values: object) -> list[dict]:
    """Two sequences, the second with other values; None takes one away."""
    good = easytpp([([0.0, 1.0, 3.0], [0, 1, 2])] * 2)
    good[1] = {k: v for k, v in (good[1] | values).items() if v is not None}
    return good


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(type_event=None), "sequence 2 has no type_event, only dim_process, seq_idx"),
        (changed(time_since_start=None), "sequence 2 has no time_since_start"),
        (changed(type_event=[0, 1]), "sequence 2 has 3 times, 2 marks and seq_len 3"),
        (changed(seq_len=4), "sequence 2 has 3 times, 3 marks and seq_len 4"),
        (changed(type_event=[0, 1.5, 2]), "sequence 2, event 2: mark 1.5 is no whole number"),
        (changed(type_event=[0, 1e20, 2]), r"event 2: mark 1e\+20 is no whole number"),
        (changed(type_event=[0, None, 2]), "sequence 2, event 2: mark nan is no whole number"),
        (changed(type_event=[0, "x", 2]), "sequence 2, type_event is no list of numbers: .*'x'"),
        (changed(time_since_start=5), "sequence 2, time_since_start is no list of numbers"),
        (
            changed(time_since_last_event=[0.0, 1.0, 2.5]),
            "event 3: time_since_last_event is 2.5, but time_since_start goes from 1.0 to 3.0",
        ),
        (changed(time_since_last_event=[0.0, 1.0]), "has 3 times and 2 time_since_last_event"),
        (changed(dim_process=5), "sequence 2: dim_process is 5, after 4 before"),
        (easytpp(TRAIN, 0), "sequence 1: dim_process is 0, not a number of marks"),
        ([[{"time_since_start": 0.0}]], "sequence 1, event 1 has no type_event"),
        ([7], "sequence 1 is neither an object nor a list of events: 7"),
        ({"dim_process": 4, "args": None}, "holds dim_process, args, and no sequences"),
        (7, "holds no list of sequences but 7"),
    ],
    ids=[
        "no-marks", "no-times", "lengths", "announced", "half", "huge", "none", "text", "number",
        "contradiction", "intervals", "dims", "dim", "event", "thing", "empty", "content",
    ],
)  # fmt: skip
def test_objects_that_are_no_sequences_are_named(
    tmp_path: Path, content: object, message: str
) -> None:
    write_parts(tmp_path, ".json", ("train", "dev", "test"))
    (tmp_path / "test.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"test\.json.* {message}"):
        load_events(tmp_path)


def test_intervals_may_be_rounded(tmp_path: Path) -> None:
    content = changed(time_since_last_event=[0.0, 1.0001, 1.9999])
    (tmp_path / "data.json").write_text(json.dumps(content))
    assert len(load_events(tmp_path / "data.json")) == 2


def test_the_first_interval_may_count_from_anything(tmp_path: Path) -> None:
    content = changed(time_since_last_event=[7.0, 1.0, 2.0])
    (tmp_path / "data.json").write_text(json.dumps(content))
    assert len(load_events(tmp_path / "data.json")) == 2


def test_json_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text("[1, 2")
    with pytest.raises(ValueError, match=r"data\.json is no JSON: "):
        load_events(file)
    file.write_text('{"a": 1}\n\n{"a": ')
    with pytest.raises(ValueError, match=r"data\.json, line 3 is no JSON: "):
        load_events(file)


def test_splits_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps({"train": easytpp(TRAIN)}))
    with pytest.raises(ValueError, match=r"data\.json holds train, and lacks test"):
        load_events(tmp_path / "data.json")
    write_parts(tmp_path, ".pkl", ("train",))
    with pytest.raises(FileNotFoundError, match=r"lacks test \(test\.json test\.jsonl test\.pkl"):
        load_events(tmp_path)
    (tmp_path / "test.pkl").write_bytes((tmp_path / "train.pkl").read_bytes())
    with pytest.raises(ValueError, match="a file for test holds train, other in its stead"):
        load_events(tmp_path)
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds train\.json, train\.pkl, and one file is to be"):
        load_events(tmp_path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(easytpp(TRAIN)), encoding="utf-8-sig")
    assert events_in(load_events(tmp_path / "data.json")) == from_start(TRAIN)


# Long tables


def write_table(frame: pd.DataFrame, file: Path) -> None:
    if file.suffix in (".parquet", ".pq"):
        frame.to_parquet(file, index=False)
    else:
        frame.to_csv(file, index=False)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".pq"])
def test_tables_of_each_split(tmp_path: Path, suffix: str) -> None:
    for name, sequences in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        write_table(long_table(sequences), tmp_path / f"{name}{suffix}")
    assert_read(load_events(tmp_path))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_rows_of_sequences_may_be_mixed(tmp_path: Path, suffix: str) -> None:
    """Within each, they stand in order."""
    frame = long_table(TRAIN).sort_values("time", kind="stable")
    write_table(frame, tmp_path / f"all{suffix}")
    table = load_events(tmp_path / f"all{suffix}")
    names = list(dict.fromkeys(frame["sequence"]))
    assert table.names.tolist() == names
    assert events_in(table) == [TRAIN[int(name.removeprefix("user"))] for name in names]
    place = np.flatnonzero(frame["sequence"] == names[0])[1]
    assert table.where(1).endswith(f", {'line' if suffix == '.csv' else 'row'} "
                                   f"{place + (2 if suffix == '.csv' else 1)}")  # fmt: skip


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    names = {"sequence": "user", "time": "at", "mark": "what"}
    frame = long_table(TEST).rename(columns=names).assign(time="x", more=1)
    write_table(frame, tmp_path / "a.csv")
    assert events_in(load_events(tmp_path / "a.csv", columns=("user", "at", "what"))) == TEST


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_marks_may_be_text(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"sequence": 1, "time": [0.5, 1, 2], "mark": ["buy", "NA", "1"]})
    write_table(frame, tmp_path / f"a{suffix}")
    table = load_events(tmp_path / f"a{suffix}")
    assert table.marks.tolist() == ["buy", "NA", "1"]
    assert table.vocabulary == ["1", "NA", "buy"]
    assert table.names.tolist() == ["1"]


def test_marks_may_be_whole_floats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sequence,time,mark\na,1,2.0\na,2,-3\n")
    assert load_events(tmp_path / "a.csv").marks.tolist() == [2, -3]


def test_sequences_and_marks_of_a_csv_are_as_it_spells_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sequence,time,mark\n01,1,01\n1,2,1\n01,3,1\n1.0,4,10\n")
    table = load_events(tmp_path / "a.csv")
    assert table.names.tolist() == ["01", "1", "1.0"]
    assert events_in(table) == [([1, 3], ["01", "1"]), ([2], ["1"]), ([4], ["10"])]


@pytest.mark.parametrize(
    ("spelled", "marks"),
    [
        (["1.0", "2.", "-30"], [1, 2, -30]),
        (["0", " 1", "10 "], [0, 1, 10]),
        (["01", "02", "10"], ["01", "02", "10"]),
        (["1", "1.0", "2"], ["1", "1.0", "2"]),
        (["1", "NaN", "1.5"], ["1", "NaN", "1.5"]),
        (["true", "1e3", "+1"], ["true", "1e3", "+1"]),
    ],
    ids=["whole", "spaces", "zeros", "twice", "nan", "others"],
)
def test_marks_of_a_csv_are_numbers_where_that_changes_none(
    tmp_path: Path, spelled: list[str], marks: list
) -> None:
    rows = "".join(f"a,{time},{mark}\n" for time, mark in enumerate(spelled))
    (tmp_path / "a.csv").write_text(f"sequence,time,mark\n{rows}")
    assert load_events(tmp_path / "a.csv").marks.tolist() == marks


def test_a_parquet_file_has_types_of_its_own(tmp_path: Path) -> None:
    frame = pd.DataFrame({"sequence": [1, 1], "time": [0.5, 1], "mark": ["1", "2"]})
    write_table(frame, tmp_path / "a.parquet")
    write_table(frame.astype({"mark": int}), tmp_path / "b.parquet")
    assert load_events(tmp_path / "a.parquet").marks.tolist() == ["1", "2"]
    assert load_events(tmp_path / "b.parquet").marks.tolist() == [1, 2]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_durations_count_as_seconds(tmp_path: Path, unit: str) -> None:
    times = pd.to_timedelta([0, 1500, 86_400_000], unit="ms").as_unit(unit)
    write_table(pd.DataFrame({"sequence": "a", "time": times, "mark": 0}), tmp_path / "a.parquet")
    assert load_events(tmp_path / "a.parquet").times.tolist() == [0, 1.5, 86400]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_true_is_no_time(tmp_path: Path, suffix: str) -> None:
    write_table(long_table([([True, False], [1, 1])]), tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=rf"a{suffix}, (line 2|row 1): time 'True' is no number"):
        load_events(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_timestamps_are_seconds_since_1970(tmp_path: Path, zone: str | None) -> None:
    times = pd.to_datetime([10**12, 10**12 + 125], unit="ms", utc=zone is not None)
    times = times.tz_convert(zone) if zone else times
    frame = pd.DataFrame({"sequence": "a", "time": times, "mark": 0})
    write_table(frame, tmp_path / "a.parquet")
    times = load_events(tmp_path / "a.parquet").times
    assert times == pytest.approx([1e9, 1e9 + 0.125], rel=0, abs=2e-7)


def test_blank_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sequence,time,mark\n\na,1,1\n\na,2,1\n\n")
    table = load_events(tmp_path / "a.csv")
    assert events_in(table) == [([1, 2], [1, 1])]
    assert table.where(1).endswith("a.csv, line 5")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1,1\na,,1", r"line 3: there is no time"),
        ("a,1,\na,2,1", r"line 2: there is no mark"),
        ("a,1,1\n,2,1", r"line 3: there is no sequence"),
        ("a,1,1\na,soon,1", r"line 3: time 'soon' is no number"),
        ("a,1,1\na,NaN,1", r"line 3: time 'NaN' is no number"),
        ("a,1,1\na,2,1.5", r"line 3: mark 1.5 is neither whole number nor text"),
        ("a,1,1\na,2,inf", r"line 3: mark inf is neither whole number nor text"),
        ("a,1,1\na,2,1,9", r"cannot be read: "),
    ],
    ids=["time", "mark", "sequence", "word", "nan", "half", "inf", "ragged"],
)
def test_rows_that_are_no_events_are_named(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"sequence,time,mark\n{rows}\n")
    with pytest.raises(ValueError, match=rf"a\.csv,? {message}"):
        load_events(tmp_path / "a.csv")


def test_tables_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,at\n1,2\n")
    message = r"a\.csv has no column 'sequence', only user, at; set columns to its names"
    with pytest.raises(ValueError, match=message):
        load_events(tmp_path / "a.csv")
    whole = gzip.compress(b"sequence,time,mark\n" + b"a,1,1\n" * 99)
    for name, content in (
        ("b.parquet", b"none"), ("c.csv.gz", whole[:-12]), ("d.csv.gz", b"none"), ("e.csv", b""),
        ("g.csv.gz", whole[:10] + b"\xff" * 9),
        ("f.csv", b"sequence,time,mark\n\xff\xfe,1,1\n"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{re.escape(name)} cannot be read: "):
            load_events(tmp_path / name)


# Parts without events


def parts_as_one_file(folder: Path, **parts: list[Events]) -> Path:
    content = {name: gatech(sequences) for name, sequences in parts.items()}
    (folder / "data.json").write_text(json.dumps({"dim_process": 4} | content))
    return folder / "data.json"


def parts_as_pickles(folder: Path, **parts: list[Events]) -> Path:
    for name, sequences in parts.items():
        content = {"dim_process": 4, name: gatech(sequences)}
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content))
    return folder


def parts_as_tables(folder: Path, **parts: list[Events]) -> Path:
    for name, sequences in parts.items():
        write_table(long_table(sequences), folder / f"{name}.csv")
    return folder


PARTS = pytest.mark.parametrize("write", [parts_as_one_file, parts_as_pickles, parts_as_tables])


@PARTS
def test_validation_without_events_counts_as_none(tmp_path: Path, write: Callable) -> None:
    found = load_events(write(tmp_path, train=TRAIN, dev=[], test=TEST))
    assert {part: len(table) for part, table in found.items()} == {Part.TRAIN: 9, Part.TEST: 5}


@PARTS
@pytest.mark.parametrize("empty", ["train", "test"])
def test_other_parts_without_events_are_named(tmp_path: Path, write: Callable, empty: str) -> None:
    path = write(tmp_path, **({"train": TRAIN, "test": TEST} | {empty: []}))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} holds no events for {empty}$"):
        load_events(path)


def test_text_without_events_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no events for test$"):
        load_events(write_text(tmp_path, train_1=TRAIN, test_1=[([], [])]))


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "sequence,time,mark\n"), ("a.json", "[]"), ("b.json", "[[]]")]
)
def test_a_file_without_events_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} holds no events$"):
        load_events(tmp_path / name)


# The hub


def test_a_data_set_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str) -> dict[str, list[dict]]:
        asked.append(name)
        return {"train": easytpp(TRAIN), "validation": easytpp(VAL), "test": easytpp(TEST)}

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert_read(load_events("easytpp/taxi"), from_start)
    found = load_events("someone/taxi", "huggingface")
    assert asked == ["easytpp/taxi", "someone/taxi"]
    assert found[Part.TEST].where(1) == "someone/taxi, test, sequence 1, event 2"


def test_the_hub_takes_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"reading easytpp/taxi .* takes the package datasets: pip install 'npbench\[hub\]'"
    with pytest.raises(ValueError, match=message):
        load_events("easytpp/taxi")


# Finding out the format


def test_paths_of_no_format_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds nothing, of no known format\. The formats are: t"):
        load_events(tmp_path)
    for name in "fedcba":
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds a, b, c, d, e, …, of no known format"):
        load_events(tmp_path)
    with pytest.raises(ValueError, match=r"a is a file of no known format\. The formats are: text"):
        load_events(tmp_path / "a")
    for format in ("auto", "text", "easytpp", "table"):
        with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere\. The formats are: te"):
            load_events(tmp_path / "nowhere", format)


def test_a_folder_named_like_a_data_set_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "easytpp").mkdir()
    write_folds(tmp_path / "easytpp" / "taxi")
    monkeypatch.chdir(tmp_path)
    assert len(load_events("easytpp/taxi")[Part.TEST]) == 40
    (tmp_path / "easytpp" / "taxi.json").write_text(json.dumps(easytpp(TEST)))
    assert len(load_events("easytpp/taxi.json")) == len(TEST)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_the_separator_and_decimal_mark_of_a_long_table_are_recognised(
    tmp_path: Path, separator: str, decimal: str
) -> None:
    if separator == ",":
        decimal = "."
    path = tmp_path / "a.csv.gz"
    rows = pd.DataFrame({"sequence": "a", "time": [0.1, 1234.5], "mark": ["x,y", "z"]})
    rows.to_csv(path, index=False, sep=separator, decimal=decimal)
    table = load_events(path)
    assert table.times.tolist() == [0.1, 1234.5]
    assert table.marks.tolist() == ["x,y", "z"]


def test_dates_of_a_csv_file_are_seconds_since_1970(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sequence,time,mark\na,1970-01-02,1\na,1970-01-02T00:00:01.5,2\n")
    times = load_events(path).times
    assert times.tolist() == [86_400.0, 86_401.5]
    path.write_text("sequence,time,mark\na,1970-01-02,1\na,tomorrow,2\n")
    with pytest.raises(ValueError, match=r"line 3: time 'tomorrow' is no number, nor date"):
        load_events(path)
