"""CMANP: attention over a context of any size, at constant memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.attention import AttentionState
from npbench.blocks import MLP, ConstantMemoryAttentionBlock, Decoder, LayerConfig, PointFilter
from npbench.likelihoods import Likelihood, target_head
from npbench.models.contracts.constant_memory import (
    ConstantMemoryProcess,
    ConstantMemoryState,
    check_chunk_size,
)
from npbench.models.contracts.memory import MemoryView
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import records_arguments
from npbench.models.streaming import PointReader
from npbench.task import Task


@dataclass(frozen=True, eq=False)
class CMANPState(ConstantMemoryState):
    """All that CMANP keeps of its context.

    `attention` stacks the states of the blocks' first attention: the only tensors that ever see
    the points. `latents` are the outputs Z_1, …, Z_K of the blocks.
    """


class CMANP(ConstantMemoryProcess):
    r"""Constant Memory Attentive Neural Process.

    $$E = \mathrm{MLP}([x, y]), \qquad Z_i = \mathrm{CMAB}_i(Z_{i-1}, E), \qquad i = 1, …, K$$
    $$X_0 = \mathrm{MLP}(x_t), \qquad X_i = \mathrm{FF}(\mathrm{CrossAttn}(X_{i-1} \to Z_i))$$
    $$y_t \sim \mathcal{N}(\mu, \sigma^2), \qquad [\mu, \sigma] = \mathrm{head}(\mathrm{LN}(X_K))$$

    with $Z_0$ learned. Each block's state depends on E alone, so one pass over the points serves
    all blocks; `condition`, `query` and `update` are constant in the number N of context points.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_model: width D.
        num_heads: heads of every attention.
        num_layers: number K of blocks, and of query layers.
        dim_feedforward: hidden width of the feed-forward layers and of the head.
        num_latents: number L_I of input latents.
        num_block_latents: number L_B of latents of each block.
        embed_depth: linear layers in the two embedding MLPs.
        dropout: rate after each feed-forward layer.
        bound_std: keep the standard deviation above 0.05.
        qk_norm: normalise queries and keys; see `MultiheadAttention`.
        norm_residual: what the layers' residuals add; see `LayerConfig`.
        context_chunk_size: how many context points are embedded and absorbed at a time, and targets
            decoded: memory then does not depend on their numbers, in training either. It changes no
            result; see below.
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.
        with_mass: whether latents also know how much they found among the points, which the paper's
            do not; see `MassChannel`.
        filter: what stands between points and the latents of each block, such as `PointGate`; see
            `npbench.blocks.filters`. By default nothing does.

    How many points `condition`, `update`, `forget` and `query` take at a time, where `condition` is
    not told by its own `chunk_size`:

    | gradients | context_chunk_size | points at a time                                   |
    |-----------|--------------------|----------------------------------------------------|
    | no        | None               | 512                                                |
    | no        | n                  | n                                                  |
    | yes       | None               | all of them                                        |
    | yes       | n                  | n, and backward computes each chunk once more      |

    Source: Feng et al., *Memory Efficient Neural Processes via Constant Memory Attention Block*,
    ICML 2024; the defaults are its configuration (1,341,634 parameters for one input and output).

    Example:
        >>> model = CMANP(dim_x=1, dim_y=1, num_layers=2).eval()
        >>> x, y = torch.linspace(-2, 2, 100).reshape(1, -1, 1), torch.randn(1, 100, 1)
        >>> state = model.condition(x[:, :50], y[:, :50])
        >>> state = model.update(state, x[:, 50:], y[:, 50:])
        >>> model.query(state, x).mean.shape
        torch.Size([1, 100, 1])
    """

    state_class = CMANPState

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
        likelihood: Likelihood = "gaussian",
        with_mass: bool = False,
        filter: PointFilter | None = None,
    ) -> None:
        super().__init__(dim_x, dim_y)
        self.context_chunk_size = check_chunk_size(context_chunk_size)
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout, qk_norm, norm_residual)
        self.embed_points = MLP(dim_x + dim_y, dim_model, dim_model, embed_depth)
        self.latents = nn.Parameter(torch.randn(num_latents, dim_model))
        self.blocks = nn.ModuleList(
            ConstantMemoryAttentionBlock(config, num_block_latents, with_mass, filter)
            for _ in range(num_layers)
        )
        self.decoder = Decoder(config, dim_x, num_layers, embed_depth)
        self.head = target_head(
            likelihood,
            dim_y,
            lambda n: MLP(dim_model, dim_feedforward, n, depth=2),
            min_std=0.05 if bound_std else None,
        )

    def memory_layers(self, batch: Task) -> list[MemoryView]:
        """What each block keeps of the contexts of tasks, and how it attends to them."""
        context, _ = self._inputs.of_task(batch)
        attention = self._absorb(context)
        packed, log_weights = self._reader.packed(attention), self._reader.log_weights(context)
        return list(map(MemoryView, packed, self._encode(attention), log_weights))

    def _states(self, chunks: Iterable[Points]) -> Iterator[AttentionState]:
        return self._reader.states(chunks)

    def _fold(self, points: Points, size: int) -> AttentionState:
        return self._reader.fold(points, size)

    def _decode(
        self,
        xt: Float[Tensor, "batch target dim_x"],
        latents: Float[Tensor, "layers batch num_latents dim_model"],
    ) -> Float[Tensor, "batch target dim_model"]:
        return self.decoder(xt, latents)

    @property
    def _reader(self) -> PointReader:
        return PointReader(self.embed_points, self.blocks)

    def _encode(
        self, attention: AttentionState
    ) -> Float[Tensor, "layers batch num_latents dim_model"]:
        """Z_1, …, Z_K from the blocks' states."""
        batch_size = attention.lse.shape[1]
        latents = [self.latents.expand(batch_size, -1, -1)]
        for index, block in enumerate(self.blocks):
            latents.append(block(latents[-1], attention[index]))
        return torch.stack(latents[1:])
