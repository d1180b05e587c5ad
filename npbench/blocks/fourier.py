"""Random Fourier features, whose frequencies are learned, and parameters learned as offsets."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import InputError


class Offset(nn.Module):
    r"""A parameter that is learned as an offset: $v = v_0 + \rho\, \theta$, with θ from 0.

    Under Adam, whose steps have the length of the learning rate, the rate ρ multiplies the learning
    rate of this parameter alone. θ is a vector whatever the shape of v, so that `MuonAdam` does not
    take it for a weight matrix.

    Args:
        initial: $v_0$, kept in checkpoints.
        rate: ρ.

    Example:
        >>> offset = Offset(torch.ones(2, 3), rate=10.0)
        >>> offset().shape, offset.theta.shape
        (torch.Size([2, 3]), torch.Size([6]))
    """

    initial: Tensor

    def __init__(self, initial: Float[Tensor, "*shape"], rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("initial", initial)
        self.theta = nn.Parameter(initial.new_zeros(initial.numel()))

    def forward(self) -> Float[Tensor, "*shape"]:
        return self.initial + self.rate * self.theta.view_as(self.initial)


class FourierFeatures(nn.Module):
    r"""$\varphi(x) = [\cos W x, \sin W x]$, of width m = 2F, with learned frequencies W.

    Independent weights w with a variance $v_k$, common to the cosine and the sine of frequency k,
    make $\varphi(x)^\top w$ a random function with the kernel $\sum_k v_k \cos W_k (x - x')$,
    which is stationary. The initial frequencies follow the density

    $$q(w) = \frac 1H \sum_h \mathcal{N}(w; 0, (2 / \ell_h)^2 I)$$

    that is, the spectra of RBF kernels of lengths $\ell_h / 2$, which cover those of lengths
    $\ell_h$ with their tails. One input has the $(k + \frac 12) / F$ quantiles of |w|; several
    inputs have quasi-random draws, the k-th from component k mod H. The angles $Wx$ are computed in
    float64, so that features of inputs far from 0 are as accurate as others.

    Args:
        dim_x: number of inputs.
        num_features: number F of frequencies.
        lengths: $\ell_1, …, \ell_H$, in the units of x.
        rate: of the frequencies; see `Offset`.

    Source: Rahimi and Recht, *Random Features for Large-Scale Kernel Machines*, NeurIPS 2007.

    Example:
        >>> FourierFeatures(dim_x=2, num_features=8, lengths=[0.1, 1.0], rate=1.0)(
        ...     torch.randn(16, 10, 2)
        ... ).shape
        torch.Size([16, 10, 16])
    """

    def __init__(
        self, dim_x: int, num_features: int, lengths: Sequence[float], rate: float
    ) -> None:
        super().__init__()
        self.frequencies = Offset(_initial_frequencies(dim_x, num_features, lengths), rate)

    def forward(self, x: Float[Tensor, "*batch dim_x"]) -> Float[Tensor, "*batch m"]:
        return fourier_features(x, self.frequencies())


def fourier_features(
    x: Float[Tensor, "*batch dim_x"], frequencies: Float[Tensor, "features dim_x"]
) -> Float[Tensor, "*batch m"]:
    """The cosines and sines of $Wx$, in the type of x."""
    angle = (x.double() @ frequencies.double().mT).remainder(2 * math.pi).to(x.dtype)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def log_spectral_weights(
    frequencies: Float[Tensor, "features dim_x"],
    lengths: Sequence[float],
    smoothness: Sequence[float] | None = None,
) -> Float[Tensor, "lengths features"]:
    r"""The logarithms of weights, of sum 1, with which initial frequencies make Matérn kernels.

    They are importance weights: $\omega_{hk} \propto p_h(W_k) / q(W_k)$ with q as of
    `FourierFeatures`, and p the spectral density of a kernel of length $\ell_h$ and smoothness
    $\nu_h$, which is infinite by default: that of the RBF kernel, $\mathcal{N}(0, I / \ell_h^2)$.

    $$p_h(w) \propto (1 + \ell_h^2 |w|^2 / 2 \nu_h)^{-(\nu_h + d / 2)}$$
    """
    length = _column(lengths)
    proposal = _log_normals(frequencies, 2 / length).logsumexp(dim=0)
    density = _log_normals(frequencies, 1 / length)
    if smoothness is not None:
        nu = _column(smoothness)
        squares = (length * frequencies.norm(dim=-1)).square()
        tails = -(nu + frequencies.shape[-1] / 2) * (squares / (2 * nu)).log1p()
        density = torch.where(nu.isinf(), density, tails)
    return (density - proposal).log_softmax(dim=-1)


def _initial_frequencies(
    dim_x: int, num_features: int, lengths: Sequence[float]
) -> Float[Tensor, "features dim_x"]:
    spread = 2 / torch.tensor(lengths, dtype=torch.float64)
    if dim_x > 1:
        uniform = torch.quasirandom.SobolEngine(dim_x, scramble=True, seed=0).draw(num_features)
        normal = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6))
        return (normal * spread[torch.arange(num_features) % len(spread), None]).float()
    level = (torch.arange(num_features, dtype=torch.float64) + 0.5) / num_features
    low, high = torch.zeros_like(level), torch.full_like(level, 10 * float(spread.max()))
    for _ in range(60):  # Bisection, to the last bit of float64.
        middle = (low + high) / 2
        below = torch.erf(middle / (spread[:, None] * math.sqrt(2))).mean(dim=0) < level
        low, high = middle.where(below, low), high.where(below, middle)
    return middle[:, None].float()


def _log_normals(
    w: Float[Tensor, "features dim_x"], std: Float[Tensor, "components 1"]
) -> Float[Tensor, "components features"]:
    """The log-densities of isotropic normals at w, but for a constant."""
    return -0.5 * w.square().sum(dim=-1) / std.square() - w.shape[-1] * std.log()


def _column(lengths: Sequence[float]) -> Float[Tensor, "lengths 1"]:
    return torch.tensor(lengths, dtype=torch.float32)[:, None]


def spaced_lengths(
    num_heads: int, x_range: tuple[float, float], lengths: tuple[float, float] | None
) -> list[float]:
    """The initial lengths of heads, evenly spaced in the logarithm.

    Args:
        num_heads: number of lengths.
        x_range: where the inputs lie, in each dimension.
        lengths: the shortest and the longest; by default 1/40 and 1/4 of the width of `x_range`.

    Raises:
        InputError: if there is no such list.
    """
    if num_heads < 1:
        raise InputError(f"num_heads={num_heads} must be 1 or more")
    if not x_range[0] < x_range[1]:
        raise InputError(f"x_range={x_range} must go from a number to a greater one")
    width = x_range[1] - x_range[0]
    low, high = (width / 40, width / 4) if lengths is None else lengths
    if not 0 < low <= high:
        raise InputError(f"lengths={lengths} must be the shortest and the longest, above 0")
    return torch.logspace(math.log10(low), math.log10(high), num_heads).tolist()
