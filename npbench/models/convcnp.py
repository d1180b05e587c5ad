"""ConvCNP: a grid holds the sums of the context, and convolutions make functions of them."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from npbench.blocks import MLP
from npbench.blocks.set_convolution import Grid, SetConvolution
from npbench.blocks.sums import Sums
from npbench.blocks.unet import UNet
from npbench.errors import DataWarning, InputError
from npbench.likelihoods import Likelihood, target_head
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import records_arguments
from npbench.models.contracts.sums import SumProcess, SumState

# Relative to what was there before, what subtraction may leave below 0 by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class GridSums(Sums):
    """The sums over points of ψ(u − x) [1, y] at every node u of a grid, in float64."""

    values: Float[Tensor, "batch dim_y_and_1 *nodes"]
    grid: Grid


@dataclass(frozen=True, eq=False)
class ConvState(SumState):
    """Sums on a grid, and as their `posterior` what convolutions make of them."""

    moments: GridSums
    posterior: Float[Tensor, "batch dim_hidden *nodes"] | None

    def merge(self, other: "ConvState") -> "ConvState":
        """The state of the union of two contexts: a sum, exact in any order and tree of merges.

        Raises:
            InputError: if the two are states of different numbers of tasks, or on other grids.
        """
        _check_grid(other.moments.grid, self.moments.grid, "the other state")
        return super().merge(other)

    def _notes(self) -> dict[str, str]:
        return {"grid": json.dumps(asdict(self.moments.grid))}

    @classmethod
    def _from_file(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> "ConvState":
        fields = json.loads(notes["grid"])
        ends = {name: tuple(fields[name]) for name in ("low", "high")}
        sums = {name: tensors[f"moments.{name}"] for name in ("squares", "count", "values")}
        return cls(GridSums(**sums, grid=Grid(**fields | ends)), None)


class ConvCNP(SumProcess):
    r"""Convolutional Conditional Neural Process.

    $$\rho(u) = \sum_n \psi(u - x_n), \qquad s(u) = \sum_n \psi(u - x_n)\, y_n, \qquad
      F = \mathrm{UNet}([\rho, s / \rho])$$
    $$h(x) = \sum_u \psi'(x - u)\, F(u), \qquad y_t \sim \mathcal{N}(\mu, \sigma^2), \qquad
      [\mu, \sigma] = \mathrm{head}(h(x_t))$$

    The sums ρ and s on the grid of nodes u are the whole state. They are kept in float64; they
    merge and forget exactly but for rounding, in any order, and their size does not depend on the
    context. Conditioning costs N·U for U nodes (in two dimensions U is the product of both sides),
    then the network; a query M·U. The grid takes one or two inputs.

    Moving points, targets and grid together changes nothing: `on` gives the same weights on another
    range. Points outside the grid are hardly seen, of which a warning says so once.

    Args:
        dim_x: number of inputs of a point, 1 or 2.
        dim_y: number of outputs of a point.
        grid: where the nodes are.
        dim_hidden: channels of the network.
        num_levels: how often the U-Net halves the grid.
        kernel_size: nodes of a convolution in each direction.
        min_std: least standard deviation m: $\sigma = m + (1 - m)\,\mathrm{softplus}(r)$.
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.

    Source: Gordon et al., *Convolutional Conditional Neural Processes*, ICLR 2020.

    Example:
        >>> model = ConvCNP(dim_x=1, dim_y=1).eval()
        >>> x, y = torch.linspace(-2, 2, 100).reshape(1, -1, 1), torch.randn(1, 100, 1)
        >>> state = model.merge(model.condition(x[:, :50], y[:, :50]),
        ...                     model.condition(x[:, 50:], y[:, 50:]))
        >>> torch.allclose(model.query(state, x).mean, model(x, y, x).mean, atol=1e-5)
        True
    """

    state_class = ConvState
    points_at_a_time = targets_at_a_time = 8192
    centre: Tensor

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        grid: Grid = Grid(),  # noqa: B008 -- it is immutable
        dim_hidden: int = 64,
        num_levels: int = 5,
        kernel_size: int = 5,
        min_std: float = 0.0,
        likelihood: Likelihood = "gaussian",
    ) -> None:
        super().__init__(dim_x, dim_y)
        self.grid = grid.resolved(dim_x)
        spacing = float(self.grid.spacing or 0.0)
        self.spread = SetConvolution(2 * spacing)
        self.network = UNet(dim_x, 1 + dim_y, dim_hidden, num_levels, kernel_size)
        self.gather = SetConvolution(2 * spacing)
        self.head = target_head(
            likelihood, dim_y, lambda n: MLP(dim_hidden, dim_hidden, n, depth=2), min_std
        )
        # All inputs are taken from the centre, so that a grid far from 0 costs no digits.
        axes = self.grid.axes(dim_x, self.network.multiple)
        centre = torch.stack([axis.mean() for axis in axes])
        buffers = {f"axis_{i}": axis - axis.mean() for i, axis in enumerate(axes)}
        for name, values in {"centre": centre, **buffers}.items():
            self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)
        self._has_warned = False
        self.watch.watched = range(dim_x, dim_x + dim_y)

    def on(self, low: float | tuple[float, ...], high: float | tuple[float, ...]) -> "ConvCNP":
        """The same model on another range of inputs, with a grid as dense as in training.

        Parameters are shared: training one trains both. States do not go from one to the other.

        Args:
            low: lower end of the range, one number for all inputs or one each, in the units of
                the model.
            high: upper end.

        Raises:
            InputError: if the range is none.
        """
        grid = self.grid.on(*self._own_range(low, high), self.dim_x)
        with torch.random.fork_rng(devices=[]):
            model = type(self)(**self.hparams | {"grid": grid})
        parameter = next(self.parameters())
        model.to(parameter.device, parameter.dtype).train(self.training)
        for name, module in self.named_children():
            setattr(model, name, module)
        model.watch = self.watch
        return model

    def _forget(self, state: Any, points: Points) -> Any:
        left: Any = super()._forget(state, points)
        density, before = (z.moments.values[:, 0].flatten(1) for z in (left, state))
        wrong = (density < -_ROUNDING * (1 + before)).any(dim=-1)
        if wrong.any():
            task = int(wrong.nonzero()[0])
            raise InputError(
                f"forgetting these points would leave task {task} with a density of "
                f"{float(density[task].min()):.3g}: the state has never absorbed them"
            )
        return left

    def _update(self, state: Any, points: Points) -> Any:
        _check_grid(state.moments.grid, self.grid, "the model")
        return super()._update(state, points)

    def _query(self, state: ConvState, xt: Tensor) -> Distribution:
        _check_grid(state.moments.grid, self.grid, "the model")
        function, axes = self._solved(state).posterior, self._axes(xt.dtype)

        def encoding(x: Tensor) -> Tensor:
            return self.gather.to_points(self._seen(x).to(x.dtype), function, axes)

        if torch.is_grad_enabled():
            return self.head(encoding(xt))
        self._warn_if_outside("targets", xt)
        parts = (self.head.parts(encoding(x)) for x in xt.split(self.targets_at_a_time, dim=1))
        return self.head.distribution(*(torch.cat(z, dim=1) for z in zip(*parts)))

    def _absorb(self, points: Points) -> GridSums:
        x = points.x if points.mask is None else points.x[points.mask]
        if not torch.is_grad_enabled():
            self._warn_if_outside("points", x)
        y = points.y.double()
        values = torch.cat([torch.ones_like(y[..., :1]), y], dim=-1)
        if points.mask is not None:
            values = values.masked_fill(~points.mask[..., None], 0.0)
        sums = self.spread.to_grid(self._seen(points.x), values, self._axes(torch.float64))
        return GridSums(y.square().sum(dim=1), points.count, sums, self.grid)

    def _state(self, moments: GridSums) -> ConvState:
        density, signal = moments.values[:, :1], moments.values[:, 1:]
        function = torch.cat([density, signal / (density + 1e-8)], dim=1)
        return ConvState(moments, self.network(function.to(self._inputs.dtype)))

    def _seen(self, x: Float[Tensor, "*batch dim_x"]) -> Float[Tensor, "*batch dim_x"]:
        """Inputs from the centre of the grid, in float64."""
        return x.double() - self.centre

    def _axes(self, dtype: torch.dtype) -> list[Tensor]:
        return [getattr(self, f"axis_{index}").to(dtype) for index in range(self.dim_x)]

    def _warn_if_outside(self, what: str, x: Float[Tensor, "*batch dim_x"]) -> None:
        """Say once that inputs are outside the grid, and how to mend it."""
        if self._has_warned or torch.compiler.is_compiling():
            return
        bound = torch.stack([axis[-1] for axis in self._axes(torch.float64)])
        if not (self._seen(x).abs() > bound).any():
            return
        self._has_warned = True
        low, high = ((self.centre + sign * bound).tolist() for sign in (-1, 1))
        warnings.warn(
            f"{what} are outside the grid with its margin ({self.watch.between(low, high)}): they "
            f"are hardly seen. model.on(low, high) has the same weights on another range (said "
            f"once)",
            DataWarning,
            stacklevel=2,
        )


def _check_grid(mine: Grid, other: Grid, whose: str) -> None:
    """Refuse a state on another grid, whose numbers mean something else."""
    if mine != other:
        raise InputError(
            f"the state is on a grid from {mine.low} to {mine.high} with nodes {mine.spacing:g} "
            f"apart, {whose} on one from {other.low} to {other.high} with nodes {other.spacing:g} "
            f"apart: condition again with model.on(low, high), to have all on the same"
        )
