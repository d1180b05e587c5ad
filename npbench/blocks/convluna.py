"""ConvLuna: attention through a memory that meets the sequence behind a filter."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import attend, join_heads, split_heads
from npbench.attention.kernels import attention_log_weights
from npbench.blocks.tokens import Encoded, LookedAt
from npbench.errors import InputError

TemperatureOf = Literal["unit", "sqrt", "learn"]

# What the released code adds to variances.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class SequenceFilter:
    """How keys and values are filtered along the sequence before the memory meets them.

    Args:
        kernel: number of taps of the convolution, or positions of a window; 1 filters nothing.
        stride: step between windows. With a step of 1 a convolution keeps the length, and pads with
            zeros; otherwise nothing is padded, and ⌊(N − kernel) / stride⌋ + 1 rows are left.
        pool: take the maximum of each window in place of a convolution; nothing is padded.
        clear_padding: set keys and values of padding to 0 before the filter, so that what stands
            there reaches no real token.
        mask_windows: hide windows that reach into padding, so that a sequence does not depend on
            its batch. The released code hides nothing once a filter has changed the length.
    """

    kernel: int = 4
    stride: int = 1
    pool: bool = False
    clear_padding: bool = True
    mask_windows: bool = True

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.stride < 1:
            raise InputError(
                f"a filter has kernel={self.kernel} and stride={self.stride}, and takes 1 or more "
                f"of each"
            )

    @property
    def keeps_length(self) -> bool:
        return self.kernel == 1 or (self.stride == 1 and not self.pool)


@dataclass(frozen=True)
class ConvLunaConfig:
    """What all layers of a ConvLuna have in common.

    Args:
        dim_model: width D.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the feed-forward layers.
        filter: what comes before the memory.
        temperature_pack: T of the packing attention, whose scores are $q k^\\top / T$: "unit" is 1,
            "sqrt" the root of the width of a head, and "learn" is trained from 1.
        temperature_unpack: T of the unpacking attention.
        share: whether both attentions have the same projections.
        project_values: whether values are projections, and not what is attended to itself.
        dropout: rate within and after feed-forward layers.
    """

    dim_model: int
    num_heads: int
    dim_feedforward: int
    filter: SequenceFilter = SequenceFilter()
    temperature_pack: TemperatureOf = "learn"
    temperature_unpack: TemperatureOf = "unit"
    share: bool = True
    project_values: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.dim_model % self.num_heads:
            raise InputError(
                f"dim_model={self.dim_model} does not split into num_heads={self.num_heads}"
            )


class Temperature(nn.Module):
    """The T by which queries are divided; "learn" trains its logarithm, from 0."""

    log: Tensor

    def __init__(self, kind: TemperatureOf, dim_head: int) -> None:
        super().__init__()
        if kind not in ("unit", "sqrt", "learn"):
            raise InputError(f'temperature={kind!r} must be "unit", "sqrt" or "learn"')
        log = torch.full((1,), float(dim_head)).log() / 2 if kind == "sqrt" else torch.zeros(1)
        if kind == "learn":
            self.log = nn.Parameter(log)
        else:
            self.register_buffer("log", log, persistent=False)

    def forward(self, q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return q / self.log.exp()


class ConvolutionFilter(nn.Module):
    """A convolution along the sequence, of one kernel a head, or the maximum of windows.

    Args:
        filter: which of them, and how.
        num_heads: number of heads.

    Example:
        >>> filtered = ConvolutionFilter(SequenceFilter(kernel=4, stride=2), num_heads=3)
        >>> filtered(torch.randn(2, 3, 100, 8)).shape
        torch.Size([2, 3, 49, 8])
    """

    def __init__(self, filter: SequenceFilter, num_heads: int) -> None:
        super().__init__()
        self.filter = filter
        self.taps = None
        if filter.kernel > 1 and not filter.pool:
            bound = filter.kernel**-0.5
            self.taps = nn.Parameter(torch.empty(num_heads, filter.kernel).uniform_(-bound, bound))

    def forward(
        self, z: Float[Tensor, "batch heads length dim_head"]
    ) -> Float[Tensor, "batch heads filtered dim_head"]:
        kernel, stride = self.filter.kernel, self.filter.stride
        if kernel == 1:
            return z
        if not self.filter.keeps_length and z.shape[2] < kernel:
            return z[:, :, :0]
        if self.taps is None:
            return F.max_pool2d(z, (kernel, 1), (stride, 1))
        if self.filter.keeps_length:
            before = (kernel - 1) // 2
            z = F.pad(z, (0, 0, before, kernel - 1 - before))
        weight = self.taps[:, None, :, None].to(z.dtype)
        return F.conv2d(z, weight, stride=(stride, 1), groups=len(weight))

    def mask(self, mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch filtered"] | None:
        """Which filtered rows the memory may see."""
        if self.filter.keeps_length:
            return mask
        if not self.filter.mask_windows:
            return None
        if mask.shape[1] < self.filter.kernel:
            return mask[:, :0]
        return mask.unfold(1, self.filter.kernel, self.filter.stride).all(dim=-1)


class _Projections(nn.Module):
    """The linear maps of an attention; values may be what is attended to itself."""

    def __init__(self, config: ConvLunaConfig) -> None:
        super().__init__()
        width = config.dim_model
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width) if config.project_values else nn.Identity()
        self.out = nn.Linear(width, width)


class ConvLunaLayer(nn.Module):
    r"""A block of ConvLuna.

    With F the filter along the sequence, of keys and values alike,

    $$\mathrm{packed} = W_o\, \mathrm{softmax}(q\, F(k)^\top / T)\, F(v) + b_o, \qquad
      u = \mathrm{Attn}(x \to \mathrm{packed})$$
    $$x \leftarrow \mathrm{LN}(x + u), \qquad
      \mathrm{memory} \leftarrow \mathrm{LN}(\mathrm{memory} + \mathrm{packed}), \qquad
      x \leftarrow \mathrm{LN}(x + \mathrm{FF}(x))$$

    where u and FF(x) are 0 at padding. A kernel of 1, $T = \sqrt d$ in both attentions and shared
    projections, of values too, give the Luna of these authors.

    Args:
        config: the layers' common sizes.

    Source: Yorsh, Holeňa, Bojar and Herel, *On Difficulties of Attention Factorization through
    Shared Memory*, ICLR 2024 Tiny Papers, arXiv 2404.00798.

    Example:
        >>> layer = ConvLunaLayer(ConvLunaConfig(dim_model=16, num_heads=4, dim_feedforward=32))
        >>> x, memory = torch.randn(2, 100, 16), torch.randn(2, 8, 16)
        >>> layer(Encoded(x, torch.ones(2, 100, dtype=torch.bool), memory)).x.shape
        torch.Size([2, 100, 16])
    """

    def __init__(self, config: ConvLunaConfig) -> None:
        super().__init__()
        width, dim_head = config.dim_model, config.dim_model // config.num_heads
        self.num_heads = config.num_heads
        self.pack_projections = _Projections(config)
        self.unpack_projections = None if config.share else _Projections(config)
        self.pack_temperature = Temperature(config.temperature_pack, dim_head)
        self.unpack_temperature = Temperature(config.temperature_unpack, dim_head)
        self.filter = ConvolutionFilter(config.filter, config.num_heads)
        self.norm_attention = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_memory = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_feedforward = nn.LayerNorm(width, eps=NORM_EPS)
        self.expand = nn.Linear(width, config.dim_feedforward)
        self.contract = nn.Linear(config.dim_feedforward, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Encoded) -> Encoded:
        x, mask, memory, memory_mask = encoded
        padding = ~mask[..., None]
        packed = self.pack(encoded)
        unpacked = self.unpack(x, packed).masked_fill(padding, 0.0)
        x = self.norm_attention(x + unpacked)
        memory = self.norm_memory(memory + packed)
        hidden = self.dropout(F.gelu(self.expand(x)))
        hidden = self.dropout(self.contract(hidden)).masked_fill(padding, 0.0)
        return Encoded(self.norm_feedforward(x + hidden), mask, memory, memory_mask)

    def pack(self, encoded: Encoded) -> Float[Tensor, "batch memory dim_model"]:
        """What the memory takes from the filtered sequence."""
        q, k, mask = self._pack_queries_keys(encoded)
        v = self._filtered(self.pack_projections.value(encoded.x), encoded.mask)
        return self.pack_projections.out(join_heads(attend(q, k, v, mask, scale=1.0)))

    def unpack(
        self,
        x: Float[Tensor, "batch length dim_model"],
        packed: Float[Tensor, "batch memory dim_model"],
    ) -> Float[Tensor, "batch length dim_model"]:
        """What the sequence takes from what was packed."""
        maps = self.unpack_projections or self.pack_projections
        q, k, v = (
            split_heads(z, self.num_heads)
            for z in (maps.query(x), maps.key(packed), maps.value(packed))
        )
        return maps.out(join_heads(attend(self.unpack_temperature(q), k, v, scale=1.0)))

    def pack_scores(self, encoded: Encoded) -> Float[Tensor, "batch heads memory filtered"]:
        """The scores of the memory's attention to the filtered sequence, before any mask."""
        q, k, _ = self._pack_queries_keys(encoded)
        return q @ k.mT

    def looked_at(self, encoded: Encoded) -> LookedAt:
        """See `MemoryLayer`; the keys are filtered ones."""
        q, k, mask = self._pack_queries_keys(encoded)
        return self.pack(encoded), attention_log_weights(q, k, mask=mask, scale=1.0)

    def _pack_queries_keys(self, encoded: Encoded) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries over T, filtered keys, and which of the keys are seen."""
        x, mask, memory, _ = encoded
        q = split_heads(self.pack_projections.query(memory), self.num_heads)
        seen = self.filter.mask(mask)
        k = self._filtered(self.pack_projections.key(x), mask)
        return self.pack_temperature(q), k, None if seen is None else seen[:, None]

    def _filtered(
        self, z: Float[Tensor, "batch length dim_model"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch heads filtered dim_head"]:
        if self.filter.filter.clear_padding:
            z = z.masked_fill(~mask[..., None], 0.0)
        return self.filter(split_heads(z, self.num_heads))
