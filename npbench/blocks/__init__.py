"""The layers and blocks that the models are made of."""

from npbench.blocks.bayesian_regression import (
    BayesianHeads,
    FunctionPosterior,
    InferredNoise,
    WeightPosterior,
)
from npbench.blocks.causal_luna import CausalLunaAttention, LunaSums
from npbench.blocks.constant_memory import ConstantMemoryAttentionBlock
from npbench.blocks.convluna import ConvLunaConfig, ConvLunaLayer, SequenceFilter
from npbench.blocks.convolution import CausalConvolution
from npbench.blocks.embeddings import EventEmbedding
from npbench.blocks.filters import Bottleneck, FeatureMap, PointFilter, PointGate, Temperature
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
from npbench.blocks.luna import LunaAttention, LunaConfig, LunaLayer
from npbench.blocks.places import Places
from npbench.blocks.scales import Scales
from npbench.blocks.second_moments import SecondMoments

__all__ = [
    "GELUMLP",
    "MLP",
    "BayesianHeads",
    "Bottleneck",
    "CausalConvolution",
    "CausalLunaAttention",
    "ConstantMemoryAttentionBlock",
    "ConvLunaConfig",
    "ConvLunaLayer",
    "CrossAttention",
    "Decoder",
    "EventEmbedding",
    "FeatureMap",
    "FeedForward",
    "FunctionPosterior",
    "HistoryBlock",
    "InferredNoise",
    "KernelRegressionBlock",
    "LayerConfig",
    "LunaAttention",
    "LunaConfig",
    "LunaLayer",
    "LunaSums",
    "Places",
    "PointFilter",
    "PointGate",
    "PreNorm",
    "QueryLayer",
    "Scales",
    "SecondMoments",
    "SelfAttention",
    "SequenceFilter",
    "Temperature",
    "TransformerLayer",
    "WeightPosterior",
]
