"""CMANP-AND: joint predictions of blocks of targets, one block after another."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from npbench.blocks import LayerConfig
from npbench.errors import InputError
from npbench.likelihoods import JointGaussian
from npbench.models.cmanp import CMANP, CMANPState
from npbench.models.contracts.joint import JointProcess, log_density
from npbench.models.contracts.points import Points, take
from npbench.models.contracts.process import Evaluation, Marginals, records_arguments


class CMANPAND(JointProcess, CMANP):
    r"""Constant Memory Attentive Neural Process, Autoregressive Not-Diagonal.

    The encoder is CMANP's, and a block of targets is predicted jointly (see `JointGaussian`). The
    model is trained on all targets as one block. It is evaluated and sampled block by block: the
    state absorbs the values of each block before the next is predicted:

    $$\log p(y_{1:M}) = \sum_b \log \mathcal{N}(y_b \mid \mu_b, \Sigma_b), \qquad
      S_{b+1} = \mathrm{update}(S_b, x_b, y_b)$$

    `log_likelihood`, `marginals` and `sample` are constant in memory in the numbers N of context
    points and M of targets; `query` answers for all its targets as one block. The log-likelihood
    and the samples depend on the order of the targets, which says what goes into which block.

    Args:
        block_size: number b_Q of targets predicted jointly.
        covariance: "cholesky" or "lowrank".
        dim_projection: columns of the covariance's factor P.
        num_std_layers: Transformer layers among the targets before P.
        projection_depth: linear layers from their output to P (and to the diagonal).

    The other arguments are those of `CMANP`.

    Source: Feng et al., *Memory Efficient Neural Processes via Constant Memory Attention Block*,
    ICML 2024, section 4.2. With one input and output there are 1,452,373 parameters; the official
    code counts 8,578 more, those of CMANP's diagonal head, which it does not use.

    Example:
        >>> model = CMANPAND(dim_x=1, dim_y=1, num_layers=2, block_size=10).eval()
        >>> x, y = torch.randn(2, 16, 25, 1)
        >>> state = model.condition(x, y)
        >>> model.query(state, x[:, :10]).covariance_matrix.shape
        torch.Size([16, 10, 10])
        >>> model.sample(state, x, num_samples=3).shape
        torch.Size([3, 16, 25, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 6,
        dim_feedforward: int = 128,
        num_latents: int = 128,
        num_block_latents: int = 128,
        embed_depth: int = 4,
        dropout: float = 0.0,
        bound_std: bool = False,
        qk_norm: bool = False,
        norm_residual: bool = True,
        context_chunk_size: int | None = None,
        block_size: int = 100,
        covariance: Literal["cholesky", "lowrank"] = "cholesky",
        dim_projection: int = 20,
        num_std_layers: int = 2,
        projection_depth: int = 4,
    ) -> None:
        super().__init__(
            dim_x=dim_x,
            dim_y=dim_y,
            dim_model=dim_model,
            num_heads=num_heads,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            num_latents=num_latents,
            num_block_latents=num_block_latents,
            embed_depth=embed_depth,
            dropout=dropout,
            bound_std=bound_std,
            qk_norm=qk_norm,
            norm_residual=norm_residual,
            context_chunk_size=context_chunk_size,
        )
        if block_size < 1:
            raise InputError(f"block_size={block_size} must be 1 or more")
        self.block_size = block_size
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout)
        self.head = JointGaussian(
            config=config,
            dim_y=dim_y,
            covariance=covariance,
            dim_projection=dim_projection,
            num_std_layers=num_std_layers,
            projection_depth=projection_depth,
            bound_std=bound_std,
        )

    def _query(self, state: CMANPState, xt: Tensor) -> Distribution:
        return self.head(self._encode_targets(state, xt))

    def _log_likelihood(self, state: CMANPState, targets: Points) -> Float[Tensor, "batch"]:
        total, before = 0.0, None
        for block in targets.packed().blocks(self.block_size):
            if before is not None:
                state = self._update(state, before)
            total = total + log_density(self._joint(state, block), block)
            before = block
        return total / targets.count

    def _evaluate(self, state: CMANPState, targets: Points) -> Evaluation:
        log_likelihood = self._log_likelihood(state, targets)
        return Evaluation(log_likelihood, *self._marginals(state, targets))

    def _marginals(self, state: CMANPState, targets: Points) -> Marginals:
        """Given the context alone; a deviation depends on the other targets of its block."""
        moments = []
        for block in targets.packed().blocks(self.block_size):
            dist = self._joint(state, block)
            moments.append(torch.stack([dist.mean, dist.stddev], dim=-1))
        moments = torch.cat(moments, dim=1).unflatten(1, (-1, self.dim_y))
        if targets.mask is not None:
            moments = take(moments, torch.argsort(targets.real_first, dim=-1))
        return Marginals(*moments.unbind(dim=-1))

    def _sample(
        self, state: CMANPState, xt: Tensor, num_samples: int
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
