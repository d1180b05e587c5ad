"""Multi-head attention on fused kernels, and the streaming state of cross attention."""

from npbench.attention.kernels import attend, attention_with_lse
from npbench.attention.multihead import MultiheadAttention, join_heads, split_heads
from npbench.attention.state import AttentionState

__all__ = [
    "AttentionState",
    "MultiheadAttention",
    "attend",
    "attention_with_lse",
    "join_heads",
    "split_heads",
]
