"""Transformer and Memory Transformer: classifiers of sequences, at a cost quadratic in length."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.blocks.layers import LayerConfig
from npbench.blocks.memory_transformer import BottleneckLayer, MemoryTokenLayer, TokenLayer
from npbench.blocks.tokens import Encoded, Readout, TokenEmbedding, has_cls, read_out
from npbench.errors import InputError
from npbench.models.contracts.classifier import EncoderClassifier
from npbench.models.contracts.process import records_arguments


class Transformer(EncoderClassifier):
    r"""The Transformer encoder as a classifier of sequences.

    $$X_0 = E[\mathrm{tokens}] + P, \qquad X_i = \mathrm{TransformerLayer}_i(X_{i-1} \to X_{i-1})$$

    Its defaults are those of Long Range Arena for ListOps.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes.
        max_length: number of learned positions; None takes sines and cosines, which have no limit.
        dim_model: width D.
        num_layers: number of layers.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the feed-forward layers.
        pre_norm: whether norms come before the attentions and feed-forward layers; a further norm
            then follows the last layer.
        readout: what is classified: "cls", a learned vector that the model puts before the tokens;
            "first", the first token; "mean" over real tokens; or "mean_with_padding".
        dropout: rate after the embedding, attentions and feed-forward layers.
        padding_idx: the token that is padding where no mask is given.

    Source: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017; Tay et al., *Long Range
    Arena*, ICLR 2021.

    Example:
        >>> model = Transformer(vocab_size=17, num_classes=10, dim_model=32, num_layers=1)
        >>> model(torch.randint(17, (2, 50))).shape
        torch.Size([2, 10])
    """

    @records_arguments
    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        max_length: int | None = None,
        dim_model: int = 512,
        num_layers: int = 4,
        num_heads: int = 8,
        dim_feedforward: int = 1024,
        pre_norm: bool = True,
        readout: Readout = "cls",
        dropout: float = 0.0,
        padding_idx: int = 0,
    ) -> None:
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout)
        super().__init__(
            vocab_size,
            num_classes,
            padding_idx,
            embed=TokenEmbedding(
                vocab_size, dim_model, max_length, cls=has_cls(readout), dropout=dropout
            ),
            layers=[TokenLayer(config, pre_norm) for _ in range(num_layers)],
            memory=None,
            readout=readout,
        )
        if readout.startswith("memory"):
            raise InputError(f"readout={readout!r} takes a model with a memory; take cls or mean")
        self.norm = nn.LayerNorm(dim_model) if pre_norm else nn.Identity()
        self.head = nn.Linear(dim_model, num_classes)

    def _classify(self, encoded: Encoded) -> Float[Tensor, "batch classes"]:
        return self.head(self.norm(read_out(encoded, self.readout)))


class MemoryTransformer(EncoderClassifier):
    r"""A Transformer with m learned memory vectors p before the sequence.

    With the variant "mem" they are further tokens, and all attend to all:
    $[p_i; X_i] = \mathrm{TransformerLayer}_i([p_{i-1}; X_{i-1}])$. With "bottleneck" the memory
    attends to all, and the sequence to the memory alone, at a cost linear in the length; see
    `BottleneckLayer`.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes.
        max_length: number of learned positions; None takes sines and cosines, which have no limit.
        dim_model: width D.
        num_layers: number of layers.
        num_memory: number m of memory vectors.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the feed-forward layers.
        variant: "mem" or "bottleneck".
        readout: what is classified: "mean" over real tokens, "memory", "cls", "first" or
            "mean_with_padding"; see `Transformer`.
        dropout: rate after the embedding, attentions and feed-forward layers.
        padding_idx: the token that is padding where no mask is given.

    Source: Burtsev et al., *Memory Transformer*, arXiv 2006.11527.

    Example:
        >>> model = MemoryTransformer(17, 10, dim_model=32, num_layers=1, variant="bottleneck")
        >>> model(torch.randint(17, (2, 50))).shape
        torch.Size([2, 10])
    """

    @records_arguments
    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        max_length: int | None = 2048,
        dim_model: int = 512,
        num_layers: int = 4,
        num_memory: int = 10,
        num_heads: int = 8,
        dim_feedforward: int = 1024,
        variant: Literal["mem", "bottleneck"] = "mem",
        readout: Readout = "mean",
        dropout: float = 0.0,
        padding_idx: int = 0,
    ) -> None:
        kinds = {"mem": MemoryTokenLayer, "bottleneck": BottleneckLayer}
        if variant not in kinds:
            raise InputError(f'variant={variant!r} must be "mem" or "bottleneck"')
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout)
        super().__init__(
            vocab_size,
            num_classes,
            padding_idx,
            embed=TokenEmbedding(
                vocab_size, dim_model, max_length, cls=has_cls(readout), dropout=dropout
            ),
            layers=[kinds[variant](config) for _ in range(num_layers)],
            memory=torch.randn(num_memory, dim_model),
            readout=readout,
        )
        self.head = nn.Linear(dim_model, num_classes)

    def _classify(self, encoded: Encoded) -> Float[Tensor, "batch classes"]:
        return self.head(read_out(encoded, self.readout))
