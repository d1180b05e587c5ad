"""Data that comes as arrays, in chunks, or in files, is the same data."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    SIZES,
    assert_close,
    assert_same_prediction,
    assert_same_record,
    few_examples,
    random_points,
    small,
    small_cmanp,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from npbench.errors import ChunkError
from npbench.models import CMANP
from npbench.models.contracts.inputs import Inputs
from npbench.profiling import LiveTensors
from npbench.tables import PointTable

pytestmark = pytest.mark.usefixtures("as_a_user")

# Of constant size, so that what there is of it on an error is worth keeping.
POOLED = [
    "CMANP", "CMANPAND", "LocatedCMANP", "LocatedCMANPAND", "SecondMomentNP",
    "SecondMomentJointNP", "FourierMomentNP", "ConvCNP", "CNP", "NP",
]  # fmt: skip
Chunk = tuple[np.ndarray, ...]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def arrays(points: int, dim_x: int = 2, dim_y: int = 1, seed: int = 0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    return random.normal(size=(points, dim_x)), random.normal(size=(points, dim_y))


def tensors(*values: np.ndarray, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """The same points as a batch of one task."""
    return tuple(torch.tensor(value, dtype=dtype)[None] for value in values)


def model(dtype: torch.dtype = torch.float32) -> CMANP:
    return small_cmanp(dim_x=2, dim_y=1, dtype=dtype)


def as_it_is(array: np.ndarray, folder: Path) -> np.ndarray:
    return array


def mapped(array: np.ndarray, folder: Path, mode: str = "r") -> np.ndarray:
    path = folder / f"{array.shape[1]}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode=mode)


def raw_map(array: np.ndarray, folder: Path) -> np.ndarray:
    path = folder / f"{array.shape[1]}.raw"
    array.tofile(path)
    return np.memmap(path, array.dtype, mode="r", shape=array.shape)


def big_endian(array: np.ndarray, folder: Path) -> np.ndarray:
    return array.astype(">f8")


def backwards(array: np.ndarray, folder: Path) -> np.ndarray:
    return array[::-1].copy()[::-1]


def by_column(array: np.ndarray, folder: Path) -> np.ndarray:
    return np.asfortranarray(array)


def batched(array: np.ndarray, folder: Path) -> np.ndarray:
    return array[None]


Way = Callable[[np.ndarray, Path], np.ndarray]
WAYS = pytest.mark.parametrize(
    "way", [as_it_is, mapped, raw_map, big_endian, backwards, by_column, batched]
)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_are_converted_to_the_model_s_type(
    way: Way, dtype: torch.dtype, tmp_path: Path
) -> None:
    network, (x, y) = model(dtype), arrays(9)
    xt, yt = tensors(x, y, dtype=dtype)
    given = way(x, tmp_path), way(y, tmp_path)
    with warnings.catch_warnings(action="error"):
        state = network.condition(*given)
        assert_same_record(state, network.condition(xt, yt))
        assert_same_record(network.update(state, *given), network.update(state, xt, yt))
        assert_same_prediction(network.query(state, given[0]), network.query(state, xt), 0.0)
        marginals = network.marginals(state, given[0])
        assert torch.equal(marginals.std, network.query(state, xt).stddev)
        torch.manual_seed(1)
        samples = network.sample(state, given[0], 3)
    torch.manual_seed(1)
    assert torch.equal(samples, network.sample(state, xt, 3))
    assert samples.shape == (3, 1, 9, 1)


@pytest.mark.parametrize("kind", ["f2", "f4", "i8", "u2", "u1", "?"])
def test_numbers_of_every_kind_are_numbers(kind: str) -> None:
    network, (x, y) = model(), arrays(9)
    x = np.abs(x * 3).astype(kind)
    assert_same_record(network.condition(x, y), network.condition(*tensors(x, y)))


def test_a_read_only_map_stays_as_it_is(tmp_path: Path) -> None:
    """Nor does the state depend on it afterwards."""
    x, y = arrays(9)
    mapped_x, mapped_y = mapped(x, tmp_path, "r+"), mapped(y, tmp_path, "r+")
    network, mask = model(), np.arange(9) < 6
    state = network.condition(mapped_x, mapped_y, mask)
    assert np.array_equal(mapped_x, x)
    prediction = network.query(state, x)
    mapped_x[:] = 0.0
    assert_same_prediction(network.query(state, x), prediction, 0.0)
    assert_same_prediction(network.query(network.condition(x[:6], y[:6]), x), prediction)


@pytest.mark.parametrize("as_mask", [np.asarray, torch.tensor])
def test_an_array_s_mask_may_be_of_one_task_too(as_mask: Callable) -> None:
    network, (x, y), mask = model(), arrays(1300), np.arange(1300) % 3 > 0
    spoilt = np.where(mask[:, None], y, np.nan)
    state = network.condition(x, spoilt, as_mask(mask))
    expected = network.condition(*tensors(x, y), torch.tensor(mask)[None])
    assert_same_record(state, expected)
    state = network.update(network.condition(x, y), x, spoilt, as_mask(mask))
    assert state.batch_size == 1
    assert torch.isfinite(state.latents).all()
    marginals = network.marginals(expected, np.where(mask[:, None], x, np.nan), as_mask(mask))
    assert torch.equal(marginals.mean[0, mask], network.query(expected, *tensors(x)).mean[0, mask])


def chunks_of(x: np.ndarray, y: np.ndarray, size: int) -> Iterator[Chunk]:
    for start in range(0, len(x), size):
        yield x[start : start + size], y[start : start + size]


def loader(x: np.ndarray, y: np.ndarray, size: int, folder: Path) -> DataLoader:
    """Of float64, as NumPy's numbers come out of it."""
    return DataLoader(TensorDataset(torch.tensor(x), torch.tensor(y)), batch_size=size)


def generator(x: np.ndarray, y: np.ndarray, size: int, folder: Path) -> Iterator[Chunk]:
    return chunks_of(x, y, size)


def batches(x: np.ndarray, y: np.ndarray, size: int, folder: Path) -> list[tuple[Tensor, ...]]:
    return [tensors(*chunk) for chunk in chunks_of(x, y, size)]


def with_masks(x: np.ndarray, y: np.ndarray, size: int, folder: Path) -> Iterator[Chunk]:
    """Each chunk with a point that is not real."""
    for chunk in chunks_of(x, y, size):
        a, b = (np.pad(z, ((0, 1), (0, 0)), constant_values=np.nan) for z in chunk)
        yield a, b, np.arange(len(a)) < len(a) - 1


def table(x: np.ndarray, y: np.ndarray, size: int, folder: Path) -> PointTable:
    columns = {"lat": x[:, 0], "t": y[:, 0], "lon": x[:, 1]}
    pd.DataFrame(columns).to_parquet(folder / "points.parquet")
    return PointTable(folder / "points.parquet", ["lat", "lon"], ["t"], chunk_size=size)


def path(x: np.ndarray, y: np.ndarray, size: int, folder: Path) -> str:
    columns = {"x1": x[:, 1], "y0": y[:, 0], "x0": x[:, 0]}
    pd.DataFrame(columns).to_csv(folder / "points.csv", index=False)
    return str(folder / "points.csv")


def map_in_chunks(x: np.ndarray, y: np.ndarray, size: int, folder: Path) -> Iterator[Chunk]:
    return chunks_of(mapped(x, folder), mapped(y, folder), size)


STREAMS = pytest.mark.parametrize(
    "stream", [loader, generator, batches, with_masks, table, path, map_in_chunks]
)


@STREAMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stream_is_the_context_at_once(
    stream: Callable, dtype: torch.dtype, tmp_path: Path
) -> None:
    network, (x, y) = model(dtype), arrays(50)
    whole = network.condition(*tensors(x, y, dtype=dtype))
    state = network.condition(stream(x, y, 8, tmp_path))
    assert_same_prediction(network.query(state, x), network.query(whole, x))


@pytest.mark.parametrize("name", ["CNP", "TNPD", "LBANP", "CMANPAND"])
def test_every_model_takes_a_stream(name: str, tmp_path: Path) -> None:
    network, (x, y) = small(name), arrays(12, 2, 3)
    whole = network.condition(*tensors(x, y, dtype=torch.float64))
    for state in (network.condition(x, y), network.condition(chunks_of(x, y, 5))):
        assert_same_prediction(network.query(state, x), network.query(whole, x))


def test_chunks_of_several_tasks_stay_apart() -> None:
    network = model()
    x, y = (z.double().numpy() for z in random_points(3, 10, dim_x=2))
    whole = network.condition(torch.tensor(x).float(), torch.tensor(y).float())
    state = network.condition((x[:, i : i + 4], y[:, i : i + 4]) for i in (0, 4, 8))
    assert state.batch_size == 3
    assert_same_prediction(network.query(state, x), network.query(whole, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_chunks_of_another_type_are_converted(dtype: torch.dtype) -> None:
    x, y = (z.mul(3).to(dtype) for z in random_points(2, 6, dim_x=2))
    network = model()
    assert_same_record(network.condition([(x, y)]), network.condition(x.float(), y.float()))
    state = network.condition(x.float(), y.float())
    (prediction,) = network.query(state, [x])
    assert_same_prediction(prediction, network.query(state, x.float()), 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_tensors_of_another_type_or_of_one_task_are_taken_as_arrays_are(dtype: torch.dtype) -> None:
    x, y = (z[0].mul(3).to(dtype) for z in random_points(1, 6, dim_x=2))
    mask = torch.tensor([True] * 5 + [False])
    network = model()

    def answers(x: Any, y: Any, mask: Any) -> list[Tensor]:
        state = network.condition(x, y, mask)
        state = network.update(state, x[:2], y[:2])
        prediction = network.query(state, x)
        sample = network.sample(state, x).shape
        return [*network.marginals(state, x, mask), prediction.mean, torch.tensor(sample)]

    of_tensors = answers(x, y, mask)
    of_arrays = answers(x.numpy(), y.numpy(), mask.numpy())
    for mine, theirs in zip(of_tensors, of_arrays, strict=True):
        assert torch.equal(mine, theirs)


def test_gradients_reach_tensors_of_another_type() -> None:
    x, y = (z[0].double().requires_grad_() for z in random_points(1, 6, 2))
    network = model()
    with torch.enable_grad():
        network.query(network.condition(x, y), x).mean.sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad.abs().sum() > 0


def test_a_chunk_without_points_changes_nothing() -> None:
    network, (x, y) = model(), arrays(9)
    empty = x[:0], y[:0]
    prior = network.condition([empty])
    assert_same_prediction(network.query(prior, x), network.query(network.condition(*empty), x))
    state = network.condition([empty, (x[:4], y[:4]), empty, (x[4:], y[4:]), empty])
    assert_same_prediction(network.query(state, x), network.query(network.condition(x, y), x))


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), chunk_size=st.integers(1, 50))
@few_examples
def test_large_chunks_are_absorbed_a_piece_at_a_time(sizes: list[int], chunk_size: int) -> None:
    """No piece is larger than it may be, and every point comes once, in its order."""
    door = Inputs(2, 1, torch.float64, torch.device("cpu"))
    x, y = arrays(sum(sizes))
    cuts = np.cumsum(sizes)[:-1]
    chunks = zip(np.split(x, cuts), np.split(y, cuts), strict=True)
    pieces = list(door.chunks(chunks, chunk_size))
    assert all(piece.x.shape[1] <= chunk_size for piece in pieces)
    assert np.array_equal(np.concatenate([piece.x[0] for piece in pieces]), x)
    assert np.array_equal(np.concatenate([piece.y[0] for piece in pieces]), y)


@pytest.mark.parametrize("way", [lambda x, y: (x, y), lambda x, y: (iter([(x, y)]),)])
def test_the_memory_of_a_huge_chunk_is_that_of_its_checks(way: Callable) -> None:
    """Less than that of the inputs themselves; their embeddings would take many times as much."""
    network = model()

    def peak(points: int) -> int:
        given = way(*random_points(1, points, dim_x=2))
        with LiveTensors() as live:
            network.condition(*given)
        return live.peak_bytes

    peak(2000)
    assert peak(50_000) - peak(5000) <= 45_000 * 3 * 4


def test_the_memory_of_an_array_does_not_grow_with_it(tmp_path: Path) -> None:
    network = model()

    def peak(points: int) -> int:
        given = [mapped(z, tmp_path) for z in arrays(points)]
        with LiveTensors() as live:
            network.condition(*given)
        return live.peak_bytes

    peak(2000)
    assert peak(40_000) == peak(4000)


def test_arrays_that_differ_in_length_are_refused_before_they_are_read() -> None:
    """They may be larger than memory."""
    x, y = (np.broadcast_to(np.float32(0), shape) for shape in ((2**40, 2), (2**40 - 1, 1)))
    with pytest.raises(ValueError, match=r"xc .* and yc .* differ in the number of tasks or poi"):
        model().condition(x, y)
    with pytest.raises(ValueError, match=r"yc .* has shape .*; expected \[batch, points, 1\]"):
        model().condition(x, x)
    with pytest.raises(ValueError, match=r"the mask of xc has shape \[1, 3\]"):
        model().condition(x, x[:, :1], np.ones(3, bool))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x + 1j, "xc holds complex128 values, not numbers"),
        (lambda x: x.astype(object), "xc holds object values, not numbers"),
        (lambda x: x.astype("M8[s]"), r"xc holds datetime64\[s\] values, not numbers"),
        (lambda x: np.ma.masked_greater(x, 0.5), "xc has masked values; drop those points"),
        (lambda x: np.where(x > 1.5, np.nan, x), r"xc holds . NaN or infinite value"),
        (lambda x: x[:, 0], r"xc has shape \[9\]; expected \[batch, points, 2\]"),
    ],
)
def test_arrays_that_hold_no_numbers_are_refused(spoil: Callable, message: str) -> None:
    x, y = arrays(9, seed=4)
    with pytest.raises(ValueError, match=message), warnings.catch_warnings(action="error"):
        model().condition(spoil(x), y)


def test_a_masked_array_without_masked_values_is_an_array() -> None:
    network, (x, y) = model(), arrays(9)
    masked = np.ma.masked_array(x, mask=False)
    assert_same_record(network.condition(masked, y), network.condition(x, y))


def of_other_width(x: np.ndarray, y: np.ndarray) -> Chunk:
    return np.hstack([x, x]), y


def with_nan(x: np.ndarray, y: np.ndarray) -> Chunk:
    y = y.copy()
    y[2] = np.nan
    return x, y


def of_other_tasks(x: np.ndarray, y: np.ndarray) -> Chunk:
    return np.stack([x, x]), np.stack([y, y])


def of_text(x: np.ndarray, y: np.ndarray) -> Chunk:
    return x.astype(str), y


def of_other_length(x: np.ndarray, y: np.ndarray) -> Chunk:
    return x, y[1:]


def with_another_s_mask(x: np.ndarray, y: np.ndarray) -> Chunk:
    return x, y, np.ones(len(x) + 1, bool)


def with_numbers_as_mask(x: np.ndarray, y: np.ndarray) -> Chunk:
    return x, y, np.ones(len(x))


def alone(x: np.ndarray, y: np.ndarray) -> Chunk:
    return (x,)


BAD_CHUNKS = {
    of_other_width: r"x has shape \[1, 4, .\]; expected \[batch, points, .\].* dim_x=.",
    with_nan: "y holds . NaN or infinite .* task 0, point 2, column 0",
    of_other_tasks: "x has 2 tasks, the state 1",
    of_text: "x holds <U32 values, not numbers",
    of_other_length: r"x \[1, 4, .\] and y \[1, 3, .\] differ in the number of tasks or points",
    with_another_s_mask: r"the mask of x has shape \[1, 5\]; expected \[1, 4\]",
    with_numbers_as_mask: "the mask of x must be a bool tensor, True = real",
    alone: r"it is no \(x, y\) or \(x, y, mask\) tuple",
}


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize(("spoil", "message"), BAD_CHUNKS.items())
def test_a_chunk_that_is_refused_is_named_and_leaves_the_state_before_it(
    name: str, spoil: Callable, message: str
) -> None:
    network = small(name)
    x, y = arrays(20, network.dim_x, 3)
    chunks = list(chunks_of(x, y, 4))
    with pytest.raises(ChunkError, match=f"^chunk 3: {message}") as caught:
        network.condition(iter([*chunks[:3], spoil(*chunks[3]), chunks[4]]))
    assert caught.value.number == 3
    state = caught.value.state
    assert_same_record(state, network.condition(chunks[:3]))
    for chunk in chunks[3:]:
        state = network.update(state, *chunk)
    predictions = []
    for whole in (network.condition(x, y), state):
        torch.manual_seed(1)
        predictions.append(network.query(whole, x))
    assert_same_prediction(*predictions)


def test_nan_in_the_500th_chunk_names_chunk_and_row_and_keeps_what_was_before() -> None:
    network, (x, y) = model(), arrays(600 * 3)
    y[499 * 3 + 1] = np.nan
    with pytest.raises(ChunkError, match=r"chunk 499: y holds 1 .* point 1, column 0") as caught:
        network.condition(chunks_of(x, y, 3))
    rest = x[500 * 3 :], y[500 * 3 :]
    state = network.update(caught.value.state, *rest)
    good = np.arange(len(x)) // 3 != 499
    assert_same_prediction(
        network.query(state, x[:5]), network.query(network.condition(x[good], y[good]), x[:5])
    )


@pytest.mark.parametrize("name", POOLED)
def test_of_a_large_chunk_that_is_refused_nothing_is_absorbed(name: str) -> None:
    network = small(name)
    x, y = arrays(700, network.dim_x, 3)
    spoilt = y.copy()
    spoilt[-1] = np.inf
    with pytest.raises(ChunkError, match=r"chunk 1: y holds 3 NaN .* point 699") as caught:
        network.condition([(x[:5], y[:5]), (x, spoilt)], chunk_size=50)
    assert_same_record(caught.value.state, network.condition(x[:5], y[:5]))


@pytest.mark.parametrize("name", POOLED)
def test_before_the_first_chunk_there_is_no_state(name: str) -> None:
    network = small(name)
    x, y = arrays(4, network.dim_x, 3)
    with pytest.raises(ChunkError, match="chunk 0: ") as caught:
        network.condition([with_nan(x, y)])
    assert caught.value.state is None


@pytest.mark.parametrize("name", sorted(set(SIZES) - set(POOLED)))
def test_models_that_keep_no_state_of_a_part_say_so(name: str) -> None:
    x, y = arrays(4, 2, 3)
    with pytest.raises(ChunkError, match="chunk 1: ") as caught:
        small(name).condition([(x, y), with_nan(x, y)])
    assert caught.value.state is None
    assert caught.value.number == 1


def test_what_a_generator_itself_refuses_is_named_by_its_chunk() -> None:
    network, (x, y) = model(), arrays(12)

    def chunks() -> Iterator[Chunk]:
        yield from chunks_of(x, y, 6)
        raise ValueError("the sensor was offline")

    with pytest.raises(ChunkError, match="chunk 2: the sensor was offline") as caught:
        network.condition(chunks())
    assert_same_record(caught.value.state, network.condition(chunks_of(x, y, 6)))


def test_a_file_s_bad_row_is_named_and_the_rows_before_are_kept(tmp_path: Path) -> None:
    network, (x, y) = model(), arrays(60)
    y[47] = np.nan
    points = table(x, y, 10, tmp_path)
    with pytest.raises(ChunkError, match=r"chunk 4: column t of .* in row 48") as caught:
        network.condition(points)
    assert_same_record(caught.value.state, network.condition(chunks_of(x[:40], y[:40], 10)))


def test_a_path_is_refused_as_a_table_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file none\.csv"):
        model().condition("none.csv")
    pd.DataFrame({"x0": [1.0], "y0": [1.0]}).to_parquet(tmp_path / "points.parquet")
    with pytest.raises(ValueError, match="has no column x1; its columns are x0, y0"):
        model().condition(tmp_path / "points.parquet")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((3,), "takes tensors, or an iterable .* not int"),
        (([],), "the iterable of chunks is empty; for a prior, give one empty chunk"),
        (([arrays(3)], arrays(3)[1]), r"iterable of \(x, y\) chunks alone; got xc of type list"),
    ],
)
def test_what_is_no_stream_is_refused(given: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().condition(*given)


def test_chunks_of_no_size_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size=0 must be 1 or more"):
        model().condition([arrays(3)], chunk_size=0)


@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize("name", ["CMANP", "CNP", "TNPD"])
def test_the_answers_to_a_stream_are_those_to_all_targets_at_once(
    name: str, size: int, tmp_path: Path
) -> None:
    network, (x, y) = small(name), arrays(30, 2, 3)
    state = network.condition(x, y)
    whole = network.query(state, x)
    pd.DataFrame({"b": x[:, 1], "a": x[:, 0]}).to_parquet(tmp_path / "targets.parquet")
    for stream in (
        (x[i : i + size] for i in range(0, 30, size)),
        DataLoader(TensorDataset(torch.tensor(x).float().double()), batch_size=size),
        DataLoader(torch.tensor(x), batch_size=size),
        PointTable(tmp_path / "targets.parquet", ["a", "b"], chunk_size=size),
    ):
        answers = list(network.query(state, stream))
        assert [len(answer.mean[0]) for answer in answers[:-1]] == [size] * (len(answers) - 1)
        assert_close(torch.cat([z.mean for z in answers], dim=1), whole.mean, 1e-6)
        assert_close(torch.cat([z.stddev for z in answers], dim=1), whole.stddev, 1e-6)


def test_the_targets_of_a_file_are_its_columns_x0_x1(tmp_path: Path) -> None:
    network, (x, y) = model(), arrays(30)
    state = network.condition(x, y)
    (prediction,) = network.query(state, path(x, y, 1, tmp_path))
    assert_same_prediction(prediction, network.query(state, x), 0.0)


def test_the_answers_to_a_stream_come_when_they_are_asked_for() -> None:
    network, (x, y) = model(), arrays(6)
    state, asked = network.condition(x, y), []

    def targets() -> Iterator[np.ndarray]:
        for number in range(5):
            asked.append(number)
            yield x

    answers = network.query(state, targets())
    assert asked == []
    assert_same_prediction(next(answers), network.query(state, x), 0.0)
    next(answers)
    assert asked == [0, 1]


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.ones((4, 3)), r"xt has shape \[1, 4, 3\]; expected \[batch, points, 2\]"),
        (np.full((4, 2), np.nan), "xt holds 8 NaN or infinite"),
        (np.ones((0, 2)), "xt is an empty target set"),
        (np.ones((2, 4, 2)), "xt has 2 tasks, the state 1"),
        ((np.ones((4, 2)), np.ones((4, 1))), "xt must be a tensor, not tuple"),
    ],
)
def test_targets_that_are_refused_are_named_by_their_chunk(chunk: Any, message: str) -> None:
    network, (x, y) = model(), arrays(6)
    answers = network.query(network.condition(x, y), iter([x, chunk]))
    next(answers)
    with pytest.raises(ChunkError, match=f"chunk 1: {message}") as caught:
        next(answers)
    assert caught.value.number == 1
    assert caught.value.state is None


def test_the_answers_to_targets_of_several_tasks_are_theirs() -> None:
    network = model()
    x, y = random_points(3, 6, dim_x=2)
    state = network.condition(x, y)
    answers = list(network.query(state, [x[:, :2], x[:, 2:]]))
    assert_close(torch.cat([z.mean for z in answers], dim=1), network.query(state, x).mean)


def test_arrays_and_chunks_go_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on a device that holds no values, where none can be looked at."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    door, (x, y) = Inputs(2, 1, torch.float32, torch.device("meta")), arrays(5)
    mask = np.ones(5, bool)
    batch = *tensors(x, y), torch.tensor(mask)[None]
    for points in (
        door.points("x", x, "y", y, mask),
        *door.slices(x, y, mask, 2),
        *door.chunks([(x, y, mask), batch]),
        door.targets("xt", x, mask),
        *door.target_chunks([x, batch[0]], 1),
    ):
        assert {z.device.type for z in points.tensors()} == {"meta"}
        assert points.x.dtype == points.y.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_arrays_and_chunks_are_the_same_data() -> None:
    network, (x, y) = model().cuda(), arrays(50)
    whole = network.condition(*(z.cuda() for z in tensors(x, y)))
    for state in (
        network.condition(x, y),
        network.condition(chunks_of(x, y, 9)),
        network.condition(DataLoader(TensorDataset(*map(torch.tensor, (x, y))), batch_size=9)),
    ):
        assert_close(network.query(state, x).mean, network.query(whole, x).mean)
