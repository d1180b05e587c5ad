from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from helpers import assert_close, assert_same_record, random_task, small_cmanp
from lightning.fabric.utilities.apply_func import move_data_to_device

from npbench import Exact, Task


def task_with_everything() -> Task:
    """Two tasks of at most 7 and 5 points, with masks and exact answers."""
    return replace(
        random_task(batch=2, context=7, target=5),
        context_mask=torch.tensor([[True] * 7, [True] * 3 + [False] * 4]),
        target_mask=torch.tensor([[True] * 2 + [False] * 3, [True] * 5]),
        exact=Exact(torch.randn(2, 5, 1), torch.rand(2, 5, 1), torch.randn(2), torch.randn(2)),
    )


def test_padding_puts_zeros_behind_the_points_and_masks_them_out() -> None:
    task = random_task(batch=2, context=7, target=5, dim_x=2, dim_y=3)
    padded = task.pad(9, 6)
    for name, most in (("xc", 9), ("yc", 9), ("xt", 6), ("yt", 6)):
        given, result = getattr(task, name), getattr(padded, name)
        assert result.shape == (2, most, given.shape[-1])
        assert torch.equal(result[:, : given.shape[1]], given)
        assert not result[:, given.shape[1] :].any()
    assert padded.context_mask.tolist() == [[True] * 7 + [False] * 2] * 2
    assert padded.target_mask.tolist() == [[True] * 5 + [False]] * 2


def test_padding_keeps_masks_and_exact_answers() -> None:
    task = task_with_everything()
    padded = task.pad(8, 7)
    assert padded.context_mask.tolist() == [
        [True] * 7 + [False],
        [True] * 3 + [False] * 5,
    ]
    assert padded.target_mask.tolist() == [[True] * 2 + [False] * 5, [True] * 5 + [False] * 2]
    assert torch.equal(padded.exact.mean[:, :5], task.exact.mean)
    assert torch.equal(padded.exact.std[:, :5], task.exact.std)
    assert padded.exact.mean.shape == padded.exact.std.shape == (2, 7, 1)
    assert (padded.exact.std[:, 5:] > 0).all()
    assert torch.equal(padded.exact.log_likelihood, task.exact.log_likelihood)
    assert torch.equal(padded.exact.joint_log_likelihood, task.exact.joint_log_likelihood)


def test_padding_twice_equals_padding_once() -> None:
    task = task_with_everything()
    assert_same_record(task.pad(8, 6).pad(11, 9), task.pad(11, 9))


def test_a_task_without_answers_stays_one() -> None:
    task = replace(random_task(), yt=None)
    assert task.pad(9, 9).yt is None
    assert task.to("cpu").yt is None


@pytest.mark.parametrize(("num_context", "num_target"), [(6, 9), (9, 4)])
def test_too_small_a_padding_is_refused(num_context: int, num_target: int) -> None:
    message = f"7 context and 5 target points does not fit into {num_context} and {num_target}"
    with pytest.raises(ValueError, match=message):
        random_task(context=7, target=5).pad(num_context, num_target)


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_padded_task_gives_the_same_loss(with_masks: bool) -> None:
    model = small_cmanp()
    task = task_with_everything() if with_masks else random_task()
    padded = task.pad(12, 9)
    assert_close(model.log_likelihood(padded), model.log_likelihood(task), 1e-6)
    assert_close(model.loss(padded), model.loss(task), 1e-6)


def test_to_moves_every_tensor() -> None:
    task = task_with_everything()
    for moved in (task.to("meta"), move_data_to_device(task, torch.device("meta"))):
        assert isinstance(moved, Task)
        tensors = list(moved.tensors())
        assert len(tensors) == 10
        assert all(tensor.is_meta for tensor in tensors)
    assert not any(tensor.is_meta for tensor in task.tensors())


def test_nbytes_counts_every_tensor() -> None:
    task = task_with_everything()
    floats = 2 * (7 + 7 + 5 + 5) + 2 * (5 + 5 + 1 + 1)
    bools = 2 * (7 + 5)
    assert task.nbytes == 4 * floats + bools
    assert replace(task, yt=None, exact=None).nbytes == 4 * 2 * (7 + 7 + 5) + bools


def test_detach_cuts_every_tensor_off() -> None:
    task = task_with_everything()
    task.xc.requires_grad_()
    task.exact.mean.requires_grad_()
    detached = task.detach()
    assert not any(tensor.requires_grad for tensor in detached.tensors())
    assert_same_record(detached, task)
    assert task.xc.requires_grad


def test_a_task_cannot_be_changed() -> None:
    task = random_task()
    with pytest.raises(FrozenInstanceError):
        task.xc = torch.zeros(2, 7, 1)


def test_the_batch_size_is_the_number_of_tasks() -> None:
    assert random_task(batch=3).batch_size == 3
