"""A causal convolution along a stream, whose state is of constant size."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.errors import InputError


@dataclass(frozen=True)
class CausalConvolution:
    r"""A filter along a stream of embeddings, which sees the last few of them.

    $$e'_j = \sum_{i=0}^{k-1} w_{h,i}\, e_{j-i}$$

    for the dimensions of head h, with 0 ahead of the first. ConvLuna's filter, one kernel of each
    head without a bias, looks ahead too and needs the whole sequence; a stream knows its past only.
    At first $w_{h,0} = 1$ and all others are 0: it changes nothing.

    Args:
        num_taps: the number k of embeddings that it sees.

    Source: Yorsh, Holeňa, Bojar and Herel, *On Difficulties of Attention Factorization through
    Shared Memory*, ICLR 2024 Tiny Papers.

    Example:
        >>> layer = CausalConvolution(num_taps=3).build(num_heads=2, dim_model=8)
        >>> inputs = torch.randn(1, 10, 8)
        >>> before = layer.nothing(inputs)
        >>> torch.equal(layer(inputs, before), inputs)
        True
    """

    num_taps: int = 4

    def build(self, num_heads: int, dim_model: int) -> "CausalConvolutionLayer":
        """The layer, with a kernel of each head.

        Raises:
            InputError: if there is not one tap at least.
        """
        if self.num_taps < 1:
            raise InputError(f"convolution.num_taps={self.num_taps} must be 1 or more")
        return CausalConvolutionLayer(num_heads, dim_model // num_heads, self.num_taps)


class CausalConvolutionLayer(nn.Module):
    """See `CausalConvolution`: a stream goes on from its last k − 1 inputs, `before`."""

    def __init__(self, num_heads: int, dim_head: int, num_taps: int) -> None:
        super().__init__()
        kernel = torch.zeros(num_heads, num_taps)
        kernel[:, 0] = 1.0
        self.kernel = nn.Parameter(kernel)
        self.dim_head = dim_head

    @property
    def memory(self) -> int:
        """The number k − 1 of inputs that an output needs beside its own."""
        return self.kernel.shape[1] - 1

    def nothing(
        self, inputs: Float[Tensor, "batch events dim_model"]
    ) -> Float[Tensor, "batch before dim_model"]:
        """What comes ahead of the first input."""
        return inputs.new_zeros(len(inputs), self.memory, inputs.shape[-1])

    def forward(
        self,
        inputs: Float[Tensor, "batch events dim_model"],
        before: Float[Tensor, "batch before dim_model"],
    ) -> Float[Tensor, "batch events dim_model"]:
        """The outputs of these inputs, which follow on `before`."""
        known, number = torch.cat([before, inputs], dim=1), inputs.shape[1]
        taps = self.kernel.repeat_interleave(self.dim_head, dim=0).unbind(dim=1)
        starts = range(self.memory, -1, -1)
        windows = [known[:, start : start + number] for start in starts]
        return torch.stack([tap * window for tap, window in zip(taps, windows)]).sum(dim=0)

    def after(
        self,
        inputs: Float[Tensor, "batch events dim_model"],
        before: Float[Tensor, "batch before dim_model"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch before dim_model"]:
        """The last k − 1 inputs, of which padding lies behind the real ones."""
        known = torch.cat([before, inputs], dim=1)
        index = mask.sum(dim=-1)[:, None] + torch.arange(self.memory, device=mask.device)
        return known.gather(1, index[..., None].expand(-1, -1, known.shape[-1]))
