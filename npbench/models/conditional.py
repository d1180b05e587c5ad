"""Conditional neural processes, CNP and CANP, and the encoders that their family shares."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.distributions import Distribution

from npbench.attention import attend, join_heads, split_heads
from npbench.attention.precision import at_least_float32
from npbench.blocks import MLP
from npbench.errors import InputError
from npbench.likelihoods import CategoricalHead, GaussianHead, Likelihood, target_head
from npbench.models.contracts.merging import MergingProcess
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import NeuralProcess, State, merge_all, records_arguments
from npbench.models.contracts.saved_state import SavedState


@dataclass(frozen=True, eq=False)
class CNPState(SavedState):
    """The running mean of the points' encodings, and their number; its size is constant."""

    mean: Float[Tensor, "batch paths dim_hidden"]
    count: Integer[Tensor, "batch 1 1"]

    def merge(self, other: "CNPState") -> "CNPState":
        """The state of the union of two contexts.

        Raises:
            InputError: if the two are states of different numbers of tasks.
        """
        if self.batch_size != other.batch_size:
            raise InputError(
                f"states of {self.batch_size} and {other.batch_size} tasks do not merge"
            )
        count = self.count + other.count
        share = other.count.to(self.mean.dtype) / count.clamp(min=1)
        mean = torch.lerp(self.mean, other.mean, share)
        return CNPState(mean, count, ledger=self._merged_ledger(other))


class PooledEncoder(nn.Module):
    r"""Two summaries of the context: $\mathrm{post}_j(\mathrm{mean}_n\,
    \mathrm{pre}_j([x_n, y_n]))$, $j = 1, 2$. The state is the two means: constant in N.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_hidden: width of all MLPs, and of the first summary.
        dim_summary: width of the second summary.
        pre_depth: linear layers before the mean.
        post_depth: linear layers after it.
    """

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_hidden: int,
        dim_summary: int,
        pre_depth: int,
        post_depth: int,
    ) -> None:
        super().__init__()
        self.pre = nn.ModuleList(
            MLP(dim_x + dim_y, dim_hidden, dim_hidden, pre_depth) for _ in range(2)
        )
        self.post = nn.ModuleList(
            MLP(dim_hidden, dim_hidden, dim_out, post_depth)
            for dim_out in (dim_hidden, dim_summary)
        )

    def condition(self, chunks: Iterable[Points]) -> CNPState:
        return merge_all(map(self._absorb, chunks))

    def update(self, state: CNPState, points: Points) -> CNPState:
        return state.merge(self._absorb(points))

    def summarise_for(
        self, state: CNPState, xt: Float[Tensor, "batch target dim_x"]
    ) -> Float[Tensor, "batch target dim_hidden"]:
        """The first summary, for every target."""
        return self.post[0](state.mean[:, 0])[:, None].expand(-1, xt.shape[1], -1)

    def summarise(self, state: CNPState) -> Float[Tensor, "batch dim_summary"]:
        """The second summary."""
        return self.post[1](state.mean[:, 1])

    def _absorb(self, points: Points) -> CNPState:
        encodings = at_least_float32(torch.stack([pre(points.xy) for pre in self.pre], dim=1))
        if points.mask is not None:
            encodings = encodings * points.mask[:, None, :, None]
        count = points.count[:, None, None]
        return CNPState(encodings.sum(dim=2) / count.clamp(min=1), count)


@dataclass(frozen=True, eq=False)
class CANPState(State):
    """The context, the keys and values of its points, and a summary; it grows with the context."""

    points: Points
    keys: Float[Tensor, "batch points dim_hidden"]
    values: Float[Tensor, "batch points dim_hidden"]
    summary: Float[Tensor, "batch dim_summary"]


class AttentiveEncoder(nn.Module):
    r"""Attention in place of both means:

    $$r_t = \mathrm{Attn}(\mathrm{qk}(x_t), \mathrm{qk}(x_{1:N}), v_{1:N}), \qquad
      v = \mathrm{SelfAttn}(\mathrm{value}([x, y]))$$

    beside $\mathrm{post}(\mathrm{mean}\, \mathrm{SelfAttn}(\mathrm{ReLU}(\mathrm{pre}([x, y]))))$.
    The arguments are those of `PooledEncoder`, and the depths of the MLPs for values and for
    queries and keys. New points change every value, so that the state keeps the context; memory is
    $N^2$ to condition and to update, $NM$ to query.
    """

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_hidden: int,
        dim_summary: int,
        pre_depth: int,
        post_depth: int,
        value_depth: int,
        query_depth: int,
    ) -> None:
        super().__init__()
        if pre_depth < 3 or value_depth < 3:
            raise InputError(
                f"pre_depth={pre_depth} and value_depth={value_depth} must be 3 or more, of which "
                f"self-attention takes the place of 2"
            )
        self.embed_x = MLP(dim_x, dim_hidden, dim_hidden, query_depth)
        self.embed_values = MLP(dim_x + dim_y, dim_hidden, dim_hidden, value_depth - 2)
        self.mix_values = PostNormAttention(dim_hidden)
        self.attend = PostNormAttention(dim_hidden)
        self.pre = MLP(dim_x + dim_y, dim_hidden, dim_hidden, pre_depth - 2)
        self.mix = PostNormAttention(dim_hidden)
        self.post = MLP(dim_hidden, dim_hidden, dim_summary, post_depth)

    def condition(self, chunks: Iterable[Points]) -> CANPState:
        points = Points.concatenate(chunks)
        mask = points.attention_mask
        values = self.embed_values(points.xy)
        pooled = self.pre(points.xy).relu()
        pooled = self.mix(pooled, pooled, pooled, mask)
        if mask is not None:
            pooled = pooled * mask.mT
        pooled = pooled.sum(dim=1) / points.count[:, None].clamp(min=1)
        return CANPState(
            points,
            keys=self.embed_x(points.x),
            values=self.mix_values(values, values, values, mask),
            summary=self.post(pooled),
        )

    def update(self, state: CANPState, points: Points) -> CANPState:
        return self.condition([state.points, points])

    def summarise_for(
        self, state: CANPState, xt: Float[Tensor, "batch target dim_x"]
    ) -> Float[Tensor, "batch target dim_hidden"]:
        """What the context says to each target."""
        mask = state.points.attention_mask
        return self.attend(self.embed_x(xt), state.keys, state.values, mask)

    def summarise(self, state: CANPState) -> Float[Tensor, "batch dim_summary"]:
        """The summary of the context."""
        return state.summary


class PostNormAttention(nn.Module):
    r"""$\mathrm{LN}(h + \mathrm{ReLU}(W_o h + b_o))$ with $h = \mathrm{LN}(q + \mathrm{Attn}(q, k,
    v))$, 8 heads, and scores divided by the root of the whole width (not of a head's), as in the
    official code."""

    def __init__(self, dim_hidden: int, num_heads: int = 8) -> None:
        super().__init__()
        if dim_hidden % num_heads:
            raise InputError(f"dim_hidden={dim_hidden} does not split into {num_heads} heads")
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(dim_hidden, dim_hidden, bias=False) for _ in range(3)
        )
        self.to_out = nn.Linear(dim_hidden, dim_hidden)
        self.norm_attention = nn.LayerNorm(dim_hidden)
        self.norm_out = nn.LayerNorm(dim_hidden)

    def forward(
        self,
        queries: Float[Tensor, "batch queries dim_hidden"],
        keys: Float[Tensor, "batch points dim_hidden"],
        values: Float[Tensor, "batch points dim_hidden"],
        mask: Bool[Tensor, "batch 1 points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_hidden"]:
        q = self.to_q(queries)
        heads = (split_heads(z, self.num_heads) for z in (q, self.to_k(keys), self.to_v(values)))
        out = attend(*heads, mask, scale=q.shape[-1] ** -0.5)
        h = self.norm_attention(q + join_heads(out))
        return self.norm_out(h + F.relu(self.to_out(h)))


class ConditionalProcess(NeuralProcess):
    r"""$y_t \sim \mathcal{N}(\mu, \sigma^2)$ with $[\mu, \sigma] = \mathrm{head}([r_t, s, x_t])$,
    where the encoder makes $r_t$ and s of the context."""

    encoder: PooledEncoder | AttentiveEncoder
    head: GaussianHead | CategoricalHead

    def _condition(self, chunks: Iterator[Points]) -> State:
        return self.encoder.condition(chunks)

    def _update(self, state: State, points: Points) -> State:
        return self.encoder.update(state, points)

    def _query(self, state: State, xt: Tensor) -> Distribution:
        return self.head(torch.cat([represent(self.encoder, state, xt), xt], dim=-1))


def represent(
    encoder: PooledEncoder | AttentiveEncoder, state: State, xt: Tensor
) -> Float[Tensor, "batch target dim_representation"]:
    """$[r_t, s]$: all that the context says to each target."""
    summary = encoder.summarise(state)[:, None].expand(-1, xt.shape[1], -1)
    return torch.cat([encoder.summarise_for(state, xt), summary], dim=-1)


class CNP(MergingProcess, ConditionalProcess):
    r"""Conditional Neural Process.

    $$y_t \sim \mathcal{N}(\mu, \sigma^2), \qquad [\mu, \sigma] = \mathrm{head}([r, s, x_t])$$

    with two summaries r, s of the context (`PooledEncoder`). Its memory is constant in the context,
    like CMANP's; but every point weighs the same for every target, which is why it underfits.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_hidden: width of all MLPs.
        pre_depth: linear layers before the mean.
        post_depth: linear layers after it.
        decoder_depth: linear layers of the head.
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.

    Source: Garnelo et al., *Conditional Neural Processes*, ICML 2018; the variant with two encoders
    and the defaults are those of the paper's official code.

    Example:
        >>> model = CNP(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).mean.shape
        torch.Size([16, 10, 1])
    """

    state_class = CNPState

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_hidden: int = 128,
        pre_depth: int = 4,
        post_depth: int = 2,
        decoder_depth: int = 3,
        likelihood: Likelihood = "gaussian",
    ) -> None:
        super().__init__(dim_x, dim_y)
        self.encoder = PooledEncoder(dim_x, dim_y, dim_hidden, dim_hidden, pre_depth, post_depth)
        dim_in = 2 * dim_hidden + dim_x
        self.head = target_head(
            likelihood, dim_y, lambda n: MLP(dim_in, dim_hidden, n, decoder_depth), min_std=0.1
        )


class CANP(ConditionalProcess):
    r"""Conditional Attentive Neural Process.

    $$y_t \sim \mathcal{N}(\mu, \sigma^2), \qquad [\mu, \sigma] = \mathrm{head}([r_t, s, x_t])$$

    where $r_t$ attends to the context and s pools it (`AttentiveEncoder`).

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_hidden: width of all layers.
        value_depth: linear layers before the attention's values, 2 of them self-attention.
        query_depth: linear layers before its queries and keys.
        pre_depth: linear layers before the mean, 2 of them self-attention.
        post_depth: linear layers after it.
        decoder_depth: linear layers of the head.
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.

    Source: Kim et al., *Attentive Neural Processes*, ICLR 2019, without the latent path; as in the
    paper's official code.

    Example:
        >>> model = CANP(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).mean.shape
        torch.Size([16, 10, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_hidden: int = 128,
        value_depth: int = 4,
        query_depth: int = 2,
        pre_depth: int = 4,
        post_depth: int = 2,
        decoder_depth: int = 3,
        likelihood: Likelihood = "gaussian",
    ) -> None:
        super().__init__(dim_x, dim_y)
        self.encoder = AttentiveEncoder(
            dim_x,
            dim_y,
            dim_hidden,
            dim_summary=dim_hidden,
            pre_depth=pre_depth,
            post_depth=post_depth,
            value_depth=value_depth,
            query_depth=query_depth,
        )
        dim_in = 2 * dim_hidden + dim_x
        self.head = target_head(
            likelihood, dim_y, lambda n: MLP(dim_in, dim_hidden, n, decoder_depth), min_std=0.1
        )
