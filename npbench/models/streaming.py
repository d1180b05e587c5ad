"""A context of any size becomes the states of all blocks, in memory that its size does not change:
the gradients' too."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from npbench.attention import AttentionState, attention_backward
from npbench.models.points import Points


@dataclass(frozen=True)
class PointReader:
    """The first attentions of several blocks, whose latents attend to the same embedded points.

    Args:
        embed: from [x, y] to the points' embeddings.
        blocks: `ConstantMemoryAttentionBlock`s, whose latents attend to them.
    """

    embed: nn.Module
    blocks: nn.ModuleList

    def absorb(self, points: Points) -> AttentionState:
        """The blocks' states of these points, stacked, by ordinary autograd."""
        embedding = self.embed(points.xy)
        return AttentionState.stack([block.absorb(embedding, points.mask) for block in self.blocks])

    def fold(self, points: Points, chunk_size: int) -> AttentionState:
        """The same states and the same gradients, `chunk_size` points at a time in both."""
        lse, out = _Fold.apply(
            self, points.mask, chunk_size, self.queries(), points.x, points.y, *self.parameters()
        )
        return AttentionState(lse, out)

    def queries(self) -> Float[Tensor, "blocks 1 heads queries dim_head"]:
        """What the latents of each block ask of the points."""
        layers = [block.attend_points for block in self.blocks]
        latents = [block.latents[None] for block in self.blocks]
        return torch.stack(
            [layer.attention.queries(layer.norm(z)) for layer, z in zip(layers, latents)]
        )

    def keys_values(self, points: Points) -> list[tuple[Tensor, Tensor]]:
        """What the points answer each block."""
        embedding = self.embed(points.xy)
        layers = [block.attend_points for block in self.blocks]
        return [layer.attention.keys_values(layer.norm_context(embedding)) for layer in layers]

    def parameters(self) -> list[nn.Parameter]:
        """Those that keys and values depend on."""
        layers = [block.attend_points for block in self.blocks]
        modules = [self.embed, *(m for x in layers for m in (x.norm_context, x.attention.to_kv))]
        return [parameter for module in modules for parameter in module.parameters()]


class _Fold(torch.autograd.Function):
    """Forward without a graph, chunk by chunk; backward computes each chunk again."""

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
        points = Points(x, y, mask)
        q = queries.expand(-1, len(x), -1, -1, -1)

        def states(chunk: Points) -> AttentionState:
            return AttentionState.stack(
                [AttentionState.from_chunk(*qkv, chunk.mask)
                 for qkv in ((q_, *kv) for q_, kv in zip(q, reader.keys_values(chunk)))]
            )  # fmt: skip

        state = reduce(AttentionState.merge, map(states, points.blocks(chunk_size)))
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
        q = queries.expand(-1, len(x), -1, -1, -1)
        state, grad = AttentionState(lse, out), AttentionState(grad_lse, grad_out)
        grad_queries = torch.zeros_like(queries, dtype=lse.dtype)
        x_and_y = ctx.needs_input_grad[4:6]
        trained = [p for p, needed in zip(parameters, ctx.needs_input_grad[6:]) if needed]
        totals = [torch.zeros_like(parameter) for parameter in trained]
        inputs: list[list[Tensor]] = []
        for chunk in Points(x, y, mask).blocks(ctx.chunk_size):
            leaves = [z.detach().requires_grad_(g) for z, g in zip((chunk.x, chunk.y), x_and_y)]
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                keys_values = ctx.reader.keys_values(Points(*leaves, chunk.mask))
            outputs, grads = [], []
            for i, (k, v) in enumerate(keys_values):
                grad_q, *grads_kv = attention_backward(
                    q[i], k.detach(), v.detach(), chunk.mask, state[i], grad[i]
                )
                grad_queries[i] += grad_q.sum(dim=0)
                answers = [(z, g) for z, g in zip((k, v), grads_kv) if z.requires_grad]
                outputs += [z for z, _ in answers]
                grads += [g for _, g in answers]
            if not outputs:
                continue
            leaves = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(outputs, [*leaves, *trained], grads)
            inputs.append(list(found[: len(leaves)]))
            if trained:
                torch._foreach_add_(totals, found[len(leaves) :])
        of_inputs = iter([torch.cat(z, dim=1) for z in zip(*inputs)])
        of_parameters = iter(totals)
        return (
            *(None, None, None, grad_queries.to(queries.dtype)),
            *(next(of_inputs) if needed else None for needed in x_and_y),
            *(next(of_parameters) if needed else None for needed in ctx.needs_input_grad[6:]),
        )
