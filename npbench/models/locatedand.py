"""Located CMANP-AND: joint predictions of blocks of targets on latents that have places."""

from typing import Literal

from torch import Tensor
from torch.distributions import Distribution

from npbench.blocks import LayerConfig, Places, Scales
from npbench.likelihoods import LocatedJointGaussian
from npbench.models.contracts.blockwise import BlockwiseProcess
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import records_arguments
from npbench.models.located import LocatedCMANP, LocatedState


class LocatedCMANPAND(BlockwiseProcess, LocatedCMANP):
    r"""Located Constant Memory Attentive Neural Process, Autoregressive Not-Diagonal.

    The encoder is that of `LocatedCMANP`; evaluation and sampling block by block are those of
    `CMANPAND`, with its equations. In its head, `LocatedJointGaussian`, targets know how far they
    are from each other, as the encoder itself tells of each nothing but what is around it. `on`
    gives the same weights on another range.

    Args:
        block_size: number b_Q of targets predicted jointly.
        covariance: "lowrank" or "cholesky".
        dim_projection: columns of the covariance's factor P, an even number.
        num_std_layers: layers of attention among the targets before P. Without any, and with
            "lowrank", what is predicted of some targets does not depend on which others there are.
        projection_depth: linear layers from their output to P (and to the diagonal).

    The other arguments are those of `LocatedCMANP`.

    Example:
        >>> model = LocatedCMANPAND(dim_x=1, dim_y=1, num_layers=1, block_size=10).eval()
        >>> x, y = torch.rand(2, 16, 25, 1)
        >>> model.sample(model.condition(x, y), x, num_samples=3).shape
        torch.Size([3, 16, 25, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 3,
        num_query_layers: int = 1,
        dim_feedforward: int = 128,
        places: Places = Places(),  # noqa: B008 -- it is immutable
        scales: Scales | None = None,
        content: bool = False,
        dropout: float = 0.0,
        bound_std: bool = False,
        context_chunk_size: int | None = None,
        window: float | None = None,
        block_size: int = 100,
        covariance: Literal["cholesky", "lowrank"] = "lowrank",
        dim_projection: int = 64,
        num_std_layers: int = 0,
        projection_depth: int = 2,
    ) -> None:
        super().__init__(
            dim_x=dim_x,
            dim_y=dim_y,
            dim_model=dim_model,
            num_heads=num_heads,
            num_layers=num_layers,
            num_query_layers=num_query_layers,
            dim_feedforward=dim_feedforward,
            places=places,
            scales=scales,
            content=content,
            dropout=dropout,
            bound_std=bound_std,
            context_chunk_size=context_chunk_size,
            window=window,
        )
        self._predict_jointly(
            block_size,
            LocatedJointGaussian(
                LayerConfig(dim_model, num_heads, dim_feedforward, dropout, norm_residual=False),
                dim_x,
                dim_y,
                Scales.of(dim_x) if scales is None else scales,
                covariance=covariance,
                dim_projection=dim_projection,
                num_std_layers=num_std_layers,
                projection_depth=projection_depth,
                bound_std=bound_std,
            ),
        )

    def _query(self, state: LocatedState, xt: Tensor) -> Distribution:
        return self._together(state, xt)

    def _joint(self, state: LocatedState, targets: Points) -> Distribution:
        return self._together(state, targets.x, targets.mask)

    def _together(
        self, state: LocatedState, xt: Tensor, mask: Tensor | None = None
    ) -> Distribution:
        return self.head(self._encode_targets(state, xt), xt - self.locations.centre, mask)
