"""TNP-KR that predicts all targets together."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from npbench.attention.bias_spec import Bias
from npbench.blocks import LayerConfig
from npbench.likelihoods import JointGaussian
from npbench.models.contracts.joint import JointProcess
from npbench.models.contracts.process import records_arguments
from npbench.models.tnpkr import TNPKR, KernelState


class TNPKRND(JointProcess, TNPKR):
    r"""TNP-KR with a joint Gaussian over all targets: see `JointGaussian` for its covariance.

    Args:
        covariance: "lowrank" or "cholesky".
        dim_projection: columns of the covariance's factor P.
        num_std_layers: Transformer layers among the targets before P.
        projection_depth: linear layers from their output to P (and to the diagonal).

    The other arguments are those of `TNPKR`, without `head_widths`, `min_std` and `likelihood`,
    which are of its own head.

    Example:
        >>> model = TNPKRND(dim_x=1, dim_y=1, num_layers=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).covariance_matrix.shape
        torch.Size([16, 10, 10])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        attention: Literal["scan", "deep_kernel", "performer"] = "scan",
        bias: Bias | Sequence[Bias] | None = None,
        invariant: bool | Sequence[int] | None = None,
        dim_model: int = 64,
        num_heads: int = 4,
        dim_head: int = 32,
        num_layers: int = 6,
        num_repeats: int = 1,
        dim_feedforward: int = 256,
        embed_widths: Sequence[int] | None = None,
        num_features: int = 128,
        dim_hidden: int = 128,
        dropout: float = 0.0,
        bound_std: bool = False,
        covariance: Literal["cholesky", "lowrank"] = "lowrank",
        dim_projection: int = 20,
        num_std_layers: int = 2,
        projection_depth: int = 4,
    ) -> None:
        super().__init__(
            dim_x=dim_x,
            dim_y=dim_y,
            attention=attention,
            bias=bias,
            invariant=invariant,
            dim_model=dim_model,
            num_heads=num_heads,
            dim_head=dim_head,
            num_layers=num_layers,
            num_repeats=num_repeats,
            dim_feedforward=dim_feedforward,
            embed_widths=embed_widths,
            num_features=num_features,
            dim_hidden=dim_hidden,
            dropout=dropout,
        )
        self.head = JointGaussian(
            config=LayerConfig(dim_model, num_heads, dim_feedforward, dropout),
            dim_y=dim_y,
            covariance=covariance,
            dim_projection=dim_projection,
            num_std_layers=num_std_layers,
            projection_depth=projection_depth,
            bound_std=bound_std,
        )

    def _query(self, state: KernelState, xt: Tensor) -> Distribution:
        return self.head(self._encode_targets(state, xt))

    def _encode_targets(
        self, state: KernelState, xt: Tensor
    ) -> Float[Tensor, "batch target dim_model"]:
        return torch.cat(list(self.encodings(state, xt)), dim=1)
