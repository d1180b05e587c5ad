"""The sizes of tasks, and the arguments by which data modules ask for them."""

import inspect
from itertools import pairwise

import pytest
import torch

from datamodules import (
    CelebADataModule,
    CIFAR10DataModule,
    EMNISTDataModule,
    GPDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
)
from datamodules.images.base import ImageDataModule
from datamodules.sampling import ContextTargetSplit, TaskSizes

IMAGE_MODULES = [
    EMNISTDataModule,
    CelebADataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    CIFAR10DataModule,
]


def pairs(split: ContextTargetSplit) -> list[tuple[int, int]]:
    return list(zip(split.num_context.tolist(), split.num_target.tolist(), strict=True))


# The law


@pytest.mark.parametrize("vary", [False, True])
@pytest.mark.parametrize("max_targets", [None, 4])
def test_sizes_fill_the_documented_ranges(max_targets: int | None, vary: bool) -> None:
    """With at least 3 and, together, less than 10: N in 3…6, M in 3…9 − N, here at most 4."""
    sizes = TaskSizes(3, 10, max_targets, vary=vary)
    drawn = {pair for _ in range(40 if vary else 400) for pair in pairs(sizes.draw(10))}
    top = 9 if max_targets is None else max_targets
    assert drawn == {(n, m) for n in range(3, 7) for m in range(3, min(9 - n, top) + 1)}
    assert max(n for n, _ in drawn) == sizes.most_context
    assert max(m for _, m in drawn) == sizes.most_targets


def test_a_fixed_number_of_targets_leaves_the_law_of_the_context_alone() -> None:
    sizes = TaskSizes(3, 10, num_targets=20, vary=True)
    drawn = pairs(sizes.draw(400))
    assert set(drawn) == {(n, 20) for n in range(3, 7)}
    for n in range(3, 7):
        assert abs(drawn.count((n, 20)) / 400 - 1 / 4) < 4 * (3 / 16 / 400) ** 0.5
    assert (sizes.most_context, sizes.most_targets) == (6, 20)


def test_the_tasks_of_a_batch_differ_in_size_only_where_they_may() -> None:
    assert len(set(pairs(TaskSizes(3, 50).draw(16)))) == 1
    varied = TaskSizes(3, 50, vary=True).draw(16)
    assert len(set(pairs(varied))) > 8
    assert varied.num_points == (varied.num_context + varied.num_target).max()


def test_evaluation_knows_the_range_alone() -> None:
    sizes = TaskSizes(3, 10, max_targets=4, vary=True)
    assert sizes.evaluation == TaskSizes(3, 10, num_targets=9, vary=True).evaluation
    assert sizes.evaluation == TaskSizes(3, 10)


def test_sizes_come_from_torch_s_generator() -> None:
    first, second = (
        [pairs(TaskSizes(3, 50, vary=True).draw(5)) for _ in [torch.manual_seed(seed)]]
        for seed in (1, 1)
    )
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min": 0, "max": 9}, "min_num_points=0 must be 1 or more"),
        ({"min": 3, "max": 6}, "max_num_points=6 leaves no room for 3 context and 3 target"),
        ({"min": 3, "max": 9, "max_targets": 2}, "max_num_targets=2 must not be below min_num_po"),
        ({"min": 3, "max": 9, "num_targets": 0}, "num_targets=0 must be 1 or more"),
        ({"min": 3, "max": 9, "max_targets": 4, "num_targets": 4}, "leave one of them out"),
    ],
    ids=["min", "max", "max_targets", "num_targets", "both"],
)
def test_sizes_that_no_task_can_have_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSizes(**arguments)


# The arguments of data modules


def parameters(module: type) -> dict[str, inspect.Parameter]:
    """Its arguments by name, without `self`."""
    _, *arguments = inspect.signature(module.__init__).parameters.values()
    return {argument.name: argument for argument in arguments}


@pytest.mark.parametrize("module", IMAGE_MODULES)
def test_a_module_of_images_has_every_argument_of_its_base(module: type) -> None:
    """But for the number of pixels, which its resolution tells. Two modules have defaults for the
    number of points that depend on the resolution."""
    theirs = parameters(module)
    for name, argument in parameters(ImageDataModule).items():
        if name == "num_pixels":
            continue
        expected = {argument.annotation}
        if name == "max_num_points":
            expected.add(int | None)
        assert theirs[name].annotation in expected, name


@pytest.mark.parametrize(("one", "other"), list(pairwise(IMAGE_MODULES)))
def test_modules_of_images_agree_in_the_arguments_that_they_share(one: type, other: type) -> None:
    ours, theirs = parameters(one), parameters(other)
    shared = [name for name in ours if name in theirs]
    assert shared == [name for name in theirs if name in ours]
    assert len(shared) >= 13
    for name in shared:
        if name != "max_num_points":
            assert ours[name] == theirs[name], name


@pytest.mark.parametrize("module", IMAGE_MODULES)
def test_gaussian_processes_and_images_agree_in_the_arguments_that_they_share(
    module: type,
) -> None:
    """But for the numbers that their papers fix."""
    protocol = {"x_range", "max_num_points", "batch_size", "num_val_tasks", "num_test_tasks"}
    ours, theirs = parameters(GPDataModule), parameters(module)
    shared = ours.keys() & theirs.keys() - protocol
    assert shared >= {"min_num_points", "vary_sizes", "t_noise", "seed", "eval_seed"}
    for name in shared:
        assert ours[name] == theirs[name], name
    in_order = ["min_num_points", "vary_sizes", "num_predict_tasks", "t_noise", "seed"]
    for arguments in (ours, theirs):
        assert [name for name in arguments if name in in_order] == in_order
