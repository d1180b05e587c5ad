"""The loss of a model as one compiled graph."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from npbench.models import NeuralProcess
from npbench.task import Task


class CompiledLoss:
    """`model.loss`, which `torch.compile` makes one graph of, for tasks of sizes that vary.

    The first tasks are taken as they are. Once others come with other numbers of points, tasks are
    padded, each number to a power of two that never falls: the loss of padded tasks is the same,
    and a run compiles a few graphs in all. On a GPU they become CUDA graphs.

    Args:
        model: whose loss it is.
        backend: as of `torch.compile`.

    Example:
        >>> from npbench.models import CNP
        >>> loss = CompiledLoss(CNP(dim_x=1, dim_y=1))
        >>> [tuple(loss.padded(Task(*torch.zeros(3, 2, n, 1), torch.zeros(2, n, 1))).xc.shape)
        ...  for n in (20, 30, 5)]
        [(2, 20, 1), (2, 32, 1), (2, 32, 1)]
    """

    def __init__(self, model: NeuralProcess, backend: str | Callable = "inductor") -> None:
        self._model = model
        self._backend = backend
        self._sizes: tuple[int, int] | None = None
        self._is_padding = False
        self._loss: Callable[[Task], Tensor] | None = None

    def __call__(self, task: Task) -> Float[Tensor, ""]:
        on_gpu = task.xc.is_cuda
        if self._loss is None:
            mode = "reduce-overhead" if on_gpu else None
            self._loss = torch.compile(
                self._model.loss, fullgraph=True, dynamic=False, backend=self._backend, mode=mode
            )
        if on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss(self.padded(task))
        # The next replay of a CUDA graph writes where its last result is.
        return loss.clone() if on_gpu else loss

    def padded(self, task: Task) -> Task:
        """The same tasks in sizes of which there are few."""
        sizes = task.xc.shape[1], task.xt.shape[1]
        known = self._sizes or sizes
        has_masks = task.context_mask is not None or task.target_mask is not None
        self._is_padding |= has_masks or sizes != known
        self._sizes = _grown(sizes[0], known[0]), _grown(sizes[1], known[1])
        return task.pad(*self._sizes) if self._is_padding else task


def _grown(size: int, before: int) -> int:
    """A size that holds both: the one before, or else a power of two."""
    return before if size <= before else 1 << (size - 1).bit_length()
