"""The attention states of all prefixes of a sequence at once, in which events may fade."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbench.attention.state import AttentionState


def prefix_states(
    scores: Float[Tensor, "batch heads queries events"],
    values: Float[Tensor, "batch heads events dim_head"],
    times: Float[Tensor, "batch events"],
    rates: Float[Tensor, "heads queries"] | None = None,
    chunk_size: int = 32,
) -> AttentionState:
    r"""What fixed queries keep of the first event, of the first two, …, of all n.

    At the time of event i, event j has the score $s_j - r (t_i - t_j)$: it fades at rate r.

    $$\mathrm{lse}_i = \log \sum_{j \le i} e^{s_j - r (t_i - t_j)}, \qquad
      \mathrm{out}_i = \sum_{j \le i} e^{s_j - r (t_i - t_j) - \mathrm{lse}_i}\, v_j$$

    The scan takes chunks of c events: within a chunk one masked product gives the states of its
    prefixes, and the state of all earlier events is merged with each. It takes n / c steps, and
    memory for n·(c + dim_head) numbers for each sequence, head and query.

    Args:
        scores: $s_j$ of every query.
        values: $v_j$.
        times: of the events, which do not fall; in the unit of the rates.
        rates: r ≥ 0 of every query; by default nothing fades.
        chunk_size: c; changes no result.

    Returns:
        lse [batch, events, heads, queries] and out [batch, events, heads, queries, dim_head].
    """
    parts, before, until = [], None, times[:, :1]
    for s, v, t in zip(
        scores.split(chunk_size, dim=-1),
        values.split(chunk_size, dim=-2),
        times.split(chunk_size, dim=-1),
    ):
        index = torch.arange(t.shape[-1], device=t.device)
        state = _attend(s, v, t, t, rates, index <= index[:, None])
        if before is not None:
            state = faded(before, (t - until)[..., None, None], rates).merge(state)
        parts.append(state)
        before, until = state.map(lambda z: z[:, -1:]), t[:, -1:]
    return AttentionState(
        torch.cat([state.lse for state in parts], dim=1),
        torch.cat([state.out for state in parts], dim=1),
    )


def final_state(
    scores: Float[Tensor, "batch heads queries events"],
    values: Float[Tensor, "batch heads events dim_head"],
    times: Float[Tensor, "batch events"],
    rates: Float[Tensor, "heads queries"] | None,
    mask: Bool[Tensor, "batch events"],
) -> AttentionState:
    """The last of the `prefix_states`, of the real events: [batch, heads, queries, …]."""
    state = _attend(scores, values, times[:, -1:], times, rates, mask[:, None, None, None])
    return state.map(lambda z: z[:, 0])


def faded(
    state: AttentionState, after: Float[Tensor, "*batch 1 1"], rates: Tensor | None
) -> AttentionState:
    """A state as it is some time after, or at several times [batch, events, 1, 1] after."""
    fallen = torch.zeros_like(after) if rates is None else rates * after
    lse = state.lse - fallen.to(state.lse.dtype)
    return AttentionState(lse, state.out.expand(*lse.shape, -1))


def _attend(
    scores: Tensor,
    values: Tensor,
    now: Float[Tensor, "batch prefixes"],
    times: Tensor,
    rates: Tensor | None,
    visible: Bool[Tensor, "*batch #prefixes events"],
) -> AttentionState:
    """The states [batch, prefixes, heads, queries, …] of the events that are visible to each."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    with torch.autocast(scores.device.type, enabled=False):
        logits, values = scores.to(dtype)[:, :, :, None], values.to(dtype)
        if rates is not None:
            age = (now[:, :, None] - times[:, None]).to(dtype)
            logits = logits - rates[..., None, None] * age[:, None, None]
        # A softmax over −∞ alone would be NaN, in the gradient too, where nothing is visible.
        empty = ~visible.any(dim=-1)
        logits = logits.masked_fill(~(visible | empty[..., None]), -torch.inf)
        lse = logits.logsumexp(dim=-1).masked_fill(empty, -torch.inf)
        weights = logits.softmax(dim=-1).masked_fill(empty[..., None], 0.0)
        out = (weights.flatten(2, 3) @ values).unflatten(2, weights.shape[2:4])
    return AttentionState(lse.permute(0, 3, 1, 2), out.permute(0, 3, 1, 2, 4))
