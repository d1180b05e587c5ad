"""The layers and blocks that the models are made of."""

from npbench.blocks.constant_memory import ConstantMemoryAttentionBlock
from npbench.blocks.embeddings import EventEmbedding
from npbench.blocks.history import HistoryBlock
from npbench.blocks.layers import (
    MLP,
    CrossAttention,
    Decoder,
    FeedForward,
    LayerConfig,
    PreNorm,
    QueryLayer,
    SelfAttention,
    TransformerLayer,
)
from npbench.blocks.located import Scales
from npbench.blocks.places import Places

__all__ = [
    "MLP",
    "ConstantMemoryAttentionBlock",
    "CrossAttention",
    "Decoder",
    "EventEmbedding",
    "FeedForward",
    "HistoryBlock",
    "LayerConfig",
    "Places",
    "PreNorm",
    "QueryLayer",
    "Scales",
    "SelfAttention",
    "TransformerLayer",
]
