"""The layers and blocks that the models are made of."""

from npbench.blocks.bayesian_regression import (
    BayesianHeads,
    FunctionPosterior,
    InferredNoise,
    WeightPosterior,
)
from npbench.blocks.constant_memory import ConstantMemoryAttentionBlock
from npbench.blocks.embeddings import EventEmbedding
from npbench.blocks.history import HistoryBlock
from npbench.blocks.kernel_regression import GELUMLP, KernelRegressionBlock
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
from npbench.blocks.places import Places
from npbench.blocks.scales import Scales
from npbench.blocks.second_moments import SecondMoments

__all__ = [
    "GELUMLP",
    "MLP",
    "BayesianHeads",
    "ConstantMemoryAttentionBlock",
    "CrossAttention",
    "Decoder",
    "EventEmbedding",
    "FeedForward",
    "FunctionPosterior",
    "HistoryBlock",
    "InferredNoise",
    "KernelRegressionBlock",
    "LayerConfig",
    "Places",
    "PreNorm",
    "QueryLayer",
    "Scales",
    "SecondMoments",
    "SelfAttention",
    "TransformerLayer",
    "WeightPosterior",
]
