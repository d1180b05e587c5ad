"""What data modules of images promise: the same tasks, whoever asks for them."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from helpers import assert_close, assert_same_record, small
from helpers.image_files import write_emnist
from torch import Tensor

from datamodules import EMNISTDataModule
from datamodules.loading import Part
from datamodules.sampling import TaskSizes
from npbench import Task
from npbench.training import MetaRegression


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emnist")
    write_emnist(folder)
    return folder


def emnist(root: Path, **options: object) -> EMNISTDataModule:
    """80 training images of digits, 10 of them for validation; 40 seen and 20 unseen to test."""
    sizes = {"batch_size": 8, "num_val_tasks": 10, "eval_batch_size": 4, "max_num_points": 20}
    return EMNISTDataModule(root, **(sizes | options))


def single_tasks(batch: Task) -> list[Task]:
    """The tasks of a batch, without padding."""
    tasks = []
    for row in range(batch.batch_size):
        masks = batch.context_mask, batch.target_mask
        context, target = (slice(None) if mask is None else mask[row] for mask in masks)
        points = [values[[row]][:, context] for values in (batch.xc, batch.yc)]
        points += [values[[row]][:, target] for values in (batch.xt, batch.yt)]
        tasks.append(Task(*points))
    return tasks


def evaluation_tasks(data: EMNISTDataModule, loader: str = "val") -> list[Task]:
    loaders = getattr(data, f"{loader}_dataloader")()
    if not isinstance(loaders, dict):
        loaders = {"": loaders}
    return [task for each in loaders.values() for batch in each for task in single_tasks(batch)]


def images_in(batch: Task) -> list[int]:
    """A number for each task that tells which image it is of: completed, it is the image."""
    return [hash(completed(task).numpy().tobytes()) for task in single_tasks(batch)]


def completed(task: Task) -> Tensor:
    x, y = (torch.cat(pair, dim=1)[0] for pair in ((task.xc, task.xt), (task.yc, task.yt)))
    assert len(x) == 784
    row, column = ((x + 1) / 2 * 27).round().long().unbind(-1)
    return torch.empty(28, 28).index_put((row, column), y[:, 0])


class AllPixels(EMNISTDataModule):
    """Training tasks of all pixels, which tell their images."""

    def __init__(self, root: Path, **arguments: object) -> None:
        super().__init__(root, **arguments)
        self.sizes = TaskSizes(min=10, max=21, num_targets=774)


# Training batches


def test_a_training_batch_is_a_function_of_seed_rank_and_index(root: Path) -> None:
    data = emnist(root, seed=3, t_noise=0.1)
    batch = data.training_batch(5, rank=1)
    torch.rand(3)
    assert_same_record(emnist(root, seed=3, t_noise=0.1).training_batch(5, rank=1), batch)
    for other in (
        data.training_batch(6, rank=1),
        data.training_batch(5, rank=0),
        emnist(root, seed=4, t_noise=0.1).training_batch(5, rank=1),
    ):
        assert not torch.equal(other.xc[:, :3], batch.xc[:, :3])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_do_not_depend_on_the_number_of_workers(
    root: Path, num_workers: int
) -> None:
    data = emnist(root, num_workers=num_workers, t_noise=0.1)
    batches = list(data.train_dataloader())
    assert len(batches) == 70 // 8
    for index, batch in enumerate(batches):
        assert_same_record(batch, data.training_batch(index))


def ranks(data: EMNISTDataModule, world_size: int, ready: int = 0) -> list[EMNISTDataModule]:
    """The same data module on each rank, at batch `ready` of its run."""
    copies = []
    for rank in range(world_size):
        copy = type(data)(data.root, batch_size=8, num_val_tasks=10, eval_batch_size=4, seed=1)
        total = SimpleNamespace(ready=ready)
        loop = SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=total))
        )
        copy.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, fit_loop=loop, max_steps=-1,
            accumulate_grad_batches=1,
        )  # fmt: skip
        copies.append(copy)
    return copies


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_pass_takes_every_training_image_once(root: Path, world_size: int) -> None:
    """70 images in batches of 8 on each rank: two passes, without a seam, in another order."""
    copies = ranks(AllPixels(root, num_val_tasks=10), world_size)
    seen = [
        image
        for index in range(18)
        for copy in copies
        for image in images_in(copy.training_batch(index, copy.trainer.global_rank))
    ]
    first, second = seen[:70], seen[70:140]
    assert set(Counter(first).values()) == set(Counter(second).values()) == {1}
    assert set(first) == set(second)
    assert first != second


def test_an_epoch_begins_where_the_trainer_is(root: Path) -> None:
    (data,) = ranks(emnist(root), world_size=1, ready=7)
    batches = list(data.train_dataloader())
    assert len(batches) == 8
    for step, batch in enumerate(batches):
        assert_same_record(batch, data.training_batch(7 + step))


def test_another_seed_takes_the_images_in_another_order(root: Path) -> None:
    first, second = (
        images_in(AllPixels(root, batch_size=8, num_val_tasks=10, seed=seed).training_batch(0))
        for seed in (1, 2)
    )
    assert set(first) != set(second)


@pytest.mark.parametrize(("world_size", "steps"), [(1, 8), (2, 4), (3, 2), (20, 1)])
def test_an_epoch_is_a_pass_of_all_ranks_together(root: Path, world_size: int, steps: int) -> None:
    for data in ranks(emnist(root), world_size):
        assert len(data.train_dataloader()) == steps


def test_a_batch_larger_than_the_data_takes_images_again(root: Path) -> None:
    data = emnist(root, batch_size=150)
    assert len(data.train_dataloader()) == 1
    assert data.training_batch(0).batch_size == 150


def test_a_training_batch_shares_its_sizes(root: Path) -> None:
    batches = [emnist(root).training_batch(index) for index in range(20)]
    assert all(batch.context_mask is batch.target_mask is None for batch in batches)
    assert len({batch.xc.shape for batch in batches}) > 5
    assert all(batch.xc.shape[1] + batch.xt.shape[1] < 20 for batch in batches)
    assert all(len(batch.xc[:, 0].unique(dim=0)) > 4 for batch in batches)


def test_sizes_may_vary_within_a_batch(root: Path) -> None:
    batch = emnist(root, vary_sizes=True).training_batch(0)
    for mask in (batch.context_mask, batch.target_mask):
        assert 3 <= mask.sum(-1).min() < mask.sum(-1).max() <= 16
    model = small("CNP", 2, 1).float()
    alone = torch.stack([model.loss(task) for task in single_tasks(batch)])
    assert_close(model.loss(batch), alone.mean())


def test_training_targets_are_bounded_and_others_are_not(root: Path) -> None:
    data = emnist(root, max_num_targets=4)
    assert {data.training_batch(index).xt.shape[1] for index in range(30)} == {3, 4}
    assert data.evaluation_batch(range(10)).xt.shape[1] > 4


# Evaluation tasks


@pytest.mark.parametrize("loader", ["val", "test", "predict"])
@pytest.mark.parametrize(
    "change",
    [
        {"eval_batch_size": 1},
        {"eval_batch_size": 3, "num_workers": 2},
        {"seed": 5, "batch_size": 2, "max_num_targets": 5, "vary_sizes": True},
    ],
    ids=["alone", "workers", "training"],
)
def test_an_evaluation_task_is_a_function_of_eval_seed_and_index(
    root: Path, change: dict, loader: str
) -> None:
    expected = evaluation_tasks(emnist(root, eval_seed=2, t_noise=0.1), loader)
    torch.manual_seed(123)
    tasks = evaluation_tasks(emnist(root, eval_seed=2, t_noise=0.1, **change), loader)
    assert len(tasks) == len(expected) == {"val": 10, "test": 60, "predict": 16}[loader]
    for ours, theirs in zip(tasks, expected):
        assert_same_record(ours, theirs)


@pytest.mark.parametrize("kind", [Part.VALIDATE, Part.TEST, Part.TEST_UNSEEN])
def test_an_evaluation_task_is_of_the_image_of_its_index(root: Path, kind: int) -> None:
    data = emnist(root)
    tasks = single_tasks(data.evaluation_batch(range(3, 9, 2), kind))
    for task, image in zip(tasks, data.image_sets[kind][[3, 5, 7]], strict=True):
        for x, y in ((task.xc[0], task.yc[0]), (task.xt[0], task.yt[0])):
            row, column = ((x + 1) / 2 * 27).round().long().unbind(-1)
            assert torch.equal(y, image[:, row, column].T / 255 - 0.5)


def test_evaluation_sizes_are_uniform_on_the_documented_ranges(root: Path) -> None:
    """With at least 3 and, together, less than 8: N in 3…4, M in 3…7 − N."""
    tasks = [
        task
        for seed in range(10)
        for task in evaluation_tasks(emnist(root, max_num_points=8, eval_seed=seed), "test")
    ]
    counts = Counter((task.xc.shape[1], task.xt.shape[1]) for task in tasks)
    assert len(tasks) == 600
    for pair, probability in {(3, 3): 1 / 4, (3, 4): 1 / 4, (4, 3): 1 / 2}.items():
        error = (probability * (1 - probability) * 600) ** 0.5
        assert abs(counts.pop(pair) - probability * 600) < 4 * error
    assert not counts


def test_fixed_tasks_differ_by_seed_index_and_split(root: Path) -> None:
    data, other = emnist(root, eval_seed=2), emnist(root, eval_seed=3)
    contexts = [
        tuple(task.xc[0, :3].flatten().tolist())
        for batch in (
            *(data.evaluation_batch(range(4), kind)
              for kind in (Part.VALIDATE, Part.TEST, Part.TEST_UNSEEN, Part.PREDICT)),
            other.evaluation_batch(range(4), Part.VALIDATE),
        )
        for task in single_tasks(batch)
    ]  # fmt: skip
    assert len(set(contexts)) == len(contexts) == 20


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_evaluation_tasks_out(root: Path, world_size: int) -> None:
    copies = ranks(emnist(root), world_size)
    for loader, number in (("val", 10), ("test", 60)):
        tasks = [task.xc for copy in copies for task in evaluation_tasks(copy, loader)]
        assert len(tasks) == number
        whole = [task.xc for task in evaluation_tasks(*ranks(emnist(root), 1), loader)]
        assert sorted(x.flatten().tolist() for x in tasks) == sorted(
            x.flatten().tolist() for x in whole
        )


def test_fewer_test_tasks_are_the_first(root: Path) -> None:
    few = evaluation_tasks(emnist(root, num_test_tasks=3), "test")
    seen = evaluation_tasks(emnist(root), "test")
    assert len(few) == 6
    for ours, theirs in zip(few, [*seen[:3], *seen[40:43]]):
        assert_same_record(ours, theirs)


def test_predictions_are_of_all_other_pixels(root: Path) -> None:
    data = emnist(root, num_predict_tasks=3)
    tasks = evaluation_tasks(data, "predict")
    assert len(tasks) == 3
    for task, image in zip(tasks, data.image_sets[Part.TEST][range(3)]):
        assert_close(completed(task), image[0] / 255 - 0.5)


def test_loading_leaves_the_global_random_state_alone(root: Path) -> None:
    data = emnist(root, t_noise=0.1)
    before = torch.get_rng_state()
    data.completion_task()
    assert len(list(data.train_dataloader())) == 8
    assert len(evaluation_tasks(data, "test")) == 60
    assert torch.equal(torch.get_rng_state(), before)


def test_outliers_are_added_with_heavy_tails(root: Path) -> None:
    plain, contaminated = (
        emnist(root, t_noise=t, batch_size=400, max_num_points=400) for t in (None, 0.15)
    )
    task, other = plain.training_batch(0), contaminated.training_batch(0)
    assert torch.equal(other.xc, task.xc)
    assert torch.equal(other.xt, task.xt)
    added = torch.cat([other.yc - task.yc, other.yt - task.yt], dim=1).flatten() / 0.15
    # Of StudentT(2.1): the median of the magnitude, and P(|t| > 6), for a normal one 2e-9.
    assert added.abs().median().item() == pytest.approx(0.808, abs=0.02)
    assert (added.abs() > 6).double().mean().item() == pytest.approx(0.0227, abs=0.003)


# Figures


def test_a_figure_s_task_completes_an_image(root: Path) -> None:
    """Seen and unseen kinds by turns, and larger contexts that hold the smaller ones."""
    data = emnist(root)
    kinds = [data.image_sets[kind] for kind in (Part.TEST, Part.TEST_UNSEEN)]
    for index in range(4):
        small_one, large = (data.completion_task(index, size) for size in (5, 300))
        expected = kinds[index % 2][[index // 2]][0, 0] / 255 - 0.5
        assert_close(completed(large), expected)
        assert torch.equal(large.xc[:, :5], small_one.xc)
    assert_same_record(data.completion_task(index, 300), large)


@pytest.mark.parametrize("num_context", [0, 784])
def test_a_context_that_leaves_no_figure_is_refused(root: Path, num_context: int) -> None:
    with pytest.raises(ValueError, match=f"num_context={num_context} must be 1 or more, and below"):
        emnist(root).completion_task(num_context=num_context)


# With a trainer


class Batches(L.Callback):
    """The contexts trained on."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: object, task: Task, *_) -> None:
        self.values.append(task.xc)


def fit(root: Path, path: Path, max_steps: int, checkpoint: Path | None = None) -> list[Tensor]:
    batches = Batches()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=max_steps, callbacks=[batches], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        limit_val_batches=0,
    )  # fmt: skip
    module = MetaRegression(small("CNP", 2, 1).float())
    trainer.fit(module, emnist(root), ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(path / f"{max_steps}.ckpt")
    return batches.values


def test_a_run_that_resumes_goes_on_with_the_next_batch(root: Path, tmp_path: Path) -> None:
    whole = fit(root, tmp_path, 12)
    before = fit(root, tmp_path, 3)
    after = fit(root, tmp_path, 12, tmp_path / "3.ckpt")
    assert len(whole) == len(before) + len(after) == 12
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before + after, whole))


def test_testing_reports_seen_and_unseen_classes_apart(root: Path) -> None:
    data, module = emnist(root), MetaRegression(small("CNP", 2, 1).float())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    seen, unseen = trainer.test(module, data, verbose=False)
    for name, kind, results in (("seen", Part.TEST, seen), ("unseen", Part.TEST_UNSEEN, unseen)):
        task = data.evaluation_batch(range(len(data.image_sets[kind])), kind)
        with torch.no_grad():
            evaluation = module.model.eval().evaluate(task)
        expected = evaluation.log_likelihood.mean().item()
        assert results[f"test/log_likelihood/{name}"] == pytest.approx(expected, rel=1e-5)
        errors = (evaluation.mean - task.yt)[task.target_mask].square().mean().sqrt().item()
        assert results[f"test/rmse/{name}"] == pytest.approx(errors, rel=1e-5)
        names = {
            "log_likelihood",
            "log_likelihood_stderr",
            "rmse",
            "crps",
            "interval_score_95",
            "pit_ks",
        }
        names |= {f"coverage_{percent}" for percent in (50, 80, 95)}
        assert set(results) == {f"test/{metric}/{name}" for metric in names}
    (plain,) = trainer.test(module, data.test_dataloader()["seen"], verbose=False)
    assert plain["test/rmse"] == pytest.approx(seen["test/rmse/seen"], rel=1e-6)
    again = trainer.test(module, data, verbose=False)
    assert again == [seen, unseen]


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"eval_batch_size": 0}, "eval_batch_size=0 must be 1 or more"),
        ({"min_num_points": 0}, "min_num_points=0 must be 1 or more"),
        ({"num_val_tasks": 0}, "num_val_tasks=0 must be 1 or more"),
        ({"num_test_tasks": 0}, "num_test_tasks=0 must be 1 or more"),
        ({"num_predict_tasks": 0}, "num_predict_tasks=0 must be 1 or more"),
        ({"max_num_points": 6}, "max_num_points=6 leaves no room for 3"),
        ({"max_num_points": 785}, "max_num_points=785 exceeds the 784 pixels of an image"),
        ({"max_num_targets": 2}, "max_num_targets=2 must not be below min_num_points=3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_tasks_are_refused(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EMNISTDataModule(tmp_path, **arguments)


def test_training_images_are_not_tested_on(root: Path) -> None:
    sets = emnist(root).image_sets
    assert sets[Part.TRAIN].array is sets[Part.VALIDATE].array
    assert not set(sets[Part.TRAIN].rows) & set(sets[Part.VALIDATE].rows)
    assert sets[Part.TEST].array is sets[Part.TEST_UNSEEN].array is not sets[Part.TRAIN].array
