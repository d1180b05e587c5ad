"""Causal Luna: a classifier of streams of tokens, whose state is sums of constant size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributions import Categorical

from npbench.blocks.causal_luna import CausalLunaLayer, LunaSums
from npbench.blocks.tokens import TokenEmbedding
from npbench.errors import InputError
from npbench.models.contracts.classifier import SequenceClassifier, view_of
from npbench.models.contracts.memory import MemoryView
from npbench.models.contracts.process import State, records_arguments

# How many tokens `condition` absorbs at a time.
_CONDITION_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class CausalLunaState(State):
    """All that causal Luna keeps of its tokens, at a size that does not depend on their number.

    Args:
        sums: of all layers, [batch, layers, …].
        start: position of the first token.
        length: number of tokens.
    """

    sums: LunaSums
    start: Int[Tensor, "batch"]
    length: Int[Tensor, "batch"]

    @property
    def batch_size(self) -> int:
        return len(self.length)

    def of_layers(self) -> Iterator[LunaSums]:
        """The sums of each layer."""
        parts = (z.unbind(1) for z in self.sums.tensors())
        return (LunaSums(*part) for part in zip(*parts))


class CausalLuna(SequenceClassifier):
    r"""Luna whose memory has packed the tokens until now, as a state that streams.

        state = model.condition(tokens)         # a stream's beginning becomes a state
        state = model.update(state, tokens)     # exact: the same as conditioning on all of it
        dist  = model.query(state)              # over the classes, from all tokens until now

    Each token goes through causal layers, which see the tokens ahead of it through sums alone
    (`CausalLunaAttention`). A learned query goes through the layers as well, asks the sums, and is
    classified; it adds nothing to them. With one layer, the states of two segments of a stream
    merge exactly; with more they do not, since later layers see tokens through their past.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes.
        dim_model: width D, which is even.
        num_layers: number of layers.
        num_memory: number m of memory vectors.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the feed-forward layers.
        tied: whether keys are the values too.
        dropout: rate after the embedding, attentions and feed-forward layers.
        padding_idx: the token that is padding where no mask is given.

    Source: Ma et al., *Luna: Linear Unified Nested Attention*, NeurIPS 2021, section 3.4; the query
    that reads the state is ours.

    Example:
        >>> model = CausalLuna(vocab_size=17, num_classes=10, dim_model=32, num_memory=4).eval()
        >>> state = model.condition(torch.randint(1, 17, (2, 500)))
        >>> state = model.update(state, torch.randint(1, 17, (2, 1)))
        >>> model.query(state).probs.shape
        torch.Size([2, 10])
    """

    @records_arguments
    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        dim_model: int = 128,
        num_layers: int = 2,
        num_memory: int = 16,
        num_heads: int = 4,
        dim_feedforward: int = 512,
        tied: bool = False,
        dropout: float = 0.0,
        padding_idx: int = 0,
    ) -> None:
        super().__init__(vocab_size, num_classes, padding_idx)
        self.embed = TokenEmbedding(vocab_size, dim_model, max_length=None, dropout=dropout)
        self.memory = nn.Parameter(torch.randn(num_memory, dim_model))
        self.query_token = nn.Parameter(torch.randn(dim_model))
        self.layers = nn.ModuleList(
            CausalLunaLayer(dim_model, num_heads, dim_feedforward, tied, dropout)
            for _ in range(num_layers)
        )
        self.head = nn.Linear(dim_model, num_classes)

    def condition(
        self,
        tokens: Int[Tensor, "batch length"] | np.ndarray,
        mask: Bool[Tensor, "batch length"] | np.ndarray | None = None,
        start: int = 0,
    ) -> CausalLunaState:
        """The state of the first tokens of streams; there may be none.

        Args:
            tokens: ids.
            mask: True where a token is real; by default, where it is not `padding_idx`.
            start: position of the first token; of a segment that is to be merged with the one ahead
                of it, the number of tokens ahead.

        Raises:
            InputError: as `forward`.
        """
        tokens, mask = self._checked(tokens, mask)
        empty = [layer.attention.nothing(len(tokens), self.memory) for layer in self._layers()]
        none = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        return self._absorb(CausalLunaState(_stacked(empty), none + start, none), tokens, mask)

    def update(
        self,
        state: CausalLunaState,
        tokens: Int[Tensor, "batch length"] | np.ndarray,
        mask: Bool[Tensor, "batch length"] | np.ndarray | None = None,
    ) -> CausalLunaState:
        """The state after more tokens of the same streams: the same as conditioning on all.

        Raises:
            InputError: as `forward`; and if there are not as many streams.
        """
        tokens, mask = self._checked(tokens, mask)
        if len(tokens) != state.batch_size:
            raise InputError(
                f"there are tokens of {len(tokens)} streams, and the state is of "
                f"{state.batch_size}; give tokens of each"
            )
        return self._absorb(state, tokens, mask)

    def query(self, state: CausalLunaState) -> Categorical:
        """The distribution over the classes, of batch shape [B]."""
        return Categorical(logits=self._logits_of(state))

    def merge(self, *states: CausalLunaState) -> CausalLunaState:
        """The state of segments that follow each other, each conditioned from its own start.

        Raises:
            InputError: if the model has several layers, or a segment does not begin where the one
                ahead of it ends.
        """
        if len(self.layers) > 1:
            raise InputError(
                f"the states of a CausalLuna of {len(self.layers)} layers do not merge: later "
                f"layers see tokens through their past; update one state, or take num_layers=1"
            )
        if not states:
            raise InputError("there is no state to merge; give one or more")
        whole, *others = states
        for state in others:
            if not torch.equal(whole.start + whole.length, state.start):
                raise InputError(
                    f"a segment starts at {state.start.tolist()}, and the one ahead of it ends at "
                    f"{(whole.start + whole.length).tolist()}; condition it with that start"
                )
            whole = CausalLunaState(
                whole.sums + state.sums, whole.start, whole.length + state.length
            )
        return whole

    def _logits(self, tokens: Tensor, mask: Tensor) -> Float[Tensor, "batch classes"]:
        return self._logits_of(self.condition(tokens, mask))

    def _memory_layers(self, tokens: Tensor, mask: Tensor) -> Iterator[MemoryView]:
        x, sums = self.embed(tokens, mask).x, self.condition(tokens[:, :0]).of_layers()
        for layer, nothing in zip(self._layers(), sums, strict=True):
            weights = layer.attention.pack_weights(x, self.memory, mask)
            x, new = layer(x, self.memory, mask, nothing)
            yield view_of((new.packed(), weights.log()), new.packed())

    def _absorb(self, state: CausalLunaState, tokens: Tensor, mask: Tensor) -> CausalLunaState:
        for window in range(0, tokens.shape[1], _CONDITION_CHUNK):
            part, real = (z[:, window : window + _CONDITION_CHUNK] for z in (tokens, mask))
            x = self.embed(part, real, (state.start + state.length)[:, None]).x
            new = []
            for layer, past in zip(self._layers(), state.of_layers(), strict=True):
                x, sums = layer(x, self.memory, real, past)
                new.append(sums)
            state = CausalLunaState(_stacked(new), state.start, state.length + real.sum(dim=1))
        return state

    def _layers(self) -> Iterator[CausalLunaLayer]:
        return cast(Iterator[CausalLunaLayer], iter(self.layers))

    def _logits_of(self, state: CausalLunaState) -> Float[Tensor, "batch classes"]:
        x = self.query_token.expand(state.batch_size, 1, -1)
        for layer, sums in zip(self._layers(), state.of_layers(), strict=True):
            x = layer.read(x, sums)
        return self.head(x[:, 0])


def _stacked(sums: list[LunaSums]) -> LunaSums:
    """The sums of all layers as one, [batch, layers, …]."""
    fields: Any = zip(*(each.tensors() for each in sums))
    return LunaSums(*(torch.stack(each, dim=1) for each in fields))
