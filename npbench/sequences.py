"""TokenSequences: what data modules give to classifiers of sequences."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from npbench.structure import TensorRecord, counted


@dataclass(frozen=True, eq=False)
class TokenSequences(TensorRecord):
    """A batch of sequences of tokens, each of one class.

    Args:
        tokens: ids, from 0 to the size of the vocabulary − 1.
        labels: the class of each sequence, from 0; None where it is not known.
        mask: True where a token is real; None means that all are.

    Example:
        >>> TokenSequences(torch.randint(9, (4, 12)), torch.tensor([0, 1, 1, 0]))
        TokenSequences(4 sequences of 12 tokens or fewer, on cpu)
    """

    tokens: Int[Tensor, "batch length"]
    labels: Int[Tensor, "batch"] | None = None
    mask: Bool[Tensor, "batch length"] | None = None

    @property
    def batch_size(self) -> int:
        return len(self.tokens)

    @property
    def full_mask(self) -> Bool[Tensor, "batch length"]:
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.mask is None else self.mask

    def contents(self) -> str:
        """The number of sequences, and of the tokens of the longest."""
        longest = counted(self.tokens.shape[1], "token")
        return f"{counted(self.batch_size, 'sequence')} of {longest} or fewer"
