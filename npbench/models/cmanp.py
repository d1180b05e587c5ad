"""CMANP: attention over a context of any size, at constant memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from npbench.attention import AttentionState
from npbench.blocks import MLP, ConstantMemoryAttentionBlock, Decoder, LayerConfig
from npbench.distributed import all_merge
from npbench.errors import InputError
from npbench.likelihoods import DiagonalGaussian, independent_normal
from npbench.models.contracts import state_files
from npbench.models.contracts.inputs import check_batch
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import NeuralProcess, State, merge_all, records_arguments
from npbench.models.streaming import PointReader

# How many points are taken at a time without gradients: chunks cost nothing there.
_INFERENCE_CHUNK = 512
# Least share of a latent's attention that must remain after `forget`: the relative rounding error
# grows as 1/share.
_LEAST_SHARE = 0.01


@dataclass(frozen=True, eq=False)
class CMANPState(State):
    """All that CMANP keeps of its context, at a size that does not depend on it.

    `attention` stacks the states of the blocks' first attention: the only tensors that ever see
    the points. `latents`, the outputs Z_1, …, Z_K of the blocks, follow from it; they are None
    right after `merge`, which knows no model, until `query` works them out.
    """

    batch_dim = 1

    attention: AttentionState
    latents: Float[Tensor, "layers batch num_latents dim_model"] | None

    def merge(self, other: "CMANPState") -> "CMANPState":
        """The state of the union of two contexts, exact in any order and any tree of merges.

        Raises:
            InputError: if the two are states of different numbers of tasks, or of other models.
        """
        return type(self)(self.attention.merge(other.attention), latents=None)

    def save(self, path: str | os.PathLike, model: "CMANP | None" = None, **notes: str) -> None:
        """Write the state to a safetensors file: whole, or not at all.

        Args:
            path: the file, whose size the context does not change.
            model: whose state it is; its fingerprint is written with it, for `load` to check. It
                hashes the class, the weights and the arguments that differ from their defaults.
            notes: further facts to write into the file's metadata.
        """
        tensors = {"attention.lse": self.attention.lse, "attention.out": self.attention.out}
        if self.latents is not None:
            tensors["latents"] = self.latents
        state_files.write(path, tensors, model, notes)

    @classmethod
    def load(cls, path: str | os.PathLike, model: "CMANP | None" = None) -> "CMANPState":
        """The state that `save` of this release or of an earlier one has written.

        It is on the model's device if a model is given.

        Args:
            path: the file.
            model: to be used with the state, and refused if it is not the one that made it.

        Raises:
            InputError: if the file is no saved state, or one of another model or other weights.
        """
        tensors = state_files.read(path, model)
        attention = AttentionState(tensors["attention.lse"], tensors["attention.out"])
        state = cls(attention, tensors.get("latents"))
        return state if model is None else state.to(model.latents.device)


class CMANP(NeuralProcess):
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
    ) -> None:
        super().__init__(dim_x, dim_y)
        if context_chunk_size is not None and context_chunk_size < 1:
            raise InputError(f"context_chunk_size={context_chunk_size} must be 1 or more")
        self.context_chunk_size = context_chunk_size
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout, qk_norm, norm_residual)
        self.embed_points = MLP(dim_x + dim_y, dim_model, dim_model, embed_depth)
        self.latents = nn.Parameter(torch.randn(num_latents, dim_model))
        self.blocks = nn.ModuleList(
            ConstantMemoryAttentionBlock(config, num_block_latents) for _ in range(num_layers)
        )
        self.decoder = Decoder(config, dim_x, num_layers, embed_depth)
        self.head = DiagonalGaussian(
            dim_model, dim_feedforward, dim_y, depth=2, min_std=0.05 if bound_std else None
        )

    def merge(self, *states: CMANPState) -> CMANPState:
        """The state of the union of one context or more, ready to be queried."""
        if not states:
            raise InputError("merge takes one state or more; condition on no points for a prior")
        return merge_all((state.attention for state in states), finish=self._state)

    def all_merge(self, state: CMANPState, group: ProcessGroup | None = None) -> CMANPState:
        """The collective form of `merge`: the state of all ranks' contexts, ready to be queried.

        It takes one context that is split over processes, in training too; see
        `npbench.distributed.all_merge`.

        Args:
            state: that of this rank's shard of the context, which may be empty.
            group: the ranks that share the context; by default all.

        Raises:
            InputError: if there is no process group, or this process is not in it.
        """
        return self._state(all_merge(state.attention, group, self.parameters()))

    def forget(
        self,
        state: CMANPState,
        x: Float[Tensor, "batch points dim_x"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> CMANPState:
        """The state without these points, which it has absorbed before: the inverse of `update`.

        It serves windows that slide, and data that must be deleted. It is exact but for rounding,
        which grows with the share of the attention that the points carried: where less than 1 % of
        any latent's attention is left, there is an error instead of a state.

        Raises:
            InputError: as `update`; and where the result would be ill-conditioned, or the state
                cannot have absorbed the points.
        """
        points = self._inputs.points("x", x, "y", y, mask)
        check_batch("x", points.x, state.batch_size)
        attention, share = state.attention.remove(self._absorb(points))
        least = float(share.detach().min())
        if not least >= _LEAST_SHARE:
            raise InputError(
                f"forgetting these points would leave {least:.1e} of what a latent attends to; "
                f"below {_LEAST_SHARE:g} the result is ill-conditioned, and below 0 the state has "
                f"never absorbed the points: condition on those that remain instead"
            )
        return self._state(attention)

    def _condition(self, chunks: Iterator[Points]) -> CMANPState:
        if torch.is_grad_enabled() and self.context_chunk_size is not None:
            return self._state(self._absorb(Points.concatenate(chunks)))
        return merge_all(self._reader.states(chunks), finish=self._state)

    def _update(self, state: CMANPState, points: Points) -> CMANPState:
        return self._state(state.attention.merge(self._absorb(points)))

    def _query(self, state: CMANPState, xt: Tensor) -> Distribution:
        latents, size = self._latents(state), self._points_at_a_time()
        if size is None or xt.shape[1] <= size:
            return self.head(self.decoder(xt, latents))

        def moments(x: Tensor) -> tuple[Tensor, Tensor]:
            return self.head.moments(self.decoder(x, latents))

        chunks = [checkpoint(moments, x, use_reentrant=False) for x in xt.split(size, dim=1)]
        return independent_normal(*(torch.cat(z, dim=1) for z in zip(*chunks)))

    def _encode_targets(
        self, state: CMANPState, xt: Tensor
    ) -> Float[Tensor, "batch target dim_model"]:
        return self.decoder(xt, self._latents(state))

    def _latents(self, state: CMANPState) -> Float[Tensor, "layers batch num_latents dim_model"]:
        return self._encode(state.attention) if state.latents is None else state.latents

    def _chunk_size(self) -> int | None:
        # With gradients `_absorb` needs all points to take them a few at a time.
        return None if torch.is_grad_enabled() else self._points_at_a_time()

    def _points_at_a_time(self) -> int | None:
        """How many points are taken at a time, as the table of the class says; None means all."""
        if self.context_chunk_size is None and not torch.is_grad_enabled():
            return _INFERENCE_CHUNK
        return self.context_chunk_size

    def _absorb(self, points: Points) -> AttentionState:
        """The blocks' states of these points, a few at a time."""
        size = self._points_at_a_time()
        if size is None or points.x.shape[1] <= size:
            return self._reader.absorb(points)
        if torch.is_grad_enabled():
            return self._reader.fold(points, size)
        return merge_all(self._reader.states(points.blocks(size)))

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

    def _state(self, attention: AttentionState) -> CMANPState:
        return CMANPState(attention, self._encode(attention))
