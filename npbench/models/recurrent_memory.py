"""RMT and Memformer: a memory goes through the segments of a sequence, one after another."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbench.blocks.layers import LayerConfig
from npbench.blocks.memory_transformer import MemoryTokenLayer
from npbench.blocks.segments import GatedWriter, ReadingLayer, last_segments_together
from npbench.blocks.tokens import Encoded, MemoryLayer, TokenEmbedding
from npbench.errors import InputError
from npbench.models.contracts.classifier import SequenceClassifier, view_of
from npbench.models.contracts.memory import MemoryView
from npbench.models.contracts.process import records_arguments


class _SegmentRecurrent(SequenceClassifier):
    r"""A classifier whose memory is all that one segment hands on to the next.

    $$p_s = f(p_{s-1}, \mathrm{segment}_s), \qquad \mathrm{logits} = W\, \mathrm{mean}(p_S) + b$$

    A subclass says what f is. Gradients pass through the last `num_gradient_segments` segments, and
    training keeps nothing of those ahead of them.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        padding_idx: int,
        config: LayerConfig,
        num_memory: int,
        segment_length: int,
        num_gradient_segments: int,
    ) -> None:
        super().__init__(vocab_size, num_classes, padding_idx)
        if segment_length < 1 or num_gradient_segments < 1:
            raise InputError(
                f"segment_length={segment_length} and num_gradient_segments="
                f"{num_gradient_segments} must be 1 or more"
            )
        self.segment_length = segment_length
        self.num_gradient_segments = num_gradient_segments
        self.embed = TokenEmbedding(
            vocab_size, config.dim_model, segment_length, dropout=config.dropout
        )
        self.memory = nn.Parameter(torch.randn(num_memory, config.dim_model))
        self.head = nn.Linear(config.dim_model, num_classes)

    @abstractmethod
    def _after_segment(self, encoded: Encoded) -> Float[Tensor, "batch memory dim_model"]:
        """The memory after a segment."""

    @abstractmethod
    def _layers_of_segment(self, encoded: Encoded) -> Iterator[MemoryView]:
        """The memory of each layer in a segment."""

    def _logits(self, tokens: Tensor, mask: Tensor) -> Float[Tensor, "batch classes"]:
        memory = self.memory.expand(len(tokens), -1, -1)
        segments = self._segments(tokens, mask)
        for number, (tokens, mask) in enumerate(segments):
            passes = number >= len(segments) - self.num_gradient_segments
            with nullcontext() if passes else torch.no_grad():
                memory = self._absorbed(memory, tokens, mask)
        return self.head(memory.mean(dim=1))

    def _memory_layers(self, tokens: Tensor, mask: Tensor) -> Iterator[MemoryView]:
        """Those of the last segment."""
        memory = self.memory.expand(len(tokens), -1, -1)
        *before, (tokens, mask) = self._segments(tokens, mask)
        for segment in before:
            memory = self._absorbed(memory, *segment)
        yield from self._layers_of_segment(self.embed(tokens, mask)._replace(memory=memory))

    def _absorbed(
        self,
        memory: Float[Tensor, "batch memory dim_model"],
        tokens: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch memory dim_model"]:
        """The memory after one more segment; of padding alone it stays as it is."""
        new = self._after_segment(self.embed(tokens, mask)._replace(memory=memory))
        return new.where(mask.any(dim=1)[:, None, None], memory)

    def _segments(self, tokens: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(tokens, mask) of one segment after another."""
        tokens, mask = last_segments_together(tokens, mask, self.segment_length)
        size = self.segment_length
        return list(zip(tokens.split(size, dim=1), mask.split(size, dim=1)))


class RMT(_SegmentRecurrent):
    r"""Recurrent Memory Transformer: m memory tokens stand before each segment.

    $$[p_s; X] = \mathrm{TransformerLayer}_K(… \mathrm{TransformerLayer}_1([p_{s-1};
      \mathrm{segment}_s]))$$

    The memory after the last segment is classified. State and cost of a segment do not depend on
    how many there were. Segments have an order: the state does not merge.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes.
        dim_model: width D.
        num_layers: number K of layers.
        num_memory: number m of memory vectors.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the feed-forward layers.
        segment_length: number of tokens of a segment.
        num_gradient_segments: number of segments, the last ones, that gradients pass through.
        dropout: rate after the embedding, attentions and feed-forward layers.
        padding_idx: the token that is padding where no mask is given.

    Source: Bulatov, Kuratov and Burtsev, *Recurrent Memory Transformer*, NeurIPS 2022.

    Example:
        >>> model = RMT(vocab_size=17, num_classes=10, dim_model=32, segment_length=128)
        >>> model(torch.randint(17, (2, 500))).shape
        torch.Size([2, 10])
    """

    @records_arguments
    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        dim_model: int = 128,
        num_layers: int = 4,
        num_memory: int = 10,
        num_heads: int = 4,
        dim_feedforward: int = 512,
        segment_length: int = 512,
        num_gradient_segments: int = 4,
        dropout: float = 0.0,
        padding_idx: int = 0,
    ) -> None:
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout)
        super().__init__(
            vocab_size, num_classes, padding_idx, config, num_memory, segment_length,
            num_gradient_segments,
        )  # fmt: skip
        self.layers = nn.ModuleList(MemoryTokenLayer(config) for _ in range(num_layers))

    def _after_segment(self, encoded: Encoded) -> Float[Tensor, "batch memory dim_model"]:
        for layer in self.layers:
            encoded = layer(encoded)
        return encoded.memory

    def _layers_of_segment(self, encoded: Encoded) -> Iterator[MemoryView]:
        for layer in cast(Iterable[MemoryLayer], self.layers):
            looked_at, encoded = layer.looked_at(encoded), layer(encoded)
            yield view_of(looked_at, encoded.memory)


class Memformer(_SegmentRecurrent):
    r"""Memformer: a segment asks the memory in every layer, and is written into it behind a gate.

    $$X_i = \mathrm{TransformerLayer}_i(X_{i-1} \to [p_{s-1}; X_{i-1}]), \qquad
      p_s = \mathrm{GatedWriter}(p_{s-1}, X_K)$$

    The memory after the last segment is classified. Its slots do not see each other, and therefore
    do not mix. This is a small encoder of that kind, without the memory replay of the paper.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes.
        dim_model: width D.
        num_layers: number K of layers.
        num_memory: number m of slots.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the feed-forward layers.
        segment_length: number of tokens of a segment.
        num_gradient_segments: number of segments, the last ones, that gradients pass through.
        dropout: rate after the embedding, attentions and feed-forward layers.
        padding_idx: the token that is padding where no mask is given.

    Source: Wu et al., *Memformer: A Memory-Augmented Transformer for Sequence Modeling*, 2020.

    Example:
        >>> model = Memformer(vocab_size=17, num_classes=10, dim_model=32, segment_length=128)
        >>> model(torch.randint(17, (2, 500))).shape
        torch.Size([2, 10])
    """

    @records_arguments
    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        dim_model: int = 128,
        num_layers: int = 4,
        num_memory: int = 10,
        num_heads: int = 4,
        dim_feedforward: int = 512,
        segment_length: int = 512,
        num_gradient_segments: int = 4,
        dropout: float = 0.0,
        padding_idx: int = 0,
    ) -> None:
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout)
        super().__init__(
            vocab_size, num_classes, padding_idx, config, num_memory, segment_length,
            num_gradient_segments,
        )  # fmt: skip
        self.layers = nn.ModuleList(ReadingLayer(config) for _ in range(num_layers))
        self.write = GatedWriter(config, num_memory)

    def _after_segment(self, encoded: Encoded) -> Float[Tensor, "batch memory dim_model"]:
        return self.write(self._encoded(encoded))

    def _layers_of_segment(self, encoded: Encoded) -> Iterator[MemoryView]:
        encoded = self._encoded(encoded)
        yield view_of(self.write.looked_at(encoded), self.write(encoded))

    def _encoded(self, encoded: Encoded) -> Encoded:
        for layer in self.layers:
            encoded = layer(encoded)
        return encoded
