"""Regression tasks that are drawn from Gaussian processes while a model trains."""

from dataclasses import replace
from functools import cached_property
from math import isqrt

import torch
from gpytorch.kernels import Kernel
from jaxtyping import Float
from torch import Tensor

from datamodules.bayes import BayesianCeiling
from datamodules.gaussian_process import GPDraw, observed, outliers, realise
from datamodules.kernels import RandomKernel, released_rbf
from datamodules.loading import DrawnTaskDataModule, Part, at_least_one, check_range
from datamodules.readings import Readings, Repeats
from datamodules.sampling import ContextTargetSplit, TaskSizes
from datamodules.seeding import seeded
from npbench.errors import InputError
from npbench.task import Bayes, Task


class Curriculum:
    """Begins with the priors of another kernel and moves to the real ones.

    The hyper-parameters of a training task are (1 − p)·h₀ + p·h, with h₀ and h drawn from the two
    priors at the same quantiles, and p rising linearly from 0 to 1 over `num_batches`.

    Args:
        kernel: the same kernel as the data module's, with the priors to begin with.
        num_batches: number of training batches until the real priors hold.
    """

    def __init__(self, kernel: Kernel, num_batches: int) -> None:
        if num_batches < 1:
            raise InputError(f"a curriculum takes 1 batch or more, not {num_batches}")
        self.kernel = RandomKernel(kernel)
        self.num_batches = num_batches


class GPDataModule(DrawnTaskDataModule):
    """Draws regression tasks from Gaussian processes, new ones at every training step.

    The batch that a rank trains on at step i is a function of (seed, rank, i): it is the same with
    any number of workers, and after a resume too. Evaluation task i is a function of (eval_seed, i)
    alone, and carries the answer of the exact Gaussian process (`Task.exact`), and with
    `bayes_grid` the best answer that knows only the priors (`Task.bayes`).

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs; they are independent draws of the same process.
        kernel: any GPyTorch kernel with priors on its hyper-parameters, which are drawn anew for
            each task; the default is the RBF kernel of the released code, with
            length ~ U[0.1, 0.6) and scale ~ U[0.1, 1.0).
        noise_std: standard deviation of the observation noise.
        x_range: inputs are uniform on this interval, in each dimension. Where a model is tested on
            another one than it was trained on, the tasks are shifted or scaled.
        min_num_points: fewest context points N, and fewest targets M.
        max_num_points: N + M stays below; N ~ U{min, …, max − min − 1}, M ~ U{min, …, max − 1 − N}.
        vary_sizes: the tasks of a training batch differ in N and M, with masks; officially they
            share both.
        num_targets: M of every training task, whose N keeps its law; by default M is drawn.
            Evaluation tasks depend neither on this nor on `vary_sizes`.
        batch_size: tasks a training step, on each rank.
        eval_batch_size: tasks an evaluation step; it changes no result.
        steps_per_epoch: training batches an epoch; a validation follows each epoch.
        num_val_tasks: number of fixed validation tasks.
        num_test_tasks: number of fixed test tasks (officially 3,000 batches of 16).
        num_predict_tasks: number of fixed tasks for `predict`.
        t_noise: contaminate all values with `t_noise`·StudentT(2.1), the official
            out-of-distribution setting; the exact answer is then unknown.
        pad: give all training batches the same shape, with masks (for `torch.compile`).
        curriculum: begin training with easier priors.
        bayes_grid: number of hyper-parameters over which `Task.bayes` of evaluation tasks, the best
            prediction that knows only the priors, is computed (`BayesianCeiling`); 0 leaves it
            out. The first evaluation computes it, and each worker keeps it in memory.
        x_grid: inputs lie on a grid of so many points in each dimension, both ends of `x_range`
            among them, and no two points of a task are the same; by default they are scattered.
        extent: least share of `x_range`, in each dimension, on which the context of a task lies.
            Each task draws its share, log-uniformly from this to 1, and where in `x_range` that is;
            so that points are denser in some tasks than in others. One half of the targets lies
            there too, and the other half anywhere in `x_range`.
        repeats: fewest and most noisy readings of each context site. A task draws one number,
            log-uniformly, for all of its sites, and the tasks of a batch share it unless
            `vary_sizes`. The N of `max_num_points` counts sites; targets are read once. The noise
            is `noise_std` and any `Noise` that is a summand of the kernel.
        seed: seed of the training tasks.
        eval_seed: seed of the validation, test and prediction tasks.
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
        vary_sizes: bool = False,
        num_targets: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        steps_per_epoch: int = 1000,
        num_val_tasks: int = 1600,
        num_test_tasks: int = 48000,
        num_predict_tasks: int = 16,
        t_noise: float | None = None,
        pad: bool = False,
        curriculum: Curriculum | None = None,
        bayes_grid: int = 0,
        x_grid: int | None = None,
        extent: float = 1.0,
        repeats: tuple[int, int] = (1, 1),
        seed: int = 0,
        eval_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            steps_per_epoch,
            num_val_tasks,
            num_test_tasks,
            num_predict_tasks,
            eval_batch_size,
            num_workers,
        )
        at_least_one(
            dim_x=dim_x,
            dim_y=dim_y,
            batch_size=batch_size,
        )
        self.sizes = TaskSizes(
            min_num_points, max_num_points, num_targets=num_targets, vary=vary_sizes
        )
        if not noise_std >= 0:
            raise InputError(f"noise_std={noise_std} must be 0 or more")
        check_range(x_range)
        self.dim_x = dim_x
        self.dim_y = dim_y
        self.kernel = RandomKernel(released_rbf() if kernel is None else kernel)
        if curriculum is not None:
            _check_same_priors(self.kernel, curriculum.kernel)
        self.noise_std = noise_std
        self.x_range = x_range
        self.batch_size = batch_size
        self.t_noise = t_noise
        self.pad = pad
        self.curriculum = curriculum
        if bayes_grid < 0:
            raise InputError(f"bayes_grid={bayes_grid} must be 0 or more")
        self.bayes_grid = bayes_grid
        if x_grid is not None:
            _check_grid(x_grid, dim_x, self.sizes)
        self.x_grid = x_grid
        if not 0 < extent <= 1:
            raise InputError(f"extent={extent} must be above 0, and 1 or less")
        self.extent = extent
        self.repeats = Repeats(*repeats)
        if self._is_repeated and (bayes_grid or t_noise is not None or self.kernel.hides_noise):
            raise InputError(
                f"repeats={list(repeats)} go neither with bayes_grid nor with t_noise, nor with a "
                f"Noise kernel that is no summand; leave them out"
            )
        self._known: dict[tuple[int, int], Bayes] = {}
        self.seed = seed
        self.eval_seed = eval_seed

    @property
    def max_num_points(self) -> int:
        """N + M of a task stays below."""
        return self.sizes.max

    def training_batch(self, index: int, rank: int = 0) -> Task:
        """The batch of training step `index` on `rank`."""
        key = (Part.TRAIN, self.seed, rank, index)
        with seeded(*key):
            draw = self._draw(self.sizes.draw(self.batch_size))
        if self.curriculum is not None and index < self.curriculum.num_batches:
            progress = index / self.curriculum.num_batches
            with seeded(*key, 1):
                easy = self.curriculum.kernel.draw(self.batch_size)
            with seeded(*key, 1):
                real = self.kernel.draw(self.batch_size)
            draw.hyperparameters[:] = [torch.lerp(e, r, progress) for e, r in zip(easy, real)]
        task = realise(self.kernel, draw, self.noise_std, with_exact=False)
        most = self.sizes.most_context * self.repeats.high
        return task.pad(most, self.sizes.most_targets) if self.pad else task

    def evaluation_batch(self, indices: range, part: Part = Part.TEST) -> Task:
        """The fixed evaluation tasks of these indices, with their exact answers."""
        draws = []
        for index in indices:
            with seeded(part, self.eval_seed, index):
                draws.append(self._draw(self.sizes.evaluation.draw(1), self.sizes.max - 1))
        task = realise(self.kernel, GPDraw.stack(draws), self.noise_std, with_exact=True)
        if not self.bayes_grid or self.t_noise is not None:
            return task
        return replace(task, bayes=self._bayes(indices, part, draws))

    def _bayes(self, indices: range, part: Part, draws: list[GPDraw]) -> Bayes:
        """The ceiling of these tasks, of which those not met before are computed."""
        keys = [(part, index) for index in indices]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            found = self._ceiling(GPDraw.stack([draws[i] for i in new]))
            for row, i in enumerate(new):
                self._known[keys[i]] = found.map(lambda z, row=row: z[row : row + 1])
        rows = (self._known[key].tensors() for key in keys)
        return Bayes(*(torch.cat(values) for values in zip(*rows)))

    @cached_property
    def _ceiling(self) -> BayesianCeiling:
        return BayesianCeiling(self.kernel, self.noise_std, self.bayes_grid)

    def figure_task(self, index: int = 0, num_targets: int | None = None) -> Task:
        """A task for figures, with the function itself as its `truth`.

        Of one input, its targets lie densely and in order. Of several, they are a square grid of
        the first two, and the others are 0.

        Args:
            index: of the task.
            num_targets: how many; of a grid, at most. By default 200, or 24 by 24.
        """
        if num_targets is None:
            num_targets = 200 if self.dim_x == 1 else 24**2
        if self.dim_x > 1:
            num_targets = isqrt(num_targets) ** 2
        with seeded(Part.FIGURES, self.eval_seed, index):
            draw = self._draw(self.sizes.evaluation.draw(1), self.sizes.max - 1 + num_targets)
            noise = torch.randn_like(draw.white)
        context = draw.x[:, : int(draw.num_context)]
        grid = context.new_zeros(1, num_targets, self.dim_x)
        side = num_targets if self.dim_x == 1 else isqrt(num_targets)
        line = torch.linspace(*self.x_range, side, dtype=grid.dtype)
        lines = torch.meshgrid(*[line] * min(self.dim_x, 2), indexing="ij")
        grid[..., : len(lines)] = torch.stack(lines, dim=-1).reshape(num_targets, -1)
        x = torch.cat([context, grid], dim=1)
        white = draw.white[:, : x.shape[1]]
        outlying = None if draw.outliers is None else draw.outliers[:, : x.shape[1]]
        dense = GPDraw(
            draw.num_context, torch.tensor([num_targets]), x, draw.hyperparameters, white, outlying,
            draw.readings,
        )  # fmt: skip
        noise = noise[:, : x.shape[1]]
        dense, function = observed(self.kernel, dense, self.noise_std, noise)
        task = realise(self.kernel, dense, self.noise_std, with_exact=True)
        return replace(task, truth=function[:, context.shape[1] :].float())

    def _draw(self, split: ContextTargetSplit, num_points: int | None = None) -> GPDraw:
        """Draw tasks of these sizes from torch's generator.

        Args:
            split: sizes of the tasks.
            num_points: points that are drawn for each task; by default those of the largest.
        """
        batch_size = len(split.num_context)
        shape = batch_size, split.num_points if num_points is None else num_points
        x = self._inputs(*shape)
        if self.extent < 1:
            x = self._gathered(x, split)
        hyperparameters = self.kernel.draw(batch_size)
        white = torch.randn(*shape, self.dim_y, dtype=torch.float64)
        return GPDraw(
            split.num_context,
            split.num_target,
            x,
            hyperparameters,
            white,
            None if self.t_noise is None else outliers(white.shape, self.t_noise),
            self._readings(split) if self._is_repeated else None,
        )

    @property
    def _is_repeated(self) -> bool:
        return self.repeats.high > 1

    def _readings(self, split: ContextTargetSplit) -> Readings:
        """Draw the readings of the sites of tasks of these sizes from torch's generator."""
        num_tasks = len(split.num_context)
        # Tasks that are drawn one by one are stacked.
        num_sites = self.sizes.most_context if num_tasks == 1 else int(split.num_context.max())
        return self.repeats.draw(num_tasks, num_sites, self.dim_y, not self.sizes.vary)

    def _inputs(self, batch_size: int, num_points: int) -> Float[Tensor, "batch points dim_x"]:
        """Draw inputs from torch's generator, scattered or on the grid."""
        if self.x_grid is None:
            x = torch.empty(batch_size, num_points, self.dim_x, dtype=torch.float64)
            return x.uniform_(*self.x_range)
        line = torch.linspace(*self.x_range, self.x_grid, dtype=torch.float64)
        nodes = torch.cartesian_prod(*[line] * self.dim_x).reshape(-1, self.dim_x)
        order = torch.rand(batch_size, len(nodes)).argsort(dim=-1)
        # Of a figure only the context is used; behind it the order may begin anew.
        return nodes[order[:, torch.arange(num_points) % len(nodes)]]

    def _gathered(
        self, x: Float[Tensor, "batch points dim_x"], split: ContextTargetSplit
    ) -> Float[Tensor, "batch points dim_x"]:
        """Move the context, and every second target, onto a share of the range of each task."""
        share, shift = torch.rand(2, len(x), 1, self.dim_x, dtype=x.dtype)
        share = self.extent ** share[..., :1]
        low, high = self.x_range
        near = low + share * (x - low) + (1 - share) * shift * (high - low)
        index = torch.arange(x.shape[1]) - split.num_context[:, None]
        anywhere = (index >= 0) & (index % 2 == 1)
        return x.where(anywhere[..., None], near)


def _check_grid(x_grid: int, dim_x: int, sizes: TaskSizes) -> None:
    if x_grid < 2:
        raise InputError(f"x_grid={x_grid} must be 2 or more points in each dimension")
    nodes, most = x_grid**dim_x, sizes.max - 1
    if sizes.num_targets is not None:
        most = max(most, sizes.most_context + sizes.num_targets)
    if nodes < most:
        raise InputError(
            f"x_grid={x_grid} gives {nodes:,} points in {dim_x} dimension(s), and a task may have "
            f"{most:,}: take a finer grid, or lower max_num_points or num_targets"
        )


def _check_same_priors(kernel: RandomKernel, easier: RandomKernel) -> None:
    names, easier_names = (
        [name for name, *_ in each.kernel.named_priors()] for each in (kernel, easier)
    )
    if names != easier_names:
        raise InputError(
            f"the curriculum's kernel has priors on {easier_names}, the data module's on {names}; "
            f"they must be the same kernel"
        )
