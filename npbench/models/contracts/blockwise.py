"""The base of the models that predict blocks of targets together, one block after another."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from npbench.errors import InputError
from npbench.likelihoods import JointGaussian
from npbench.models.contracts.joint import JointProcess, log_density
from npbench.models.contracts.points import Points, take
from npbench.models.contracts.process import Evaluation, Marginals, State


class BlockwiseProcess(JointProcess):
    """A model of constant memory with a joint head; comes before the one whose encoder it shares.

    It is trained on all targets as one block, and evaluated and sampled block by block: the state
    absorbs the values of each block before the next is predicted, as `CMANPAND` says.
    """

    block_size: int

    _encode_targets: Callable[[State, Tensor], Tensor]
    """The encoding of targets, by the model whose encoder it is."""

    def _predict_jointly(self, block_size: int, head: JointGaussian) -> None:
        """Put the joint head where the encoder's model has put its own."""
        if block_size < 1:
            raise InputError(f"block_size={block_size} must be 1 or more")
        self.block_size = block_size
        self.head = head

    def _query(self, state: State, xt: Tensor) -> Distribution:
        return self.head(self._encode_targets(state, xt))

    def _log_likelihood(self, state: State, targets: Points) -> Float[Tensor, "batch"]:
        total, before = targets.x.new_zeros(len(targets.x)), None
        for block in targets.packed().blocks(self.block_size):
            if before is not None:
                state = self._update(state, before)
            total = total + log_density(self._joint(state, block), block)
            before = block
        return total / targets.count

    def _evaluate(self, state: State, targets: Points) -> Evaluation:
        log_likelihood = self._log_likelihood(state, targets)
        return Evaluation(log_likelihood, *self._marginals(state, targets))

    def _marginals(self, state: State, targets: Points) -> Marginals:
        """Given the context alone; a deviation depends on the other targets of its block."""
        parts = []
        for block in targets.packed().blocks(self.block_size):
            dist = self._joint(state, block)
            parts.append(torch.stack([dist.mean, dist.stddev], dim=-1))
        moments = torch.cat(parts, dim=1).unflatten(1, (-1, self.dim_y))
        if targets.mask is not None:
            moments = take(moments, torch.argsort(targets.real_first, dim=-1))
        return Marginals(*moments.unbind(dim=-1))

    def _sample(
        self, state: State, xt: Tensor, num_samples: int
    ) -> Float[Tensor, "samples batch target dim_y"]:
        samples = xt.new_empty(num_samples, *xt.shape[:2], self.dim_y)
        state = state.repeat(num_samples)
        for start in range(0, xt.shape[1], self.block_size):
            window = slice(start, start + self.block_size)
            x = xt[:, window].repeat(num_samples, 1, 1)
            y = self._query(state, x).sample().reshape(*x.shape[:2], self.dim_y).to(x.dtype)
            samples[:, :, window] = y.unflatten(0, (num_samples, -1))
            if window.stop < xt.shape[1]:
                state = self._update(state, Points(x, y))
        return samples
