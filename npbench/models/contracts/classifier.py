"""The contract of the classifiers of sequences of tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbench.blocks.tokens import Encoded, MemoryLayer, Readout, TokenEmbedding
from npbench.errors import InputError
from npbench.models.contracts.memory import MemoryView
from npbench.models.contracts.process import evaluating, one_line
from npbench.sequences import TokenSequences


class LayerMemory(NamedTuple):
    """The memory behind a layer, and how the layer's memory attended to what it packed."""

    vectors: Float[Tensor, "batch memory dim_model"]
    weights: Float[Tensor, "batch heads memory keys"]
    """These add up to 1 over keys, or are 0 where all keys are padding."""


class SequenceClassifier(nn.Module, ABC):
    """The class of a sequence of tokens: `model(tokens, mask)` gives logits.

    A model implements `_logits` and `_memories`; the public methods check what they are given
    first. Its `__init__` is decorated with `records_arguments`.

    Args:
        vocab_size: number of tokens, those for padding and the unknown included.
        num_classes: number of classes.
        padding_idx: the token that is padding where no mask is given.
    """

    hparams: dict[str, Any]

    def __init__(self, vocab_size: int, num_classes: int | None, padding_idx: int) -> None:
        super().__init__()
        if vocab_size < 1 or (num_classes is not None and num_classes < 1):
            raise InputError(
                f"vocab_size={vocab_size} and num_classes={num_classes} must be 1 or more"
            )
        if not 0 <= padding_idx < vocab_size:
            raise InputError(f"padding_idx={padding_idx} must be a token, 0 to {vocab_size - 1}")
        self.vocab_size = vocab_size
        self.num_classes = num_classes
        self.padding_idx = padding_idx

    def __repr__(self) -> str:
        return one_line(self)

    @abstractmethod
    def _logits(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch classes"]:
        """The logits of these sequences."""

    @abstractmethod
    def _memories(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Iterator[LayerMemory]:
        """The memory of each layer; nothing where the model has none."""

    def forward(
        self,
        tokens: Int[Tensor, "batch length"] | np.ndarray,
        mask: Bool[Tensor, "batch length"] | np.ndarray | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """The logits of the classes.

        Args:
            tokens: ids, from 0 to vocab_size − 1.
            mask: True where a token is real; by default, where it is not `padding_idx`.

        Raises:
            InputError: on unknown tokens, shapes that differ, and sequences that are too long.
        """
        return self._logits(*self._checked(tokens, mask))

    def loss(self, sequences: TokenSequences) -> Float[Tensor, ""]:
        """What training minimises: the cross-entropy per sequence.

        Raises:
            InputError: as `forward`; and on labels that are missing, or no class of the model.
        """
        logits = self(sequences.tokens, sequences.full_mask)
        return F.cross_entropy(logits, self.checked_labels(sequences))

    def memories(
        self,
        tokens: Int[Tensor, "batch length"] | np.ndarray,
        mask: Bool[Tensor, "batch length"] | np.ndarray | None = None,
    ) -> list[LayerMemory]:
        """The memory behind each layer and its attention, in evaluation mode and without gradients.

        A model without a memory has none: []. Arguments and errors are as of `forward`.
        """
        with evaluating(self):
            return list(self._memories(*self._checked(tokens, mask)))

    def memory_layers(self, batch: TokenSequences) -> list[MemoryView]:
        """The same of a batch, as `npbench.callbacks.MemoryDegradation` looks at it."""
        return [
            MemoryView(None, layer.vectors, layer.weights.log())
            for layer in self.memories(batch.tokens, batch.full_mask)
        ]

    def checked_labels(self, sequences: TokenSequences) -> Int[Tensor, "batch"]:
        """The labels of a batch.

        Raises:
            InputError: if they are missing, or no class of the model.
        """
        labels = sequences.labels
        if labels is None:
            raise InputError("these sequences have no labels to learn from; give some that do")
        if not torch.compiler.is_compiling() and len(labels):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= cast(int, self.num_classes):
                raise InputError(
                    f"labels go from {low} to {high}, the model's classes from 0 to "
                    f"{cast(int, self.num_classes) - 1}; set num_classes to those of the data"
                )
        return labels

    def _checked(self, tokens: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """Checked tokens and their mask."""
        device = next(self.parameters()).device
        tokens = tokens if isinstance(tokens, Tensor) else torch.as_tensor(tokens, device=device)
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise InputError(
                f"tokens have shape {list(tokens.shape)} and type {tokens.dtype}; expected ids "
                f"[batch, length]"
            )
        if mask is None:
            mask = tokens != self.padding_idx
        mask = mask if isinstance(mask, Tensor) else torch.as_tensor(mask, device=device)
        if mask.dtype != torch.bool or mask.shape != tokens.shape:
            raise InputError(
                f"the mask has shape {list(mask.shape)} and type {mask.dtype}; expected the shape "
                f"of the tokens, {list(tokens.shape)}, and bool"
            )
        if not torch.compiler.is_compiling() and tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.vocab_size:
                raise InputError(
                    f"tokens go from {low} to {high}, the model's from 0 to {self.vocab_size - 1}; "
                    f"set vocab_size to that of the data"
                )
        if not tokens.shape[1]:  # layers meet one row at least
            return F.pad(tokens.long(), (0, 1), value=self.padding_idx), F.pad(mask, (0, 1))
        return tokens.long(), mask


class EncoderClassifier(SequenceClassifier):
    """A classifier that embeds tokens, sends them through layers, and reads one vector out.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes; None has no classifier, and gives the vectors read out.
        padding_idx: the token that is padding where no mask is given.
        embed: how sequences begin.
        layers: in order.
        num_repeats: how often all of them are gone through, with the same weights.
        memory: the memory's vectors to begin with; None has no memory.
        readout: which vector is classified; see `read_out`.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int | None,
        padding_idx: int,
        embed: TokenEmbedding,
        layers: Iterable[nn.Module],
        memory: Float[Tensor, "memory dim_model"] | None,
        readout: Readout,
        num_repeats: int = 1,
    ) -> None:
        super().__init__(vocab_size, num_classes, padding_idx)
        self.embed = embed
        self.layers = nn.ModuleList(layers)
        self.memory = None if memory is None else nn.Parameter(memory)
        self.readout = readout
        self.num_repeats = num_repeats

    @abstractmethod
    def _classify(self, encoded: Encoded) -> Float[Tensor, "batch classes"]:
        """The logits from what the last layer gives."""

    def embedded(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Encoded:
        """Tokens and memory before the first layer."""
        encoded = self.embed(tokens, mask)
        if self.memory is None:
            return encoded
        return encoded._replace(memory=self.memory.expand(len(tokens), -1, -1))

    def after_layers(self, encoded: Encoded) -> Encoded:
        """Tokens and memory that are classified, from what the last layer gives."""
        return encoded

    def encode(
        self,
        tokens: Int[Tensor, "batch length"] | np.ndarray,
        mask: Bool[Tensor, "batch length"] | np.ndarray | None = None,
    ) -> Encoded:
        """Tokens and memory that are classified; arguments and errors are as of `forward`."""
        return self._encoded(*self._checked(tokens, mask))

    def _encoded(self, tokens: Tensor, mask: Tensor) -> Encoded:
        encoded = self.embedded(tokens, mask)
        for layer in self._all_layers():
            encoded = layer(encoded)
        return self.after_layers(encoded)

    def _logits(self, tokens: Tensor, mask: Tensor) -> Float[Tensor, "batch classes"]:
        return self._classify(self._encoded(tokens, mask))

    def _memories(self, tokens: Tensor, mask: Tensor) -> Iterator[LayerMemory]:
        encoded = self.embedded(tokens, mask)
        if not encoded.memory.shape[1]:
            return
        for layer in self._all_layers():
            weights, encoded = layer.pack_weights(encoded), layer(encoded)
            yield LayerMemory(encoded.memory, weights)

    def _all_layers(self) -> Iterator[MemoryLayer]:
        return chain(*[cast(Iterable[MemoryLayer], self.layers)] * self.num_repeats)
