"""A context of any size becomes the states of all blocks, in memory that its size does not change:
the gradients' too."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from npbench.attention import AttentionState
from npbench.attention.backward import attention_backward
from npbench.attention.kernels import attention_log_weights, score_bias
from npbench.blocks import CrossAttention
from npbench.blocks.filters import Filtered, FilterLayer, filtered
from npbench.models.contracts.points import Points


@dataclass(frozen=True)
class PointReader:
    r"""The first attentions of several blocks, whose latents attend to the same embedded points E.

    What `block.absorb(E)` computes for each block, at once for all: with the normalised embeddings
    $\hat{E}$, which the blocks share, block i's norm folds into its projection,

    $$W_i\, \mathrm{LN}_i(E) = (W_i\, \mathrm{diag}\, \gamma_i)\, \hat{E} + W_i \beta_i$$

    (`CrossAttention.folded_projection`). The filters of the blocks, of one kind in all of them or
    none, then stand between keys and queries.

    Args:
        embed: from [x, y] to the points' embeddings.
        blocks: `ConstantMemoryAttentionBlock`s, whose latents attend to them.
        bias: from the inputs x, [batch, points, dim_x], to what the scores get added,
            [blocks, batch, heads, latents, points]; called with one chunk of points at a time.
    """

    embed: nn.Module
    blocks: nn.ModuleList
    bias: nn.Module | None = None

    def absorb(self, points: Points) -> AttentionState:
        """The blocks' states of these points, stacked, by ordinary autograd."""
        return next(self.states([points]))

    def states(
        self, chunks: Iterable[Points], queries: Tensor | None = None
    ) -> Iterator[AttentionState]:
        """The state of each chunk; queries and projections are worked out once for all."""
        queries = self.queries() if queries is None else queries
        projection = self.projection()
        for points in chunks:
            q, k, v, bias = self.attended(queries, points, projection)
            state = AttentionState.from_chunk(
                _for_tasks(q, k.shape[1]), k.flatten(0, 1), v.flatten(0, 1),
                _repeated(points.mask, len(k)), None if bias is None else bias.flatten(0, 1),
            )  # fmt: skip
            yield state.map(lambda z, shape=k.shape[:2]: z.unflatten(0, shape))

    def packed(self, attention: AttentionState) -> list[Float[Tensor, "batch latents dim_model"]]:
        """What attention has brought to the latents of each block."""
        return [block.packed(attention[i]) for i, block in enumerate(self.blocks)]

    def log_weights(self, points: Points) -> Float[Tensor, "blocks batch heads latents points"]:
        """The logarithms of the attention of the blocks' latents to the points."""
        q, k, _, bias = self.attended(self.queries(), points, self.projection())
        mask, shape = _repeated(points.mask, len(k)), k.shape[:2]
        added = score_bias(mask, None if bias is None else bias.flatten(0, 1), q.dtype)
        added = None if added is None else added.unflatten(0, shape)
        return attention_log_weights(q.expand(-1, shape[1], -1, -1, -1), k, added)

    def fold(self, points: Points, chunk_size: int) -> AttentionState:
        """The same states and the same gradients, `chunk_size` points at a time in both."""
        lse, out = _Fold.apply(
            self, points.mask, chunk_size, self.queries(), points.x, points.y, *self.parameters()
        )
        return AttentionState(lse, out)

    def queries(self) -> Float[Tensor, "blocks 1 heads queries dim_head"]:
        """The queries that the latents of each block put to the points."""
        return torch.stack(
            [layer.queries_of(block.latents) for layer, block in zip(self._layers, self.blocks)]
        )

    def projection(
        self,
    ) -> tuple[
        Float[Tensor, "blocks dim_model two_dim_model"], Float[Tensor, "blocks 1 two_dim_model"]
    ]:
        """The weights and biases that take normalised embeddings to the blocks' keys and values."""
        weights, biases = zip(*(layer.folded_projection() for layer in self._layers))
        return torch.stack(weights).mT, torch.stack(biases)[:, None]

    def attended(
        self, queries: Tensor, points: Points, projection: tuple[Tensor, Tensor]
    ) -> Filtered:
        """What attention gets of the points, with a first dimension of blocks."""
        k, v = self.keys_values(points, projection)
        bias = None if self.bias is None else self.bias(points.x)
        if self._filters[0] is None:
            return Filtered(queries, k, v, bias)
        parts = [filtered(*z) for z in zip(self._filters, queries, k, v)]
        of_filters = [part.bias for part in parts if part.bias is not None]
        if of_filters:
            own = torch.stack(of_filters)
            bias = own if bias is None else bias + own
        q, k, v = (torch.stack(z) for z in list(zip(*parts))[:3])
        return Filtered(q, k, v, bias)

    def keys_values(
        self, points: Points, projection: tuple[Tensor, Tensor]
    ) -> tuple[
        Float[Tensor, "blocks batch heads points dim_head"],
        Float[Tensor, "blocks batch heads points dim_head"],
    ]:
        """The keys and values of the points, for each block."""
        weight, bias = projection
        first = self._layers[0]
        embedding = self.embed(points.xy)
        normalised = F.layer_norm(embedding, embedding.shape[-1:], eps=first.norm_context.eps)
        every_block = normalised.flatten(0, 1).expand(len(weight), -1, -1)
        projected = torch.baddbmm(bias, every_block, weight)
        return first.attention.split_keys_values(projected.unflatten(1, points.x.shape[:2]))

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that keys, values and the bias depend on, and filters of queries."""
        of_layers = [m for x in self._layers for m in (x.norm_context, x.attention.to_kv)]
        of_bias = [] if self.bias is None else [self.bias]
        of_filters = [layer for layer in self._filters if layer is not None]
        modules = [self.embed, *of_layers, *of_bias, *of_filters]
        return [parameter for module in modules for parameter in module.parameters()]

    @property
    def _layers(self) -> list[CrossAttention]:
        return [block.attend_points for block in self.blocks]

    @property
    def _filters(self) -> list[FilterLayer | None]:
        return [block.filter for block in self.blocks]


def _for_tasks(
    queries: Float[Tensor, "blocks 1 heads queries dim_head"], batch_size: int
) -> Float[Tensor, "blocks_batch heads queries dim_head"]:
    return queries.expand(-1, batch_size, -1, -1, -1).flatten(0, 1)


def _repeated(mask: Tensor | None, times: int) -> Tensor | None:
    return None if mask is None else mask.repeat(times, 1)


class _Fold(torch.autograd.Function):
    """Forward keeps no graph of the chunks; backward computes each chunk again."""

    @staticmethod
    def forward(
        ctx: Any,
        reader: PointReader,
        mask: Tensor | None,
        chunk_size: int,
        queries: Tensor,
        x: Tensor,
        y: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        chunks = Points(x, y, mask).blocks(chunk_size)
        state = reduce(AttentionState.merge, reader.states(chunks, queries))
        device = x.device.type
        ctx.autocast = (
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )  # fmt: skip
        ctx.reader, ctx.chunk_size = reader, chunk_size
        ctx.save_for_backward(mask, queries, x, y, state.lse, state.out, *parameters)
        return state.lse, state.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse: Tensor, grad_out: Tensor) -> tuple:
        mask, queries, x, y, lse, out, *parameters = ctx.saved_tensors
        lse, out, grad_lse, grad_out = (z.flatten(0, 1) for z in (lse, out, grad_lse, grad_out))
        grad_queries = torch.zeros_like(queries, dtype=lse.dtype)
        of_queries, *x_and_y = ctx.needs_input_grad[3:6]
        trained = [p for p, needed in zip(parameters, ctx.needs_input_grad[6:]) if needed]
        totals = [torch.zeros_like(parameter) for parameter in trained]
        inputs: list[list[Tensor]] = []
        for chunk in Points(x, y, mask).blocks(ctx.chunk_size):
            leaves = [z.detach().requires_grad_(g) for z, g in zip((chunk.x, chunk.y), x_and_y)]
            asked = queries.detach().requires_grad_(of_queries)
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                made = ctx.reader.attended(
                    asked, Points(*leaves, chunk.mask), ctx.reader.projection()
                )
            q, k, v = (z.detach() for z in made[:3])
            has_gradient = made.bias is not None and made.bias.requires_grad
            added = None if made.bias is None else made.bias.detach().flatten(0, 1)
            of_q, of_k, of_v, of_bias = attention_backward(
                _for_tasks(q, len(x)), k.flatten(0, 1), v.flatten(0, 1),
                score_bias(_repeated(chunk.mask, len(k)), added, q.dtype),
                lse, out, grad_lse, grad_out, of_bias=has_gradient,
            )  # fmt: skip
            grads = [of_q.unflatten(0, k.shape[:2]).sum(dim=1, keepdim=True), of_k, of_v, of_bias]
            sources = [z for z in (asked, *leaves) if z.requires_grad]
            pairs = [(z, g.view_as(z)) for z, g in zip(made, grads) if g is not None]
            pairs = [(z, g) for z, g in pairs if z.requires_grad]
            if not pairs:
                continue
            found = list(torch.autograd.grad(
                [z for z, _ in pairs], [*sources, *trained], [g for _, g in pairs]
            ))  # fmt: skip
            if of_queries:
                grad_queries += found.pop(0)
            inputs.append(found[: sum(x_and_y)])
            if trained:
                torch._foreach_add_(totals, found[sum(x_and_y) :])
        of_inputs = iter([torch.cat(z, dim=1) for z in zip(*inputs)])
        of_parameters = iter(totals)
        return (
            *(None, None, None, grad_queries.to(queries.dtype)),
            *(next(of_inputs) if needed else None for needed in x_and_y),
            *(next(of_parameters) if needed else None for needed in ctx.needs_input_grad[6:]),
        )
