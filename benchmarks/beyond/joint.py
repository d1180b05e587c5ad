"""Joint predictions on located latents: what the head of LocatedCMANPAND knows of its targets."""

from functools import partial
from typing import Literal

from torch import Tensor
from torch.distributions import Distribution

from benchmarks.beyond.recipe import Experiment
from npbench.blocks import LayerConfig
from npbench.likelihoods import JointGaussian
from npbench.models import LocatedCMANPAND
from npbench.models.located import LocatedState


class WithoutPositions(LocatedCMANPAND):
    """`LocatedCMANPAND` with the head of `CMANPAND`, whose targets know no distances."""

    def __init__(self, covariance: Literal["cholesky", "lowrank"]) -> None:
        super().__init__(1, 1, block_size=10)
        self.head = JointGaussian(LayerConfig(64, 4, 128), 1, covariance, 20, 2, 4)

    def _together(
        self, state: LocatedState, xt: Tensor, mask: Tensor | None = None
    ) -> Distribution:
        return self.head(self._encode_targets(state, xt), mask)


_DATA = {"num_targets": 40}
EXPERIMENTS = {
    "and": Experiment(
        "configs/gp/located-and.yaml", partial(LocatedCMANPAND, 1, 1, block_size=10), _DATA
    ),
    "and-attention": Experiment(
        "with attention among targets",
        partial(LocatedCMANPAND, 1, 1, block_size=10, dim_projection=32, num_std_layers=2),
        _DATA,
    ),
    "and-without-positions": Experiment(
        "with the head of CMANPAND", partial(WithoutPositions, "cholesky"), _DATA
    ),
}
