"""Multi-head attention, at once or in two steps with a state between them."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention.kernels import attend
from npbench.attention.state import AttentionState
from npbench.errors import InputError


class MultiheadAttention(nn.Module):
    r"""Attention of `x` to `context`, with a bias on the output.

    $$\mathrm{Attn}(x \to c)
      = W_o\, [\mathrm{softmax}(q_h k_h^\top / \sqrt{d})\, v_h]_{h=1}^H + b_o$$

    Args:
        dim_model: width of `x`, `context` and the output.
        num_heads: number of heads, which split the width.
        qk_norm: divide q and k of each head by their root mean square and multiply the scores by a
            learned temperature per head, initially 1 (Henry et al., 2020; Dehghani et al., 2023).
        bias: whether q, k and v have a bias too.
        dim_head: width of a head; by default the heads split `dim_model`.
    """

    def __init__(
        self,
        dim_model: int,
        num_heads: int,
        qk_norm: bool = False,
        bias: bool = False,
        dim_head: int | None = None,
    ) -> None:
        super().__init__()
        if dim_head is None and dim_model % num_heads:
            raise InputError(f"dim_model={dim_model} does not split into num_heads={num_heads}")
        self.num_heads = num_heads
        width = dim_model if dim_head is None else num_heads * dim_head
        self.to_q = nn.Linear(dim_model, width, bias=bias)
        self.to_kv = nn.Linear(dim_model, 2 * width, bias=bias)
        self.to_out = nn.Linear(width, dim_model)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1)) if qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        return self.attend_to(x, *self.keys_values(context), mask)

    def attend_to(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        k: Float[Tensor, "batch heads points dim_head"],
        v: Float[Tensor, "batch heads points dim_head"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        """The same of a context whose keys and values are known."""
        return self.join(attend(self.queries(x), k, v, mask))

    def absorb(
        self,
        x: Float[Tensor, "queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch points"] | None = None,
        bias: Float[Tensor, "#batch heads queries points"] | None = None,
    ) -> AttentionState:
        """The state of queries that are the same for every task, computed once for all of them."""
        k, v = self.keys_values(context)
        q = self.queries(x[None]).expand(len(context), -1, -1, -1)
        return AttentionState.from_chunk(q, k, v, mask, bias)

    def readout(self, state: AttentionState) -> Float[Tensor, "batch queries dim_model"]:
        """The attention's output from the state of all its points."""
        return self.join(state.out)

    def queries(self, x: Tensor) -> Float[Tensor, "batch heads queries dim_head"]:
        q = split_heads(self.to_q(x), self.num_heads)
        if self.temperature is None:
            return q
        return self.temperature.to(q.dtype) * F.rms_norm(q, q.shape[-1:])

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.split_keys_values(self.to_kv(context))

    def split_keys_values(
        self, projected: Float[Tensor, "*batch points two_dim_model"]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, [*batch, heads, points, dim_head] each, from both side by side."""
        k, v = (split_heads(z, self.num_heads) for z in projected.chunk(2, dim=-1))
        return (k if self.temperature is None else F.rms_norm(k, k.shape[-1:])), v

    def join(
        self, out: Float[Tensor, "batch heads queries dim_head"]
    ) -> Float[Tensor, "batch queries dim_model"]:
        """The attention's output from those of its heads."""
        return self.to_out(join_heads(out).to(self.to_out.weight.dtype))


def split_heads(
    x: Float[Tensor, "*batch points dim_model"], num_heads: int
) -> Float[Tensor, "*batch heads points dim_head"]:
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def join_heads(
    x: Float[Tensor, "batch heads points dim_head"],
) -> Float[Tensor, "batch points dim_model"]:
    return x.transpose(1, 2).flatten(-2)
