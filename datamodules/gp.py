"""Tasks from Gaussian processes, drawn on the fly."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from gpytorch.kernels import Kernel
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.gaussian_process import GPDraw, outliers, realise
from datamodules.kernels import RandomKernel, released_rbf
from datamodules.seeding import seeded
from npbench.task import Task

# The first number of every random key: training, and one for each fixed set of tasks.
_TRAIN, _VALIDATE, _TEST, _PREDICT, _FIGURES = range(5)


class Curriculum:
    """Begin with another kernel's priors and move to the real ones.

    The hyper-parameters of a training task are (1 − p)·h₀ + p·h, with h₀ and h drawn from the two
    priors at the same quantiles, and p rising linearly from 0 to 1 over `num_batches`.

    Args:
        kernel: the same kernel as the data module's, with the priors to begin with.
        num_batches: number of training batches until the real priors hold.
    """

    def __init__(self, kernel: Kernel, num_batches: int) -> None:
        if num_batches < 1:
            raise ValueError(f"a curriculum takes 1 batch or more, not {num_batches}")
        self.kernel = RandomKernel(kernel)
        self.num_batches = num_batches


class GPDataModule(L.LightningDataModule):
    """Regression tasks drawn from Gaussian processes, new ones at every training step.

    The batch that a rank trains on at step i is a function of (seed, rank, i): the same with any
    number of workers, after a resume too. Evaluation task i is a function of (eval_seed, i) alone,
    and comes with the exact Gaussian process's answer (`Task.exact`).

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs, independent draws of the same process.
        kernel: any GPyTorch kernel with priors on its hyper-parameters, drawn anew for each task;
            by default the released code's RBF: length ~ U[0.1, 0.6), scale ~ U[0.1, 1.0).
        noise_std: standard deviation of the observation noise.
        x_range: inputs are uniform on this interval, in each dimension.
        min_num_points: fewest context points N, and fewest targets M.
        max_num_points: N + M stays below; N ~ U{min, …, max − min − 1}, M ~ U{min, …, max − 1 − N}.
        batch_size: tasks a training step, on each rank; they share N and M, as officially.
        eval_batch_size: tasks an evaluation step; changes no result.
        steps_per_epoch: training batches an epoch, after which comes a validation.
        num_val_tasks: number of fixed validation tasks.
        num_test_tasks: number of fixed test tasks (officially 3,000 batches of 16).
        num_predict_tasks: number of fixed tasks for `predict`.
        t_noise: contaminate all values with `t_noise`·StudentT(2.1), the official
            out-of-distribution setting; the exact answer is then unknown.
        pad: give all training batches the same shape, with masks (for `torch.compile`).
        curriculum: begin training with easier priors.
        seed: of the training tasks.
        eval_seed: of the validation, test and prediction tasks.
        num_workers: processes that draw tasks; 0 draws in the training process.

    Example:
        >>> data = GPDataModule(batch_size=4)
        >>> next(iter(data.val_dataloader())).exact.log_likelihood.shape
        torch.Size([16])
    """

    def __init__(
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        kernel: Kernel | None = None,
        noise_std: float = 0.02,
        x_range: tuple[float, float] = (-2.0, 2.0),
        min_num_points: int = 3,
        max_num_points: int = 50,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        steps_per_epoch: int = 1000,
        num_val_tasks: int = 1600,
        num_test_tasks: int = 48000,
        num_predict_tasks: int = 16,
        t_noise: float | None = None,
        pad: bool = False,
        curriculum: Curriculum | None = None,
        seed: int = 0,
        eval_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        at_least_one = {
            "dim_x": dim_x,
            "dim_y": dim_y,
            "min_num_points": min_num_points,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "steps_per_epoch": steps_per_epoch,
            "num_val_tasks": num_val_tasks,
            "num_test_tasks": num_test_tasks,
            "num_predict_tasks": num_predict_tasks,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if max_num_points <= 2 * min_num_points:
            raise ValueError(
                f"max_num_points={max_num_points} leaves no room for {min_num_points} context and "
                f"{min_num_points} target points; it must exceed their sum"
            )
        if not noise_std >= 0:
            raise ValueError(f"noise_std={noise_std} must be 0 or more")
        if not x_range[0] < x_range[1]:
            raise ValueError(f"x_range={x_range} must go from a number to a greater one")
        self.dim_x = dim_x
        self.dim_y = dim_y
        self.kernel = RandomKernel(released_rbf() if kernel is None else kernel)
        if curriculum is not None:
            _check_same_priors(self.kernel, curriculum.kernel)
        self.noise_std = noise_std
        self.x_range = x_range
        self.min_num_points = min_num_points
        self.max_num_points = max_num_points
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_val_tasks = num_val_tasks
        self.num_test_tasks = num_test_tasks
        self.num_predict_tasks = num_predict_tasks
        self.t_noise = t_noise
        self.pad = pad
        self.curriculum = curriculum
        self.seed = seed
        self.eval_seed = eval_seed
        self.num_workers = num_workers

    def training_batch(self, index: int, rank: int = 0) -> Task:
        """The batch of training step `index` on `rank`."""
        key = (_TRAIN, self.seed, rank, index)
        with seeded(*key):
            draw = self._draw(self.batch_size)
        if self.curriculum is not None and index < self.curriculum.num_batches:
            progress = index / self.curriculum.num_batches
            with seeded(*key, 1):
                easy = self.curriculum.kernel.draw(self.batch_size)
            with seeded(*key, 1):
                real = self.kernel.draw(self.batch_size)
            draw.hyperparameters[:] = [torch.lerp(e, r, progress) for e, r in zip(easy, real)]
        task = realise(self.kernel, draw, self.noise_std, with_exact=False)
        most = self.max_num_points - self.min_num_points - 1
        return task.pad(most, most) if self.pad else task

    def evaluation_batch(self, indices: range, split: int = _TEST) -> Task:
        """The fixed evaluation tasks of these indices, with their exact answers."""
        draws = []
        for index in indices:
            with seeded(split, self.eval_seed, index):
                draws.append(self._draw(1, num_points=self.max_num_points - 1))
        return realise(self.kernel, GPDraw.stack(draws), self.noise_std, with_exact=True)

    def figure_task(self, index: int = 0, num_targets: int = 200) -> Task:
        """A task whose targets lie densely along the first input (the others at 0), in order."""
        with seeded(_FIGURES, self.eval_seed, index):
            draw = self._draw(1, num_points=self.max_num_points - 1 + num_targets)
        context = draw.x[:, : int(draw.num_context)]
        grid = context.new_zeros(1, num_targets, self.dim_x)
        grid[..., 0] = torch.linspace(*self.x_range, num_targets, dtype=grid.dtype)
        x = torch.cat([context, grid], dim=1)
        white = draw.white[:, : x.shape[1]]
        outlying = None if draw.outliers is None else draw.outliers[:, : x.shape[1]]
        dense = GPDraw(
            draw.num_context, torch.tensor([num_targets]), x, draw.hyperparameters, white, outlying
        )
        return realise(self.kernel, dense, self.noise_std, with_exact=True)

    def _draw(self, batch_size: int, num_points: int | None = None) -> GPDraw:
        """Draw from torch's generator; by default as many points as the tasks need."""
        low, high = self.min_num_points, self.max_num_points
        num_context = int(torch.randint(low, high - low, ()))
        num_target = int(torch.randint(low, high - num_context, ()))
        shape = batch_size, num_points or num_context + num_target
        x = torch.empty(*shape, self.dim_x, dtype=torch.float64).uniform_(*self.x_range)
        hyperparameters = self.kernel.draw(batch_size)
        white = torch.randn(*shape, self.dim_y, dtype=torch.float64)
        return GPDraw(
            torch.full([batch_size], num_context),
            torch.full([batch_size], num_target),
            x,
            hyperparameters,
            white,
            None if self.t_noise is None else outliers(white.shape, self.t_noise),
        )

    def train_dataloader(self) -> DataLoader:
        rank, _ = self._rank_and_world_size()
        length = self.steps_per_epoch
        if self.trainer is not None and self.trainer.max_steps > 0:
            # A run shorter than an epoch ends with a validation too.
            length = min(length, self.trainer.max_steps * self.trainer.accumulate_grad_batches)
        batches = _Batches(lambda index: self.training_batch(index, rank), length)
        return _ResumableLoader(batches, self._batches_done, **self._loader_options())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.num_val_tasks, _VALIDATE)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.num_test_tasks, _TEST)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.num_predict_tasks, _PREDICT)

    def _evaluation_loader(self, num_tasks: int, split: int) -> DataLoader:
        """This rank's share of the fixed tasks: every `world_size`-th, none twice, none lost."""
        rank, world_size = self._rank_and_world_size()
        indices = range(rank, num_tasks, world_size)
        size = self.eval_batch_size
        chunks = [indices[start : start + size] for start in range(0, len(indices), size)]
        batches = _Batches(lambda i: self.evaluation_batch(chunks[i], split), len(chunks))
        return DataLoader(batches, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        # Each pass of a loader draws a seed for its workers: here from a generator of its own, so
        # that torch's random state stays as it is.
        options = {"batch_size": None, "generator": torch.Generator()}
        if self.num_workers:
            # GPyTorch's priors cannot be pickled, which other ways to start a worker would do.
            options |= {"num_workers": self.num_workers, "multiprocessing_context": "fork"}
        return options

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _batches_done(self) -> int:
        """Batches that this run has trained on, those before a resume included."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready


def _check_same_priors(kernel: RandomKernel, easier: RandomKernel) -> None:
    names, easier_names = (
        [name for name, *_ in each.kernel.named_priors()] for each in (kernel, easier)
    )
    if names != easier_names:
        raise ValueError(
            f"the curriculum's kernel has priors on {easier_names}, the data module's on {names}; "
            f"they must be the same kernel"
        )


class _Batches(IterableDataset):
    """`batch(first), batch(first + 1), …`, shared out among the loader's workers in order."""

    def __init__(self, batch: Callable[[int], Task], length: int) -> None:
        self.batch = batch
        self.length = length
        self.first = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Task]:
        worker = get_worker_info()
        offset, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(self.first + offset, self.first + self.length, step):
            yield self.batch(index)


class _ResumableLoader(DataLoader):
    """A loader that begins each epoch at the batch that the run has come to.

    The position is the trainer's own progress, which its checkpoints hold. `state_dict` and
    `load_state_dict` tell Lightning that a run may resume in the middle of an epoch.
    """

    def __init__(self, batches: _Batches, batches_done: Callable[[], int], **options: Any) -> None:
        super().__init__(batches, **options)
        self.batches_done = batches_done

    def __iter__(self) -> Iterator[Task]:
        self.dataset.first = self.batches_done()
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        return {"batches_done": self.batches_done()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to do: the trainer's progress is restored by itself."""
