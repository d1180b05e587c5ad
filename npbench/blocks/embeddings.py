"""Embeddings of events; those of points are MLPs (`layers.MLP`)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from npbench.errors import InputError


class EventEmbedding(nn.Module):
    r"""The sum of an embedding of the mark and an encoding of the time t, in the model's units.

    $$e = W_k + [\sin(\omega_i t), \cos(\omega_i t)]_{i=1}^{D/2}, \qquad
      \omega_i = 10000^{-2 (i - 1) / D}$$

    Args:
        num_marks: number K of marks.
        dim_model: width D, which is even.

    Source: Zuo et al., *Transformer Hawkes Process*, ICML 2020, section 3.1.
    """

    frequencies: Tensor

    def __init__(self, num_marks: int, dim_model: int) -> None:
        super().__init__()
        if dim_model % 2:
            raise InputError(f"dim_model={dim_model} must be even: half sines, half cosines")
        self.mark = nn.Embedding(num_marks, dim_model)
        frequencies = 10_000.0 ** -(torch.arange(0, dim_model, 2) / dim_model)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def time(self, times: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch dim_model"]:
        """The encoding of times alone."""
        phase = times[..., None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1).to(self.mark.weight.dtype)

    def forward(
        self, times: Float[Tensor, "*batch"], marks: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch dim_model"]:
        return self.mark(marks) + self.time(times)
