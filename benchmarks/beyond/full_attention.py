"""Full attention beside located latents: it keeps all points, and is trained by the same recipe."""

from functools import partial

from torch import Tensor
from torch.distributions import Distribution

from benchmarks.beyond.recipe import Experiment
from npbench.attention.rotary import Rotary
from npbench.blocks import MLP, LayerConfig, Scales
from npbench.blocks.located import At, LocatedDecoder, LocatedMix
from npbench.likelihoods import target_head
from npbench.models import TNPD
from npbench.models.contracts.points import Points
from npbench.models.contracts.stored_context import StoredContext, StoredContextProcess

# Where padding is put: beyond what any head sees.
_FAR = 1e6


class LocatedAttentionNP(StoredContextProcess):
    """Full attention with the layers of `LocatedCMANP`: its tokens are the points themselves."""

    def __init__(self, num_layers: int = 3, num_query_layers: int = 1) -> None:
        super().__init__(dim_x=1, dim_y=1)
        config = LayerConfig(64, num_heads=4, dim_feedforward=128, norm_residual=False)
        scales = Scales.of(1)
        self.rotary = Rotary(1, 16, *scales.frequencies)
        self.embed = MLP(1, 64, 64, depth=2)
        # Not even the head that is blind to distance may see padding.
        lengths = [min(length, 1e3) for length in scales.mix]
        self.mix = LocatedMix(config, lengths, num_layers)
        self.decoder = LocatedDecoder(config, scales.query, num_query_layers)
        self.head = target_head("gaussian", 1, lambda n: MLP(64, 128, n, depth=2))

    def _encode(self, points: Points) -> StoredContext:
        tokens = self.mix(self.embed(points.y), self._at(points))
        return StoredContext(points, tokens[:, None])

    def _query(self, state: StoredContext, xt: Tensor) -> Distribution:
        at = At.of(xt, self.rotary)
        return self.head(self.decoder(at, state.encodings[:, 0], self._at(state.points)))

    def _at(self, points: Points) -> At:
        at = At.of(points.x, self.rotary)
        if points.mask is None:
            return at
        return At(at.x.masked_fill(~points.mask[..., None], _FAR), at.rotation)


EXPERIMENTS = {
    **{
        f"tnpd-{lr}": Experiment("TNPD, 6 layers", partial(TNPD, 1, 1), lr=lr)
        for lr in (0.003, 0.01, 0.02)
    },
    **{
        f"tnpd-qk-{lr}": Experiment(
            "TNPD, 3 layers, normalised queries and keys",
            partial(TNPD, 1, 1, num_layers=3, qk_norm=True),
            lr=lr,
        )
        for lr in (0.003, 0.01)
    },
    **{
        f"located-attention-{lr}": Experiment(
            "full attention with the layers of LocatedCMANP", LocatedAttentionNP, lr=lr
        )
        for lr in (0.003, 0.01)
    },
}
