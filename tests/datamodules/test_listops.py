"""ListOps: its grammar, its values, its files and its floors."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from helpers import few_examples
from hypothesis import given
from hypothesis import strategies as st

from datamodules import ListOpsDataModule
from datamodules.loading import Part
from datamodules.sequences.base import LabelledSequences, starts_of
from datamodules.sequences.expressions import CLOSE, NAMES, floors, structure_of, values_of
from datamodules.sequences.grammar import Grammar
from datamodules.sequences.listops_files import load_official, parsed
from npbench.errors import InputError

SHORT = {"max_depth": 5, "max_args": 4, "min_length": 5, "max_length": 60}
HEADER = "Source\tTarget\r\n"


def small(folder: Path, **options: object) -> ListOpsDataModule:
    sizes = {"num_train": 300, "num_val": 40, "num_test": 50, "cache_dir": str(folder)}
    return ListOpsDataModule(**SHORT | sizes | options)


def ids(text: str) -> np.ndarray:
    return parsed(text, "here")


def value(text: str, max_depth: int | None = None) -> int:
    tokens = ids(text)
    return int(values_of(tokens, np.array([0, len(tokens)]), max_depth)[0])


def by_hand(tokens: list[str]) -> int:
    """The value by recursion; it takes the tokens of one expression off the front."""
    first = tokens.pop(0)
    if first.isdigit():
        return int(first)
    arguments = []
    while tokens[0] != "]":
        arguments.append(by_hand(tokens))
    tokens.pop(0)
    arguments.sort()
    middle = arguments[(len(arguments) - 1) // 2] + arguments[len(arguments) // 2]
    return {
        "[MIN": arguments[0], "[MAX": arguments[-1], "[MED": middle // 2, "[SM": sum(arguments) % 10
    }[first]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("( ( ( [MED 3 ) 4 ) ] )", 3),
        ("7", 7),
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 [SM 9 9 1 ] [MED 1 5 2 8 ] ]", 9),
        ("[SM [MAX 1 2 X [MIN 3 [MED 8 9 ] ] 6 ]", 1),
    ],
)
def test_the_value_of_an_expression(text: str, expected: int) -> None:
    assert value(text) == expected


def test_the_values_agree_with_an_independent_evaluator(shared: Path) -> None:
    rows = load_official(shared / "golden/memory/listops.tsv")
    assert len(rows) == 100
    assert (rows.lengths.min(), rows.lengths.max()) == (4, 1954)
    assert (values_of(rows.tokens, rows.starts) == rows.labels).all()


@few_examples
@given(random=st.randoms(use_true_random=False))
def test_the_values_of_many_are_those_of_each_by_recursion(random: Random) -> None:
    new = Grammar(**SHORT).expressions((random.randrange(1000),))
    drawn = [next(new) for _ in range(200)]
    starts = starts_of(np.array([len(each) for each in drawn]))
    expected = [by_hand([NAMES[token] for token in each]) for each in drawn]
    assert values_of(np.concatenate(drawn), starts).tolist() == expected


def test_what_is_deeper_than_one_knows_is_left_out() -> None:
    text = "[SM 3 [MAX 4 [MIN 8 2 ] [SM 9 9 ] ] [MED [MIN 1 1 ] [MAX 5 5 ] ] ]"
    assert value(text) == (3 + 8 + 3) % 10
    assert value(text, 3) == (3 + 8 + 3) % 10
    assert value(text, 2) == (3 + 4) % 10
    assert value(text, 1) == 3
    assert value("[SM [MAX 1 2 ] [MIN 3 4 ] ]", 1) == -1


def test_expressions_are_drawn_within_the_bounds_of_the_grammar() -> None:
    grammar = Grammar(max_depth=4, max_args=3, min_length=6, max_length=30)
    new = grammar.expressions((0,))
    drawn = [next(new) for _ in range(2000)]
    lengths = {len(each) for each in drawn}
    # No expression has 6 tokens where operators take 2 or 3 arguments.
    assert min(lengths) == 7
    assert 28 <= max(lengths) <= 30
    numbers = set()
    for each in drawn:
        depth, parent = structure_of(each)
        assert depth.max() <= 3
        arguments = np.bincount(parent[(parent >= 0) & (each != CLOSE)])
        numbers |= set(arguments[arguments > 0].tolist())
    assert numbers == {2, 3}
    counts = np.bincount(np.concatenate(drawn), minlength=len(NAMES))
    digits, operators = counts[2:12] / counts[2:12].sum(), counts[12:16] / counts[12:16].sum()
    assert np.abs(digits - 0.1).max() < 0.01
    assert np.abs(operators - 0.25).max() < 0.02
    assert counts[12:16].sum() == counts[CLOSE]


def test_the_share_of_trees_that_fit_is_that_of_the_official_grammar() -> None:
    """8.3 % of trees are of the official length, and their mean length is 1034."""
    lengths = [len(each) for _, each in zip(range(600), Grammar().expressions((1,)))]
    assert 990 < np.mean(lengths) < 1080
    assert min(lengths) > 500
    assert max(lengths) < 2000


def test_no_expression_comes_twice_in_any_part(tmp_path: Path) -> None:
    data = small(tmp_path, max_depth=3, max_args=2, min_length=4, max_length=8)
    seen = [
        rows[index].tobytes()
        for rows in (data.rows(part) for part in (Part.TRAIN, Part.VALIDATE, Part.TEST))
        for index in range(len(rows))
    ]
    assert len(seen) == 390
    assert len(set(seen)) == 390


def test_a_larger_training_set_begins_with_the_smaller_one(tmp_path: Path) -> None:
    few, many = (small(tmp_path, num_train=number) for number in (100, 300))
    for part in (Part.TRAIN, Part.TEST):
        first, second = few.rows(part), many.rows(part)
        assert all((first[index] == second[index]).all() for index in range(len(first)))


def test_the_cache_has_what_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = small(tmp_path).rows(Part.TRAIN)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(Grammar, "expressions", None)
    cached = small(tmp_path).rows(Part.TRAIN)
    assert (cached.tokens == drawn.tokens).all()
    assert (cached.labels == drawn.labels).all()
    assert (values_of(cached.tokens, cached.starts) == cached.labels).all()


def test_batches_are_padded_and_of_similar_lengths(tmp_path: Path) -> None:
    data = small(tmp_path, batch_size=10, min_length=5, max_length=60)
    batches = [data.training_batch(index) for index in range(30)]
    spread = []
    for batch in batches:
        assert ((batch.tokens == 0) == ~batch.mask).all()
        assert batch.mask.sum(1).max() == batch.tokens.shape[1]
        spread.append(float(batch.mask.sum(1).float().std()))
    assert np.mean(spread) < 3
    passed = sum(batch.labels.bincount(minlength=10) for batch in batches)
    labels = data.rows(Part.TRAIN).labels
    assert passed.tolist() == np.bincount(labels, minlength=10).tolist()


def test_the_floors_are_accuracies_of_those_who_know_a_part() -> None:
    texts = [
        "[MIN 1 5 ]",
        "[MIN 2 [MAX 0 3 ] ]",
        "[MAX [SM 4 4 ] 9 ]",
        "[MAX [SM 4 4 ] [SM 1 7 ] ]",
    ]
    tokens = [ids(text) for text in texts]
    rows = LabelledSequences.of(tokens, [1, 2, 9, 8])
    train = LabelledSequences.of([*tokens, tokens[1]], [1, 2, 9, 8, 2])
    found = floors(train, rows, depths=(2,))
    assert found == {
        "majority": 0.25,  # 2
        "root_operator": 0.5,  # 2 for [MIN, 8 for [MAX
        "own_digits": 1.0,  # the last one has no digits of its own, and 8 is the guess
        "depth_2": 1.0,
    }


@pytest.mark.slow
def test_the_official_floors_are_those_that_were_measured(tmp_path: Path) -> None:
    """On 10,000 expressions: 17.3, 37.0, 48.9, 67.4 and 80.3 %, with errors of half a percent."""
    data = ListOpsDataModule(num_train=4000, num_val=1, num_test=8000, cache_dir=str(tmp_path))
    expected = {"majority": 0.173, "root_operator": 0.370, "own_digits": 0.489, "depth_2": 0.674}
    found = data.floors()
    for name, floor in expected.items():
        assert found[name] == pytest.approx(floor, abs=0.02), name


def write(folder: Path, content: str) -> Path:
    path = folder / "basic_train.tsv"
    path.write_bytes(content.encode("latin-1"))
    return path


def test_the_official_files_are_read_as_they_are(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        lines = f"{HEADER}( ( ( [MED 3 ) 4 ) ] )\t3\r\n5\t5\r\n"
        (tmp_path / f"basic_{name}.tsv").write_bytes(lines.encode())
    data = ListOpsDataModule(path=str(tmp_path), batch_size=2)
    rows = data.rows(Part.TEST)
    assert [data.text_of(rows[index]) for index in range(2)] == ["[MED 3 4 ]", "5"]
    assert rows.labels.tolist() == [3, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("5\t5\n", "line 1: the header is '5\\\\t5' in place of Source and Target"),
        (HEADER + "5\t5\n[MAX 1 2\t2\n", "line 3: the expression is not balanced"),
        (HEADER + "[MAX 1 2 ] ]\t2\n", "line 2: the expression is not balanced"),
        (HEADER + "( [MAX 1 2 ]\t2\n", "line 2: the expression is not balanced"),
        (HEADER + "1 2\t2\n", "line 2: there is more than one expression"),
        (HEADER + "[MAX ]\t2\n", "line 2: an operator has no arguments"),
        (HEADER + "[MAX 1 12 ]\t2\n", "line 2: the token '12' is none of"),
        (HEADER + "[MUL 1 2 ]\t2\n", r"line 2: the token '\[MUL' is none of"),
        (HEADER + " \t2\n", "line 2: the expression is empty"),
        (HEADER + "5\t10\n", "line 2: the value '10' is no digit from 0 to 9"),
        (HEADER + "5\n", "line 2: there are 0 tabs, and one is expected"),
        (HEADER, "has no expressions behind its header"),
        ("Source\tTarget\n\xff\t5\n", "is no file of ListOps"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as error:
        load_official(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_depth": 1}, "max_depth=1 and max_args=4 must be 2 or more"),
        ({"min_length": 61}, "min_length=61 must be 1 or more, and not above max_length=60"),
        ({"operator_probability": 0.0}, "operator_probability=0.0 must be above 0"),
        ({"num_val": 0}, "num_val=0 must be 1 or more"),
        ({"path": "nowhere"}, "there is no nowhere/basic_train.tsv"),
        (
            {"max_depth": 2, "max_args": 2, "min_length": 4, "num_train": 500},
            "hardly more than 400 different expressions of 4 to 60 tokens",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        small(tmp_path, **options).rows(Part.TRAIN)
