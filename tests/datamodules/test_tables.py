"""Tables become tasks in their own units, of which those held out are never trained on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules import TableDataModule
from datamodules.loading import Part
from npbench import Task
from npbench.errors import InputError

pytestmark = pytest.mark.usefixtures("as_a_user")


def days(number: int = 30) -> pd.DataFrame:
    """A function a day, of which a row is known by its output."""
    rows = number * 24
    day = np.repeat(np.arange(number), 24)
    hour = np.tile(np.arange(24), number)
    day_name = [f"day {i}" for i in day]
    return pd.DataFrame({"day": day_name, "hour": hour, "kW": np.arange(rows) + 0.5, "n": "text"})


def field(rows: int = 3000) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    lat, lon = generator.uniform(40, 50, rows), generator.uniform(5, 25, rows)
    return pd.DataFrame({"lat": lat, "lon": lon, "height": np.arange(rows)})


def of_days(path: object = None, **options: object) -> TableDataModule:
    path = days() if path is None else path
    return TableDataModule(path, ["hour"], ["kW"], **({"task": "day"} | options))


def of_field(path: object = None, **options: object) -> TableDataModule:
    path = field() if path is None else path
    return TableDataModule(path, ["lat", "lon"], ["height"], **options)


def outputs(task: Task) -> list[set[float]]:
    """The first outputs of all real points of each task, which tell the rows."""
    return [
        {*yc[real_c][:, 0].tolist(), *yt[real_t][:, 0].tolist()}
        for yc, real_c, yt, real_t in zip(task.yc, task.context_mask, task.yt, task.target_mask)
    ]


def assert_equal(first: Task, second: Task) -> None:
    for a, b in zip(first.tensors(), second.tensors(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [of_days, of_field])
def test_a_batch_is_a_function_of_its_index_and_rank(make: object) -> None:
    first, second = make(), make()
    assert_equal(first.training_batch(3, rank=1), second.training_batch(3, rank=1))
    yc = first.training_batch(3).yc
    assert not torch.equal(yc[:2, :3], first.training_batch(4).yc[:2, :3])
    whole, alone = first.evaluation_batch(range(4)), second.evaluation_batch(range(2, 3))
    number = int(alone.target_mask.sum())
    assert torch.equal(whole.yt[2, :number], alone.yt[0])
    batches = list(make(eval_batch_size=3, num_val_tasks=4).val_dataloader())
    assert [batch.batch_size for batch in batches] == [3, 1]


@pytest.mark.parametrize("make", [of_days, of_field])
def test_no_row_that_is_held_out_is_trained_on(make: object) -> None:
    data = make(batch_size=64)
    seen = {part: set() for part in (Part.TRAIN, Part.VALIDATE, Part.TEST)}
    for index in range(10):
        seen[Part.TRAIN] |= set().union(*outputs(data.training_batch(index)))
    for part in (Part.VALIDATE, Part.TEST):
        seen[part] |= set().union(*outputs(data.evaluation_batch(range(64), part)))
    assert all(seen.values())
    assert not seen[Part.TRAIN] & (seen[Part.VALIDATE] | seen[Part.TEST])
    assert not seen[Part.VALIDATE] & seen[Part.TEST]


def test_a_task_is_of_one_day_and_its_targets_are_not_in_its_context() -> None:
    task = of_days().training_batch(0)
    for rows, context, target in zip(outputs(task), task.context_mask, task.target_mask):
        assert len({value // 24 for value in rows}) == 1
        assert len(rows) == int(context.sum() + target.sum()) == 24
        assert context.sum() >= 3
    assert ((task.xc >= 0) & (task.xc <= 23)).all()


def test_days_are_held_out_by_their_names_and_each_is_evaluated_in_turn() -> None:
    data = of_days()
    names = {
        part: {functions.name(i) for i in range(9)} for part, (functions,) in data.parts.items()
    }
    assert len(names[Part.VALIDATE]) == len(names[Part.TEST]) == 4  # 15 % of 30
    shuffled = of_days(days().sample(frac=1, random_state=0))
    assert {shuffled.parts[Part.TEST][0].name(i) for i in range(9)} == names[Part.TEST]
    task = data.evaluation_batch(range(8))
    first, second = outputs(task)[0], outputs(task)[4]
    assert first == second  # the same day, cut into context and targets otherwise
    assert not torch.equal(task.yc[0], task.yc[4])


@pytest.mark.parametrize("spread", ["local", "global"])
def test_neighbourhoods_are_near_and_global_tasks_are_everywhere(spread: str) -> None:
    data = of_field(spread=spread, neighbourhood=(70, 80), max_num_context=30, max_num_targets=30)
    task = data.training_batch(0)
    x = torch.cat([task.xc, task.xt], dim=1)
    real = torch.cat([task.context_mask, task.target_mask], dim=1)
    width = torch.stack([points[mask].amax(0) - points[mask].amin(0) for points, mask in
                         zip(x, real)]) / torch.tensor([10, 20])  # fmt: skip
    assert (width < 0.4).all() if spread == "local" else (width > 0.6).all()


def test_centred_neighbourhoods_are_in_the_middle_of_the_field() -> None:
    data = of_field(spread="local", centred=True, neighbourhood=(70, 80))
    task = data.training_batch(0)
    middle = torch.tensor([45.0, 15.0])
    assert ((task.xt[task.target_mask] - middle).abs() < torch.tensor([2.5, 5.0])).all()


def test_an_evaluated_task_of_a_field_lies_in_one_block() -> None:
    data = of_field(spread="global")
    rows = data.parts[Part.TEST][0].rows
    group = dict(zip(rows.y[:, 0], rows.group))
    for values in outputs(data.evaluation_batch(range(20))):
        assert len({group[value] for value in values}) == 1
    assert sum(map(len, (data.parts[p][0].rows for p in list(Part)[:3]))) == 3000


def test_the_units_are_those_of_the_training_rows() -> None:
    data = of_days(units={"hour": "circular(24)"})
    train = data.parts[Part.TRAIN][0].rows
    (hour,), (power,) = data.scaling.x, data.scaling.y
    assert (hour.name, hour.kind, hour.scale) == ("hour", "circular", 24)
    assert (power.shift, power.scale) == pytest.approx((train.y.mean(), train.y.std()))
    assert of_days(x_range=(-1, 1)).scaling.x[0].scale == pytest.approx(23 / 2)


def test_a_row_of_which_an_output_is_missing_is_in_no_task(tmp_path: Path) -> None:
    frame = days().assign(kVA=1.0)
    frame.loc[frame["hour"] == 5, "kVA"] = np.nan
    frame.loc[frame["hour"] == 7, "kW"] = np.nan
    for source in (frame, tmp_path / "days.csv", tmp_path / "days.parquet"):
        if isinstance(source, Path):
            frame.to_csv(source) if source.suffix == ".csv" else frame.to_parquet(source)
            source = str(source)
        data = TableDataModule(source, ["hour"], ["kW", "kVA"], task="day")
        task = data.training_batch(0)
        hours = task.xc[task.context_mask].unique().tolist()
        assert not {5, 7} & set(hours)
        assert task.yc.isfinite().all()


def test_dates_are_numbers_and_times_are_hours(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=300, freq="90min")
    frame = pd.DataFrame({"when": times, "clock": times.strftime("%H:%M:%S"), "y": range(300)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    data = TableDataModule(
        str(tmp_path / "a.csv"), ["when", "clock"], ["y"], dates="hours since 2024-01-01"
    )
    rows = data.parts[Part.TRAIN][0].rows
    np.testing.assert_allclose(rows.x[:, 0], rows.y[:, 0] * 1.5)
    np.testing.assert_allclose(rows.x[:, 1], rows.y[:, 0] * 1.5 % 24)
    assert data.scaling.dates == "hours since 2024-01-01"


def test_a_figure_shows_a_whole_function_in_order() -> None:
    task = of_days().figure_task(1)
    assert task.xt[0, :, 0].tolist() == list(range(24))
    assert of_field().figure_task().xt.shape[-1] == 2


def test_duplicated_rows_are_rows() -> None:
    frame = pd.concat([days(), days()])
    twice, once = (of_days(each).parts[Part.TRAIN][0].rows for each in (frame, days()))
    assert len(twice) == 2 * len(once)


def test_mistakes_in_a_table_are_said_in_one_sentence(tmp_path: Path) -> None:
    def csv(frame: pd.DataFrame) -> str:
        frame.to_csv(tmp_path / "mine.csv", index=False)
        return str(tmp_path / "mine.csv")

    missing = days().astype({"hour": float})
    missing.loc[40, "hour"] = np.nan
    words = days().astype({"kW": object})
    words.loc[40, "kW"] = "many"
    mixed = days().assign(hour=["2024-01-01", "1.2.2024"] * 360)
    cases = [
        (missing, {}, r"column hour of .* has no value in row 41; drop such rows|hour .* is nan"),
        (words, {}, r"kW|many"),
        (mixed, {}, r"hour|2024"),
        (days().drop(columns="kW"), {}, "has no column kW; its columns are day, hour"),
        (days(), {"task": "sensor"}, "sensor"),
        (days(), {"task": None, "min_num_context": 400}, "take 401 each: lower min_num_context"),
        (days(2), {}, r"2 value\(s\) of day have 4 rows or more with known outputs"),
        (days().head(1), {"task": None}, "the table has 1 rows|has 1 rows with known outputs"),
        (days().assign(kW=np.nan), {}, "no row of .* has values of kW; name other outputs"),
        (days().assign(day=None), {}, "column day of .* has no value in row 1; drop such rows"),
        (days().assign(hour=3), {"task": None}, "lie at too few places"),
        (days().head(0), {}, "no rows|no row"),
    ]
    options = {"max_num_context": 500}
    for frame, changed, message in cases:
        for source in (frame, csv(frame)):
            with pytest.raises(InputError, match=message) as error:
                _ = of_days(source, **(options | changed)).parts
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_context": 2}, "max_num_context=2 must not be below min_num_context=3"),
        ({"val_share": 0.0}, "must be above 0, and leave something for training"),
        ({"val_share": 0.5, "test_share": 0.5}, "must be above 0, and leave something"),
        ({"spread": "lokal"}, "spread='lokal' must be"),
        ({"task": "kW"}, "column kW is named for two purposes"),
        ({"neighbourhood": (3, 9)}, "must go from more rows than min_num_context=3"),
        ({"units": {"hours": "log"}}, "there is a scaling of hours, and the columns are hour, kW"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _ = of_days(**options).scaling
    with pytest.raises(InputError, match="a column cannot be called target"):
        TableDataModule(days(), ["target"], ["kW"])
