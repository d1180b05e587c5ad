"""Values of columns become a model's numbers, and numbers values again."""

import math

import numpy as np
import pytest
import torch
from helpers import few_examples
from hypothesis import given
from hypothesis import strategies as st

from npbench.errors import DataWarning, InputError
from npbench.scaling import Column, Scaling

KINDS = ["standard", "min-max", "log", "none"]
COLUMNS = (
    (Column("day"), Column("hour", "circular", scale=24.0)),
    (
        Column("rain", "log", -1.0, 2.0),
        Column("temperature", "standard", 15.0, 10.0),
    ),
)


def scaling() -> Scaling:
    return Scaling(*COLUMNS, dates="days since 2020-01-01")


@given(
    kind=st.sampled_from(KINDS),
    values=st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=20, unique=True),
)
@few_examples
def test_decoding_undoes_encoding(kind: str, values: list[float]) -> None:
    column = Column.fit("v", kind, np.array(values))
    numbers = column.encode(torch.tensor(values, dtype=torch.float64))
    assert numbers.shape == (len(values), column.width)
    np.testing.assert_allclose(column.decode(numbers[:, 0]), values, 1e-9, 1e-9 * max(values))


def test_fitted_numbers_are_standard_or_run_between_the_ends() -> None:
    values = np.array([2.0, 4.0, np.nan, 9.0])
    known = torch.tensor(values[[0, 1, 3]])
    for kind in ("standard", "log"):
        numbers = Column.fit("v", kind, values).encode(known)
        assert float(numbers.mean()) == pytest.approx(0, abs=1e-12)
        assert float(numbers.std(correction=0)) == pytest.approx(1)
    numbers = Column.fit("v", "min-max", values, (-3.0, 5.0)).encode(known)
    assert (float(numbers.min()), float(numbers.max())) == pytest.approx((-3, 5))


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5))
@few_examples
def test_units_of_chunks_are_those_of_the_whole(sizes: list[int]) -> None:
    generator = np.random.default_rng(0)
    x, y = (
        1e3 + generator.normal(size=(sum(sizes) + 2, 2)),
        generator.uniform(1, 9, (sum(sizes) + 2, 1)),
    )
    cuts = np.cumsum(sizes)
    chunks = list(zip(np.split(x, cuts), np.split(y, cuts)))
    names = ["a", "b"], ["c"], {"c": "log", "b": "circular(24)"}
    for one, other in zip(Scaling.of_chunks(chunks, *names).y, Scaling.fit(x, y, *names).y):
        assert (one.shift, one.scale) == pytest.approx((other.shift, other.scale))
    with pytest.raises(InputError, match="column a has no values"):
        Scaling.of_chunks([], *names)


def test_the_ends_of_a_circle_meet() -> None:
    column = Column.fit("hour", "circular(24)", np.array([1.0]))
    first, last = column.encode(torch.tensor([0.0, 24.0], dtype=torch.float64))
    np.testing.assert_allclose(first, last, atol=1e-12)
    assert column.width == 2


def test_a_constant_column_is_shifted_and_said_to_be_constant() -> None:
    for kind in ("standard", "min-max", "log"):
        with pytest.warns(DataWarning, match="column v has one value only, 0.1"):
            column = Column.fit("v", kind, np.full(7, 0.1))
        assert column.scale == 1
        assert float(column.encode(torch.tensor(0.1, dtype=torch.float64))) == pytest.approx(0)


def test_the_slope_is_the_derivative_of_the_numbers() -> None:
    values = torch.tensor([[0.5, 20.0]], dtype=torch.float64, requires_grad=True)
    numbers = scaling().encode_y(values)
    slopes = torch.autograd.grad(numbers.sum(), values)[0]
    assert float(scaling().log_slope(numbers.detach())) == pytest.approx(float(slopes.log().sum()))


def test_a_number_of_the_model_is_of_a_column() -> None:
    named = [(index, column.name) for index, column in map(scaling().column_of, range(5))]
    assert named == [(0, "day"), (1, "hour"), (1, "hour"), (2, "rain"), (3, "temperature")]


def test_a_scaling_is_kept_in_texts_and_checkpoints() -> None:
    assert Scaling.from_json(scaling().to_json()) == scaling()
    assert Scaling.of_checkpoint(scaling().to_checkpoint()) == scaling()
    assert Scaling.of_notes(scaling().to_notes()) == scaling()
    assert Scaling.of_checkpoint({}) is Scaling.of_notes({}) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"x": [], "y": []}', '{"x": [{"nam": "a"}], "y": []}', "[" * 10_000,
     '{"x": [{"name": "a"}], "y": [{"name": "b", "scale": 0}]}',
     '{"x": [{"name": "a"}], "y": [{"name": "b", "scale": Infinity}]}',
     '{"x": [{"name": "a"}], "y": [{"name": "b", "scale": "1"}]}',
     '{"x": [{"name": "a"}], "y": [{"name": "b", "kind": "os.system"}]}'],
)  # fmt: skip
@pytest.mark.usefixtures("as_a_user")
def test_what_npbench_has_not_written_is_no_scaling(text: str) -> None:
    with pytest.raises(InputError):
        Scaling.from_json(text)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"a": "standrad"}, "column a has the scaling 'standrad'; choose from standard, min-max"),
        ({"a": "circular"}, r"write its period, as in circular\(24\)"),
        ({"a": "circular(day)"}, r"write a period above 0, as in circular\(24\)"),
        ({"a": "circular(-1)"}, r"write a period above 0, as in circular\(24\)"),
        ({"a": "log"}, "column a holds -1, and its log scaling takes values above 0"),
        ({"b": "circular(24)"}, "column b is an output, which cannot be circular"),
        ({"c": "log"}, "there is a scaling of c, and the columns are a, b"),
    ],
)
def test_a_scaling_that_cannot_be_is_refused(kinds: dict[str, str], message: str) -> None:
    x, y = np.array([[-1.0], [1.0]]), np.array([[1.0], [2.0]])
    with pytest.raises(InputError, match=message):
        Scaling.fit(x, y, ["a"], ["b"], kinds)


def test_a_column_without_values_is_refused() -> None:
    with pytest.raises(InputError, match="column a has no values"):
        Column.fit("a", "standard", np.full(3, math.nan))
    with pytest.raises(InputError, match="two columns of a, a have one name"):
        Scaling((Column("a"),), (Column("a"),))
