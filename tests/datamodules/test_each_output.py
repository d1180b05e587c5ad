"""Where each output is a function by itself, what is missing of one is missing of no other."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules import TableDataModule
from datamodules.loading import Part
from npbench.errors import InputError

pytestmark = pytest.mark.usefixtures("as_a_user")

# Each value says which row it is of; those of b are this much more.
B = 100_000.0
HELD_OUT = Part.VALIDATE, Part.TEST


def with_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with outputs a and b, each of them missing in other rows, and both in some."""
    row, generator = np.arange(float(len(frame))), np.random.default_rng(0)
    missing = generator.uniform(size=(2, len(frame))) < np.array([[0.2], [0.5]])
    return frame.assign(
        a=np.where(missing[0], np.nan, row), b=np.where(missing[1], np.nan, row + B)
    )


def days(number: int = 30) -> pd.DataFrame:
    hour = np.tile(np.arange(24.0), number)
    return with_gaps(pd.DataFrame({"day": np.repeat(np.arange(number), 24), "hour": hour}))


def field(rows: int = 3000) -> pd.DataFrame:
    x = np.random.default_rng(1).uniform(size=(rows, 2))
    return with_gaps(pd.DataFrame(x, columns=["lat", "lon"]))


def of_days(frame: pd.DataFrame | None = None, **options: object) -> TableDataModule:
    options = {"y": ["a", "b"], "task": "day", "each_output": True} | options
    return TableDataModule(days() if frame is None else frame, ["hour"], **options)


def of_field(frame: pd.DataFrame | None = None, **options: object) -> TableDataModule:
    options = {"y": ["a", "b"], "each_output": True} | options
    return TableDataModule(field() if frame is None else frame, ["lat", "lon"], **options)


def test_the_tasks_are_those_of_tables_without_the_rows_that_lack_the_output() -> None:
    """Every task of training, validation and test, and its units, to the last bit."""
    frame = days()
    both = of_days(frame, num_val_tasks=5, num_test_tasks=5)
    trained_on = set()
    for number, name in enumerate(("a", "b")):
        alone = of_days(frame.dropna(subset=[name]), y=[name], each_output=False)
        pairs = [
            (both.evaluation_batch(range(5 * number, 5 * number + 5), part),
             alone.evaluation_batch(range(5), part))
            for part in HELD_OUT
        ]  # fmt: skip
        for index in range(12):
            task = both.training_batch(index, rank=1)
            if task.output == name:
                pairs.append((task, alone.training_batch(index, rank=1)))
                trained_on.add(name)
        for task, expected in pairs:
            assert (task.output, expected.output) == (name, None)
            for value, other in zip(task.tensors(), expected.tensors(), strict=True):
                assert torch.equal(value, other)
        assert both.scaling.of_output(name) == alone.scaling
    assert trained_on == {"a", "b"}


@pytest.mark.parametrize("make", [of_days, of_field])
def test_no_row_that_is_held_out_is_trained_on_by_any_output(
    make: Callable[..., TableDataModule],
) -> None:
    data = make(batch_size=32, num_val_tasks=20, num_test_tasks=20)
    tasks = {Part.TRAIN: [data.training_batch(index) for index in range(16)]}
    for part in HELD_OUT:
        tasks[part] = [data.evaluation_batch(range(first, first + 20), part) for first in (0, 20)]
    rows: dict[Part, set[float]] = {}
    for part, batches in tasks.items():
        assert {task.output for task in batches} == {"a", "b"}
        values = [
            task.yc[task.context_mask] - B * (task.output == "b") for task in batches
        ] + [task.yt[task.target_mask] - B * (task.output == "b") for task in batches]  # fmt: skip
        rows[part] = set(torch.cat(values).flatten().tolist())
        assert 0 <= min(rows[part]) <= max(rows[part]) < 3000
    train, *held_out = rows.values()
    assert not train & set.union(*held_out)
    assert not set.intersection(*held_out)


def test_outputs_of_a_day_are_held_out_together_though_one_is_known_on_few_days() -> None:
    frame = days()
    frame.loc[frame["day"] % 2 == 1, "b"] = np.nan
    data = of_days(frame, val_share=0.2, test_share=0.2, num_test_tasks=9)
    of_a, of_b = (
        {part: {each.name(i) for i in range(30)} for part, each in parts}
        for parts in (
            [(part, functions[output]) for part, functions in data.parts.items()]
            for output in (0, 1)
        )
    )
    for part, names in of_b.items():
        assert names == {name for name in of_a[part] if int(name) % 2 == 0}
    predicted = list(data.predict_dataloader())
    numbers = {"a": len(of_a[Part.TEST]), "b": len(of_b[Part.TEST])}
    assert {task.output: task.batch_size for task in predicted} == numbers
    assert {name: len(list(each)) for name, each in data.test_dataloader().items()} == {
        "a": 1, "b": 1}  # fmt: skip


def test_every_batch_is_of_one_output_and_every_output_has_its_tasks() -> None:
    data = of_days(eval_batch_size=4, num_val_tasks=6, num_test_tasks=6)
    batches = list(data.val_dataloader())
    assert [(task.output, task.batch_size) for task in batches] == [
        ("a", 4), ("a", 2), ("b", 4), ("b", 2)]  # fmt: skip
    for name, loader in data.test_dataloader().items():
        assert {task.output for task in loader} == {name}
        assert sum(task.batch_size for task in loader) == 6
    drawn = [data.training_batch(index).output for index in range(60)]
    assert 15 < drawn.count("a") < 45  # as many days have a as b
    assert [data.figure_task(index).output for index in range(4)] == ["a", "b", "a", "b"]
    assert of_days(y=["b"]).training_batch(0).output == "b"


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"b": np.nan}, {}, "no row of the table has values of b; name other outputs"),
        (
            {"b": lambda frame: frame["b"].where(frame["day"] == 3)}, {},
            r"b has 4 values or more in none of the \d+ day\(s\) of part \w+: change the shares",
        ),
        ({}, {"task": None, "min_num_context": 200}, "take 201 each: lower min_num_context"),
        (
            {"value": 1.0}, {"y": ["a", "value"]},
            "a column cannot be called value, as one of prediction files is; rename it",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes: dict, options: dict, message: str) -> None:
    options = {"max_num_context": 500} | options
    with pytest.raises(InputError, match=message) as error:
        _ = of_days(days().assign(**changes), **options).parts
    assert "\n" not in str(error.value)
