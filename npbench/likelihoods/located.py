"""From the encodings of targets, and where they are, to a Gaussian over all their values."""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from npbench.attention.rotary import Rotary, Rotation
from npbench.blocks import LayerConfig, Scales
from npbench.blocks.located import At, LocatedMix
from npbench.likelihoods.gaussian import JointGaussian


class LocatedJointGaussian(JointGaussian):
    r"""A `JointGaussian` of targets that know how far they are from each other.

    $$\tilde h = \mathrm{Mix}(h), \qquad g_t = \mathrm{MLP}(\tilde h_t), \qquad
      p_t = R(\Omega x_t)\, g_t, \qquad p_t \cdot p_s = g_t \cdot R(\Omega (x_s - x_t))\, g_s$$

    The rows of P are turned as rotary positions turn, so that the covariance of two targets depends
    on their displacement, as that of a kernel does, with features of its own at every target; and
    moving all targets together changes nothing. The mean is $\mathrm{MLP}(h)$.

    With `num_std_layers=0` the attention among targets is left out, so that a row of P follows from
    its own target. With "lowrank" the predictions then are those of one process: those of some
    targets are what those of more say of them, and their order does not matter.

    Args:
        config: width, heads and hidden width of the layers.
        dim_x: number of inputs.
        dim_y: number of outputs.
        scales: lengths of the attention among targets (`mix`), and frequencies Ω.
        covariance: "cholesky" or "lowrank", as of `JointGaussian`.
        dim_projection: columns of P, an even number.
        num_std_layers: layers of attention among targets.
        projection_depth: linear layers of the MLPs of P and of the diagonal.
        bound_std: as of `JointGaussian`.

    Example:
        >>> head = LocatedJointGaussian(LayerConfig(16, 4, 16), 1, 1, Scales.of(1))
        >>> h, x = torch.randn(2, 5, 16), torch.randn(2, 5, 1)
        >>> head(h, x).covariance_matrix.shape
        torch.Size([2, 5, 5])
    """

    def __init__(
        self,
        config: LayerConfig,
        dim_x: int,
        dim_y: int,
        scales: Scales,
        covariance: Literal["cholesky", "lowrank"] = "lowrank",
        dim_projection: int = 64,
        num_std_layers: int = 0,
        projection_depth: int = 2,
        bound_std: bool = False,
    ) -> None:
        super().__init__(config, dim_y, covariance, dim_projection, 0, projection_depth, bound_std)
        self.mix = LocatedMix(config, scales.mix, num_std_layers)
        self.rotary = Rotary(dim_x, config.dim_model // config.num_heads, *scales.frequencies)
        self.rotary_of_rows = Rotary(dim_x, dim_projection, *scales.frequencies)

    def forward(
        self,
        encoding: Float[Tensor, "batch target dim_model"],
        x: Float[Tensor, "batch target dim_x"],
        mask: Bool[Tensor, "batch target"] | None = None,
    ) -> MultivariateNormal | LowRankMultivariateNormal:
        """The distribution of the values of targets at x, from any origin; padding has standard
        normals of its own."""
        h = self.mix(encoding, At.of(x, self.rotary), mask)
        rotation = self.rotary_of_rows(x)
        rows = self.project(h).unflatten(-1, (-1, self.dim_projection))
        rows = Rotation(rotation.cos[:, :, None], rotation.sin[:, :, None]).turn(rows)
        mean = self.mean(encoding).flatten(1)
        raw = self.diagonal(h).flatten(1) if self.covariance == "lowrank" else None
        return self._distribution(mean, rows.flatten(2), raw, mask)
