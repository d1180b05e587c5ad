from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import assert_same_prediction, random_points, random_task, small_cmanp
from torch import Tensor

from npbench import Task
from npbench.models import CMANP

pytestmark = pytest.mark.usefixtures("as_a_user")

NAN, INF = float("nan"), float("inf")


def model() -> CMANP:
    return small_cmanp(dim_x=2, dim_y=1)


def points(batch: int = 2, number: int = 5) -> tuple[Tensor, Tensor]:
    return random_points(batch, number, dim_x=2)


def task() -> Task:
    return random_task(dim_x=2)


def spoilt(tensor: Tensor, value: float, *where: tuple[int, ...]) -> Tensor:
    tensor = tensor.clone()
    for index in where:
        tensor[index] = value
    return tensor


X, Y = points()
MASK = torch.ones(2, 5, dtype=torch.bool)
FRAME = pd.DataFrame({"lat": [1.0], "lon": [2.0]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (X, spoilt(Y, NAN, (0, 3, 0))),
            r"yc holds 1 NaN or infinite value\(s\), the first in task 0, point 3, column 0",
        ),
        (
            (X, spoilt(Y, NAN, (1, 0, 0), (1, 4, 0))),
            r"yc holds 2 NaN or infinite value\(s\), the first in task 1, point 0, column 0",
        ),
        (
            (spoilt(X, INF, (1, 2, 1)), Y),
            r"xc holds 1 NaN .* the first in task 1, point 2, column 1",
        ),
        (
            (spoilt(X, -INF, (0, 0, 0)), Y),
            r"xc holds 1 NaN .* the first in task 0, point 0, column 0",
        ),
        ((X[..., :1], Y), r"xc has shape \[2, 5, 1\]; expected \[batch, points, 2\].* dim_x=2"),
        ((X, X), r"yc has shape \[2, 5, 2\]; expected \[batch, points, 1\].* dim_y=1"),
        ((X[0, 0], Y[0]), r"xc has shape \[2\]; expected \[batch, points, 2\]"),
        ((X[0], Y), r"yc has shape \[1, 2, 5, 1\]; expected \[batch, points, 1\]"),
        (
            (X, Y[..., 0]),
            r"yc has shape \[2, 5\]; expected \[batch, points, 1\].*; give it a last "
            r"dimension by yc\[\.\.\., None\]",
        ),
        ((X.numpy(),), "xc without outputs yc"),
        ((X.numpy(), Y.tolist()), "yc must be a tensor, not list"),
        ((X.numpy(), Y.numpy()[0]), r"yc has shape \[5, 1\]; expected \[batch, points, 1\]"),
        ((X.numpy().astype(str), Y.numpy()), "xc holds <U32 values, not numbers"),
        ((X.numpy() * 1e300, Y.numpy()), "xc holds 20 NaN or infinite value"),
        ((X.tolist(), Y), "got xc of type list"),
        ((X, None), "xc without outputs yc"),
        ((None,), "takes tensors, or an iterable of .x, y. chunks, not NoneType"),
        ((FRAME,), r"xc is a DataFrame, and must .*: give .* xc\[\['lat', 'lon'\]\].to_numpy\(\)"),
        ((FRAME, FRAME), "xc is a DataFrame, and must be a tensor or an array"),
        ((X, FRAME), "yc is a DataFrame, and must be a tensor or an array"),
        ((X.cfloat(), Y), "xc holds torch.complex64 values, not real numbers"),
        ((X, Y[:, :4]), r"xc \[2, 5, 2\] and yc \[2, 4, 1\] differ in the number of tasks or poi"),
        ((X, Y[:1]), r"xc \[2, 5, 2\] and yc \[1, 5, 1\] differ in the number of tasks or poi"),
        ((X, Y, MASK[:, :4]), r"the mask of xc has shape \[2, 4\]; expected \[2, 5\]"),
        ((X, Y, MASK[0]), r"the mask of xc has shape \[5\]; expected \[2, 5\]"),
        ((X, Y, MASK.float()), "the mask of xc must be a bool tensor, True = real"),
        ((X, Y, MASK.float().numpy()), "the mask of xc must be a bool tensor, True = real"),
        ((X, Y, None, 0), "chunk_size=0 must be 1 or more"),
        ((X, Y, None, -3), "chunk_size=-3 must be 1 or more"),
    ],
)
def test_condition_says_what_is_wrong_with_a_context(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().condition(*arguments)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "iterable of chunks is empty; for a prior, give one empty chunk"),
        (
            [(X, Y), (X, spoilt(Y, NAN, (0, 1, 0)))],
            r"chunk 1: y holds 1 NaN .* task 0, point 1, column 0",
        ),
        ([(X, Y), (X[..., :1], Y)], r"chunk 1: x has shape \[2, 5, 1\]"),
        ([(X, Y), X], r"chunk 1: it is no \(x, y\) or \(x, y, mask\) tuple"),
        ([(X,)], r"chunk 0: it is no \(x, y\) or \(x, y, mask\) tuple"),
        ([(X, Y, MASK[:, 1:])], r"chunk 0: the mask of x has shape \[2, 4\]; expected \[2, 5\]"),
        ([(X, Y), (X[:, :3], Y)], "chunk 1: x .* and y .* differ"),
    ],
)
def test_condition_says_which_chunk_is_wrong(chunks: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().condition(iter(chunks))


@pytest.mark.parametrize("extra", [{"yc": Y}, {"mask": MASK}])
def test_chunks_come_alone(extra: dict) -> None:
    with pytest.raises(ValueError, match=r"iterable of \(x, y\) chunks alone; got xc of type list"):
        model().condition([(X, Y)], **extra)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            X,
            spoilt(Y, INF, (1, 1, 0)),
            r"y holds 1 NaN or infinite .* the first in task 1, point 1, column 0",
        ),
        (X[..., :1], Y, r"x has shape \[2, 5, 1\]; expected \[batch, points, 2\]"),
        (X, Y[:, :2], r"x \[2, 5, 2\] and y \[2, 2, 1\] differ"),
        (X.cfloat(), Y, "x holds torch.complex64 values"),
    ],
)
def test_update_says_what_is_wrong_with_its_points(x: Tensor, y: Tensor, message: str) -> None:
    state = model().condition(X, Y)
    with pytest.raises(ValueError, match=message):
        model().update(state, x, y)


@pytest.mark.parametrize(
    ("xt", "message"),
    [
        (X[..., :1], r"xt has shape \[2, 5, 1\]; expected \[batch, points, 2\].* dim_x=2"),
        (X[0, 0], r"xt has shape \[2\]; expected \[batch, points, 2\]"),
        (X[:, :0], r"xt is an empty target set, of shape \[2, 0, 2\]"),
        (None, "query takes a tensor, or an iterable of chunks, not NoneType"),
        (X.cfloat(), "xt holds torch.complex64 values"),
        (spoilt(X, NAN, (1, 4, 1)), r"xt holds 1 NaN .* the first in task 1, point 4, column 1"),
        (FRAME, "xt is a DataFrame, and must be a tensor or an array: give its"),
    ],
)
def test_query_says_what_is_wrong_with_its_targets(xt: Tensor | pd.DataFrame, message: str) -> None:
    network = model()
    with pytest.raises(ValueError, match=message):
        network.query(network.condition(X, Y), xt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"yt": None}, "the task has no yt"),
        ({"yt": torch.randn(2, 4, 1)}, r"xt \[2, 5, 2\] and yt \[2, 4, 1\] differ"),
        ({"yt": torch.randn(2, 5, 2)}, r"yt has shape \[2, 5, 2\]"),
        (
            {"yt": torch.full((2, 5, 1), NAN)},
            r"yt holds 10 NaN .* the first in task 0, point 0, column 0",
        ),
        ({"yt": torch.randn(2, 5, 1).cfloat()}, "yt holds torch.complex64 values"),
        ({"xt": X[:, :0], "yt": Y[:, :0]}, "xt is an empty target set"),
        ({"target_mask": MASK[:, :3]}, r"the mask of xt has shape \[2, 3\]; expected \[2, 5\]"),
        ({"context_mask": MASK}, r"the mask of xc has shape \[2, 5\]; expected \[2, 7\]"),
        ({"xc": torch.full((2, 7, 2), INF)}, r"xc holds 28 NaN or infinite"),
    ],
)
def test_log_likelihood_says_what_is_wrong_with_a_task(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().log_likelihood(replace(task(), **changes))


def test_a_task_of_which_no_target_is_real_is_refused() -> None:
    mask = torch.tensor([[True] * 5, [False] * 5])
    with pytest.raises(ValueError, match="target"):
        model().loss(replace(task(), target_mask=mask))


def test_the_prior_and_its_chunk_size_are_checked_too() -> None:
    with pytest.raises(ValueError, match="chunk_size=0 must be 1 or more"):
        model().condition(X[:, :0], Y[:, :0], chunk_size=0)


def query_for(batch: int, network: CMANP) -> None:
    network.query(network.condition(X, Y), points(batch)[0])


def update_for(batch: int, network: CMANP) -> None:
    network.update(network.condition(X, Y), *points(batch))


def merge_for(batch: int, network: CMANP) -> None:
    network.merge(network.condition(X, Y), network.condition(*points(batch)))


def chunks_for(batch: int, network: CMANP) -> None:
    network.condition([(X, Y), points(batch)])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("step", [query_for, update_for, merge_for, chunks_for])
def test_a_state_of_two_tasks_is_not_mixed_with_another_number_of_tasks(
    step: Callable[[int, CMANP], None], batch: int
) -> None:
    """Not even with one task, which would broadcast in silence."""
    with pytest.raises(ValueError, match="tasks"):
        step(batch, model())


@pytest.mark.parametrize("value", [NAN, INF])
def test_nothing_is_asked_of_context_under_a_false_mask(value: float) -> None:
    network = model()
    mask = MASK.clone()
    mask[1, 2:] = False
    padding = ~mask[..., None]
    state = network.condition(X.masked_fill(padding, value), Y.masked_fill(padding, value), mask)
    assert_same_prediction(network.query(state, X), network(X, Y, X, mask), 0.0)


@pytest.mark.parametrize("name", ["xt", "yt"])
def test_nothing_is_asked_of_targets_under_a_false_mask(name: str) -> None:
    network, real = model(), task()
    mask = MASK.clone()
    mask[1, 2:] = False
    masked = replace(real, target_mask=mask)
    spoilt_task = replace(
        masked, **{name: getattr(masked, name).masked_fill(~mask[..., None], NAN)}
    )
    assert torch.equal(network.log_likelihood(spoilt_task), network.log_likelihood(masked))


@pytest.mark.parametrize(("dim_x", "dim_y"), [(0, 1), (1, 0)])
def test_points_have_inputs_and_outputs(dim_x: int, dim_y: int) -> None:
    with pytest.raises(ValueError, match=f"dim_x={dim_x} and dim_y={dim_y} must be 1 or more"):
        CMANP(dim_x, dim_y)
