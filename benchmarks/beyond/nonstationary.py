"""Functions whose length and scale depend on where they are: with and without absolute inputs."""

from functools import partial
from typing import Any

from gpytorch.kernels import Kernel
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.beyond.recipe import Experiment
from datamodules.kernels import released_rbf
from npbench.blocks import MLP, LayerConfig, Scales
from npbench.blocks.located import At, LocatedDecoder, LocatedMix
from npbench.models import LocatedCMANP


class Warped(Kernel):
    r"""$s(x)\, s(x')\, k(g(x), g(x'))$ with $g' = e^{-x / 2}$ and $s = e^{x / 4}$: on [−2, 2] the
    length grows from 0.37 to 2.7 times that of k, and the scale from 0.61 to 1.65 times.

    Args:
        kernel: k, with its priors.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        warped = (-2 * (-x / 2).exp() for x in (x1, x2))
        values = self.kernel(*warped, diag=diag, **params)
        first, second = ((x[..., 0] / 4).exp() for x in (x1, x2))
        if diag:
            return values * first * second
        return values.to_dense() * first[..., :, None] * second[..., None, :]


class _Absolute(nn.Module):
    """What tokens get added for where they are: 0 at first."""

    def __init__(self, dim_x: int, dim_model: int) -> None:
        super().__init__()
        self.mlp = MLP(dim_x, dim_model, dim_model, depth=3)
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, at: At) -> Float[Tensor, "batch tokens dim_model"]:
        return self.mlp(at.x)


class _AbsoluteMix(LocatedMix):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.absolute = _Absolute(1, 64)

    def forward(self, x: Tensor, at: At) -> Float[Tensor, "batch places dim_model"]:
        return super().forward(x + self.absolute(at), at)


class _AbsoluteDecoder(LocatedDecoder):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.absolute = _Absolute(1, 64)

    def forward(self, a: At, latents: Tensor, b: At) -> Float[Tensor, "batch targets dim_model"]:
        x = self.start + self.absolute(a)
        x = x.expand(*a.x.shape[:2], -1)
        for layer in self.layers:
            x = layer(x, a, latents, b)
        return self.norm(x)


class AbsoluteLocatedCMANP(LocatedCMANP):
    """`LocatedCMANP` whose latents and targets also know where they are.

    What that adds is 0 at first, so that the weights of a `LocatedCMANP` predict the same in it.
    """

    def __init__(self) -> None:
        super().__init__(1, 1)
        scales = Scales.of(1)
        config = LayerConfig(64, len(scales.mix), 128, norm_residual=False)
        self.mix = _AbsoluteMix(config, scales.mix, 3)
        self.decoder = _AbsoluteDecoder(config, scales.query, 1)


_DATA = {"kernel": Warped(released_rbf())}
EXPERIMENTS = {
    f"warped-{name}{suffix}": Experiment(about, model, _DATA, lr=lr)
    for name, about, model in (
        ("relative", "functions that are not stationary", partial(LocatedCMANP, 1, 1)),
        ("absolute", "and absolute inputs", AbsoluteLocatedCMANP),
    )
    for suffix, lr in (("", 0.01), ("-0.003", 0.003))
}
