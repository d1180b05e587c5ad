"""Causal Luna: attention through a memory whose state is sums over the past."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import join_heads, split_heads
from npbench.errors import InputError
from npbench.structure import TensorRecord

# Number of tokens whose mutual attention is formed at a time.
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class LunaSums(TensorRecord):
    r"""All that causal attention keeps of a past: sums of functions of single tokens.

    Args:
        keys: $\sum_t k_t \omega_t^\top$.
        values: $\sum_t \omega_t v_t^\top$.
        count: number of tokens.
    """

    keys: Float[Tensor, "*batch heads dim_head memory"]
    values: Float[Tensor, "*batch heads memory dim_head"]
    count: Float[Tensor, "*batch"]

    def __add__(self, other: "LunaSums") -> "LunaSums":
        """The sums over both pasts: for given tokens it is exact."""
        return LunaSums(
            self.keys + other.keys, self.values + other.values, self.count + other.count
        )

    def packed(self) -> Float[Tensor, "*batch memory dim_model"]:
        """What the memory holds: the mean of weighted values, of all heads side by side."""
        count = self.count.clamp(min=1)[..., None, None, None]
        return (self.values / count).transpose(-3, -2).flatten(-2)


class CausalLunaAttention(nn.Module):
    r"""Each token asks a memory that has packed itself and the tokens ahead of it.

    For a head of width d and the memory p,

    $$\omega_t = \log_2(1 + 2^{s_t}), \qquad s_t = p_q\, c_t^\top / \sqrt d, \qquad
      K_t = K_{t-1} + k_t \omega_t^\top, \qquad V_t = V_{t-1} + \omega_t v_t^\top$$
    $$a_t = \mathrm{softmax}(q_t K_t / (t \sqrt d)), \qquad o_t = W_o (a_t V_t / t) + b_o$$

    where c is the pack's key of a token. K and V are sums of functions of single tokens: they
    stream, and merge exactly.

    Args:
        dim_model: width D.
        num_heads: number of heads.
        tied: whether keys are the values too.

    Source: Ma et al., *Luna: Linear Unified Nested Attention*, NeurIPS 2021, section 3.4.

    Example:
        >>> attention = CausalLunaAttention(dim_model=16, num_heads=4)
        >>> x, memory = torch.randn(2, 100, 16), torch.randn(8, 16)
        >>> out, sums = attention(x, memory)
        >>> out.shape, sums.keys.shape
        (torch.Size([2, 100, 16]), torch.Size([2, 4, 4, 8]))
    """

    def __init__(self, dim_model: int, num_heads: int, tied: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or dim_model % num_heads:
            raise InputError(f"dim_model={dim_model} does not split into num_heads={num_heads}")
        self.num_heads = num_heads
        self.scale = (dim_model // num_heads) ** -0.5
        self.pack_query, self.pack_key = (nn.Linear(dim_model, dim_model) for _ in range(2))
        self.query, self.key = (nn.Linear(dim_model, dim_model) for _ in range(2))
        self.value = None if tied else nn.Linear(dim_model, dim_model)
        self.out = nn.Linear(dim_model, dim_model)

    def nothing(self, batch_size: int, memory: Float[Tensor, "*one memory dim_model"]) -> LunaSums:
        """The sums over no tokens."""
        width, size = memory.shape[-1] // self.num_heads, memory.shape[-2]
        keys = memory.new_zeros(batch_size, self.num_heads, width, size)
        return LunaSums(keys, keys.mT.contiguous(), memory.new_zeros(batch_size))

    def forward(
        self,
        x: Float[Tensor, "batch length dim_model"],
        memory: Float[Tensor, "*one memory dim_model"],
        mask: Bool[Tensor, "batch length"] | None = None,
        past: LunaSums | None = None,
    ) -> tuple[Float[Tensor, "batch length dim_model"], LunaSums]:
        """(outputs, sums over the past and these tokens).

        Args:
            x: tokens.
            memory: one for all, or one for each sequence.
            mask: True where a token is real; padding adds nothing.
            past: sums over the tokens ahead of these.
        """
        _, outs, sums = self._scan(x, memory, mask, past)
        return self.out(join_heads(torch.cat(outs, dim=2))), sums

    def unpack_weights(
        self, x: Float[Tensor, "batch length dim_model"], memory: Float[Tensor, "*one memory dim"]
    ) -> Float[Tensor, "batch heads length memory"]:
        """How much each token attends to each memory vector, $a_t$."""
        weights, _, _ = self._scan(x, memory, None, None)
        return torch.cat(weights, dim=2)

    def pack_weights(
        self,
        x: Float[Tensor, "batch length dim_model"],
        memory: Float[Tensor, "*one memory dim_model"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch heads memory length"]:
        r"""The share $\omega_t / \sum_s \omega_s$ of each token in what a memory packs."""
        omega = self._omega(x, memory, mask).mT
        return omega / omega.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(omega.dtype).tiny)

    def read(
        self, x: Float[Tensor, "batch length dim_model"], sums: LunaSums
    ) -> Float[Tensor, "batch length dim_model"]:
        """What tokens take from a past, to which they do not belong themselves."""
        count = sums.count.clamp(min=1)[:, None, None, None]
        q = split_heads(self.query(x), self.num_heads)
        a = ((q @ sums.keys) * (self.scale / count)).softmax(dim=-1)
        return self.out(join_heads(a @ sums.values / count))

    def _scan(
        self, x: Tensor, memory: Tensor, mask: Tensor | None, past: LunaSums | None
    ) -> tuple[list[Tensor], list[Tensor], LunaSums]:
        """(aₜ, aₜ Vₜ / t) of all tokens, chunk by chunk, and the sums."""
        sums = self.nothing(len(x), memory) if past is None else past
        real = torch.ones_like(x[..., 0]) if mask is None else mask.to(x.dtype)
        weights, outs = [], []
        for start in range(0, max(1, x.shape[1]), _CHUNK):
            window = slice(start, start + _CHUNK)
            part, part_real = x[:, window], real[:, window]
            omega = self._omega(part, memory, part_real.bool())
            q, k = (split_heads(z(part), self.num_heads) for z in (self.query, self.key))
            v = k if self.value is None else split_heads(self.value(part), self.num_heads)
            count = sums.count[:, None] + part_real.cumsum(dim=1)
            t = count.clamp(min=1)[:, None, :, None]
            # qₜ Kₜ = qₜ K₀ + Σ over s ≤ t of (qₜ · kₛ) ωₛ, and aₜ Vₜ likewise.
            scores = q @ sums.keys + (q @ k.mT).tril() @ omega
            a = (scores * (self.scale / t)).softmax(dim=-1)
            weights.append(a)
            outs.append((a @ sums.values + (a @ omega.mT).tril() @ v) / t)
            sums = sums + LunaSums(k.mT @ omega, omega.mT @ v, part_real.sum(dim=1))
        return weights, outs, sums

    def _omega(
        self, x: Tensor, memory: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "batch heads length memory"]:
        """How strongly each memory vector takes in each token; 0 at padding."""
        asked = split_heads(self.pack_query(memory), self.num_heads)
        c = split_heads(self.pack_key(x), self.num_heads)
        omega = _softplus2((c @ asked.mT) * self.scale)
        return omega if mask is None else omega.masked_fill(~mask[:, None, :, None], 0.0)


class CausalLunaLayer(nn.Module):
    r"""$x \leftarrow \mathrm{LN}(x + \mathrm{CausalLunaAttention}(x, p))$, then
    $x \leftarrow \mathrm{LN}(x + \mathrm{FF}(x))$.

    Args:
        dim_model: width D.
        num_heads: number of heads.
        dim_feedforward: hidden width of the feed-forward layer.
        tied: whether keys are the values too.
        dropout: rate after the attention and the feed-forward layer.
    """

    def __init__(
        self, dim_model: int, num_heads: int, dim_feedforward: int, tied: bool, dropout: float
    ) -> None:
        super().__init__()
        self.attention = CausalLunaAttention(dim_model, num_heads, tied)
        self.norm_attention = nn.LayerNorm(dim_model)
        self.norm_feedforward = nn.LayerNorm(dim_model)
        self.expand = nn.Linear(dim_model, dim_feedforward)
        self.contract = nn.Linear(dim_feedforward, dim_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim_model"],
        memory: Float[Tensor, "*one memory dim_model"],
        mask: Bool[Tensor, "batch length"],
        past: LunaSums,
    ) -> tuple[Float[Tensor, "batch length dim_model"], LunaSums]:
        """(x after the layer, sums over the past and these tokens)."""
        a, sums = self.attention(x, memory, mask, past)
        return self._after_attention(x, a), sums

    def read(
        self, x: Float[Tensor, "batch length dim_model"], sums: LunaSums
    ) -> Float[Tensor, "batch length dim_model"]:
        """x after the layer, where it asks a past to which it does not belong itself."""
        return self._after_attention(x, self.attention.read(x, sums))

    def _after_attention(self, x: Tensor, a: Tensor) -> Tensor:
        x = self.norm_attention(x + self.dropout(a))
        hidden = F.gelu(self.expand(x))
        return self.norm_feedforward(x + self.dropout(self.contract(hidden)))


def _softplus2(s: Tensor) -> Tensor:
    """log₂(1 + 2ˢ)."""
    log2 = 0.6931471805599453
    return F.softplus(s * log2) / log2
