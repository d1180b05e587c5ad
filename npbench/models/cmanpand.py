"""CMANP-AND: joint predictions of blocks of targets, one block after another."""

from typing import Literal

from npbench.blocks import LayerConfig, PointFilter
from npbench.likelihoods import JointGaussian
from npbench.models.cmanp import CMANP
from npbench.models.contracts.blockwise import BlockwiseProcess
from npbench.models.contracts.process import records_arguments


class CMANPAND(BlockwiseProcess, CMANP):
    r"""Constant Memory Attentive Neural Process, Autoregressive Not-Diagonal.

    The encoder is CMANP's, and a block of targets is predicted jointly (see `JointGaussian`). The
    model is trained on all targets as one block. It is evaluated and sampled block by block: the
    state absorbs the values of each block before the next is predicted:

    $$\log p(y_{1:M}) = \sum_b \log \mathcal{N}(y_b \mid \mu_b, \Sigma_b), \qquad
      S_{b+1} = \mathrm{update}(S_b, x_b, y_b)$$

    `log_likelihood`, `marginals` and `sample` are constant in memory in the numbers N of context
    points and M of targets; `query` answers for all its targets as one block. The log-likelihood
    and the samples depend on the order of the targets, which says what goes into which block.

    Args:
        block_size: number b_Q of targets predicted jointly.
        covariance: "cholesky" or "lowrank".
        dim_projection: columns of the covariance's factor P.
        num_std_layers: Transformer layers among the targets before P.
        projection_depth: linear layers from their output to P (and to the diagonal).

    The other arguments are those of `CMANP`.

    Source: Feng et al., *Memory Efficient Neural Processes via Constant Memory Attention Block*,
    ICML 2024, section 4.2. With one input and output there are 1,452,373 parameters; the official
    code counts 8,578 more, those of CMANP's diagonal head, which it does not use.

    Example:
        >>> model = CMANPAND(dim_x=1, dim_y=1, num_layers=2, block_size=10).eval()
        >>> x, y = torch.randn(2, 16, 25, 1)
        >>> state = model.condition(x, y)
        >>> model.query(state, x[:, :10]).covariance_matrix.shape
        torch.Size([16, 10, 10])
        >>> model.sample(state, x, num_samples=3).shape
        torch.Size([3, 16, 25, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 6,
        dim_feedforward: int = 128,
        num_latents: int = 128,
        num_block_latents: int = 128,
        embed_depth: int = 4,
        dropout: float = 0.0,
        bound_std: bool = False,
        qk_norm: bool = False,
        norm_residual: bool = True,
        context_chunk_size: int | None = None,
        block_size: int = 100,
        covariance: Literal["cholesky", "lowrank"] = "cholesky",
        dim_projection: int = 20,
        num_std_layers: int = 2,
        projection_depth: int = 4,
        filter: PointFilter | None = None,
    ) -> None:
        super().__init__(
            dim_x=dim_x,
            dim_y=dim_y,
            dim_model=dim_model,
            num_heads=num_heads,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            num_latents=num_latents,
            num_block_latents=num_block_latents,
            embed_depth=embed_depth,
            dropout=dropout,
            bound_std=bound_std,
            qk_norm=qk_norm,
            norm_residual=norm_residual,
            context_chunk_size=context_chunk_size,
            filter=filter,
        )
        self._predict_jointly(
            block_size,
            JointGaussian(
                config=LayerConfig(dim_model, num_heads, dim_feedforward, dropout),
                dim_y=dim_y,
                covariance=covariance,
                dim_projection=dim_projection,
                num_std_layers=num_std_layers,
                projection_depth=projection_depth,
                bound_std=bound_std,
            ),
        )
