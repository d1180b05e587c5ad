"""Luna and ConvLuna: classifiers whose tokens attend to each other through a small memory."""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbench.blocks.convluna import (
    NORM_EPS,
    ConvLunaConfig,
    ConvLunaLayer,
    SequenceFilter,
    TemperatureOf,
)
from npbench.blocks.luna import LunaConfig, LunaLayer
from npbench.blocks.tokens import Encoded, Readout, TokenEmbedding, has_cls, read_out
from npbench.models.contracts.classifier import EncoderClassifier
from npbench.models.contracts.process import records_arguments

# The filter of the released code's runs.
_FOUR_TAPS = SequenceFilter()


class Luna(EncoderClassifier):
    r"""Linear unified nested attention: a memory packs the sequence, which unpacks it again.

    $$X_0 = \mathrm{LN}(E[\mathrm{tokens}] + P), \qquad
      p_0 = \mathrm{LN}(M), \qquad
      (X_i, p_i) = \mathrm{LunaLayer}_i(X_{i-1}, p_{i-1})$$

    with learned positions P and m learned memory vectors M. Two linear layers with a ReLU between
    them classify the vector that is read out. Time and memory are linear in the length.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes; None has no classifier, and gives the vectors read out.
        max_length: number of positions.
        dim_model: width D.
        num_layers: number of layers.
        num_memory: number m of memory vectors.
        num_heads: heads of the unpacking attention.
        dim_feedforward: hidden width of the feed-forward layers.
        dim_classifier: hidden width of the classifier.
        num_pack_heads: heads of the packing attention; as many as `num_heads` by default.
        tied: whether an attention takes its keys as its values.
        pre_norm: whether norms come before the attentions and feed-forward layers; two further
            norms then follow the last layer.
        tie_layers: whether all layers have the same weights.
        norm_embedding: whether tokens and memory are normalised before the first layer.
        dynamic_memory: give a sequence of fewer than m tokens only as many memory vectors.
        activation: of the feed-forward layers, "gelu" or "relu".
        readout: what is classified: "cls", a learned vector that the model puts before the tokens;
            "first", the first token, where the data have put one of their own; "mean" over real
            tokens; "mean_with_padding", as the release of 2021 has it; or "memory".
        initialisation: "xavier", or "bert": all weights of N(0, 0.02²).
        dropout: rate after the embedding, attentions and feed-forward layers.
        attention_dropout: rate at which attention weights are dropped.
        padding_idx: the token that is padding where no mask is given.

    Source: Ma et al., *Luna: Linear Unified Nested Attention*, NeurIPS 2021.

    Example:
        >>> model = Luna(vocab_size=17, num_classes=10, dim_model=32, num_heads=4, num_memory=8)
        >>> model(torch.randint(17, (2, 500))).shape
        torch.Size([2, 10])
    """

    @records_arguments
    def __init__(
        self,
        vocab_size: int,
        num_classes: int | None,
        max_length: int = 2048,
        dim_model: int = 512,
        num_layers: int = 6,
        num_memory: int = 256,
        num_heads: int = 8,
        dim_feedforward: int = 2048,
        dim_classifier: int = 2048,
        num_pack_heads: int | None = None,
        tied: bool = False,
        pre_norm: bool = False,
        tie_layers: bool = False,
        norm_embedding: bool = True,
        dynamic_memory: bool = True,
        activation: Literal["gelu", "relu"] = "gelu",
        readout: Readout = "cls",
        initialisation: Literal["xavier", "bert"] = "xavier",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        padding_idx: int = 0,
    ) -> None:
        config = LunaConfig(
            dim_model, num_heads, dim_feedforward, num_pack_heads, tied, pre_norm, activation,
            dropout, attention_dropout,
        )  # fmt: skip
        super().__init__(
            vocab_size,
            num_classes,
            padding_idx,
            embed=TokenEmbedding(
                vocab_size,
                dim_model,
                max_length,
                cls=has_cls(readout),
                norm=norm_embedding,
                clear_padding=True,
                dropout=dropout,
            ),
            layers=[LunaLayer(config) for _ in range(1 if tie_layers else num_layers)],
            memory=torch.randn(num_memory, dim_model) * dim_model**-0.5,
            readout=readout,
            num_repeats=num_layers if tie_layers else 1,
        )
        self.dynamic_memory = dynamic_memory
        self.norm_memory = nn.LayerNorm(dim_model) if norm_embedding else nn.Identity()
        self.norm_last = nn.LayerNorm(dim_model) if pre_norm else nn.Identity()
        self.norm_last_memory = nn.LayerNorm(dim_model) if pre_norm else nn.Identity()
        self.classifier = nn.Identity() if num_classes is None else nn.Sequential(
            nn.Linear(dim_model, dim_classifier),
            nn.ReLU(),
            nn.Linear(dim_classifier, num_classes, bias=False),
        )  # fmt: skip
        if initialisation == "bert":
            self.apply(_as_bert)
            nn.init.normal_(cast(Tensor, self.memory), std=0.02)

    def embedded(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Encoded:
        encoded = self.embed(tokens, mask)
        memory = self.norm_memory(self.memory).expand(len(tokens), -1, -1)
        memory = self.embed.dropout(memory)
        if not self.dynamic_memory:
            return encoded._replace(memory=memory)
        lengths = encoded.mask.sum(dim=1)
        size = min(memory.shape[1], max(1, int(lengths.max()) if len(lengths) else 1))
        real = torch.arange(size, device=mask.device) < lengths[:, None]
        memory = memory[:, :size].masked_fill(~real[..., None], 0.0)
        return encoded._replace(memory=memory, memory_mask=real)

    def after_layers(self, encoded: Encoded) -> Encoded:
        x, memory = self.norm_last(encoded.x), self.norm_last_memory(encoded.memory)
        return encoded._replace(x=x, memory=memory)

    def _classify(self, encoded: Encoded) -> Float[Tensor, "batch classes"]:
        return self.classifier(read_out(encoded, self.readout))


class ConvLuna(EncoderClassifier):
    r"""Luna whose memory meets the sequence behind a filter.

    $$X_0 = E[\mathrm{tokens}] + P, \qquad
      (X_i, p_i) = \mathrm{ConvLunaLayer}_i(X_{i-1}, p_{i-1}), \qquad
      \mathrm{logits} = W_2\, \mathrm{GELU}(W_1 \mathrm{LN}(X_K) + b_1) + b_2$$

    at the vector that is read out. By default it is the authors' simplified model, in which no
    attention projects its values.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes.
        max_length: number of positions.
        dim_model: width D.
        num_layers: number of blocks.
        num_memory: number m of memory vectors.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the feed-forward layers and of the classifier.
        filter: what comes before the memory; see `SequenceFilter`.
        temperature_pack: "unit", "sqrt" or "learn"; see `ConvLunaConfig`.
        temperature_unpack: the same of the other attention, which is "unit" in the released code,
            whatever its option says.
        share: whether both attentions have the same projections.
        project_values: whether values are projections, and not what is attended to itself.
        readout: what is classified: "cls", "first", "mean", "mean_with_padding" as the released
            code has it, or "memory"; see `Luna`.
        dropout: rate after the embedding and in feed-forward layers.
        padding_idx: the token that is padding where no mask is given.

    Source: Yorsh, Holeňa, Bojar and Herel, *On Difficulties of Attention Factorization through
    Shared Memory*, ICLR 2024 Tiny Papers, arXiv 2404.00798.

    Example:
        >>> model = ConvLuna(17, 10, dim_model=32, num_layers=2, filter=SequenceFilter(kernel=4))
        >>> model(torch.randint(17, (2, 500))).shape
        torch.Size([2, 10])
    """

    @records_arguments
    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        max_length: int = 2048,
        dim_model: int = 128,
        num_layers: int = 6,
        num_memory: int = 256,
        num_heads: int = 4,
        dim_feedforward: int = 512,
        filter: SequenceFilter = _FOUR_TAPS,
        temperature_pack: TemperatureOf = "learn",
        temperature_unpack: TemperatureOf = "unit",
        share: bool = True,
        project_values: bool = False,
        readout: Readout = "cls",
        dropout: float = 0.0,
        padding_idx: int = 0,
    ) -> None:
        config = ConvLunaConfig(
            dim_model, num_heads, dim_feedforward, filter, temperature_pack, temperature_unpack,
            share, project_values, dropout,
        )  # fmt: skip
        super().__init__(
            vocab_size,
            num_classes,
            padding_idx,
            embed=TokenEmbedding(
                vocab_size, dim_model, max_length, cls=has_cls(readout), dropout=dropout
            ),
            layers=[ConvLunaLayer(config) for _ in range(num_layers)],
            memory=torch.randn(num_memory, dim_model),
            readout=readout,
        )
        nn.init.zeros_(cast(nn.Embedding, self.embed.positions).weight)
        self.norm = nn.LayerNorm(dim_model, eps=NORM_EPS)
        self.hidden = nn.Linear(dim_model, dim_feedforward)
        self.out = nn.Linear(dim_feedforward, num_classes)

    def _classify(self, encoded: Encoded) -> Float[Tensor, "batch classes"]:
        x = encoded.x.masked_fill(~encoded.mask[..., None], 0.0)
        encoded = encoded._replace(x=self.norm(x), memory=self.norm(encoded.memory))
        return self.out(F.gelu(self.hidden(read_out(encoded, self.readout))))


def _as_bert(module: nn.Module) -> None:
    """Draw weights as BERT does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
