"""ConvCNP: a grid holds the sums of the context, and convolutions make functions of them."""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributions import Distribution

from npbench.blocks import MLP
from npbench.blocks.set_convolution import Grid, SetConvolution
from npbench.blocks.unet import UNet
from npbench.distributed import all_sum
from npbench.errors import InputError
from npbench.likelihoods import Likelihood, target_head
from npbench.models.contracts.inputs import check_batch
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import NeuralProcess, merge_all, records_arguments
from npbench.models.contracts.saved_state import SavedState
from npbench.structure import TensorRecord

# Without gradients so many points are absorbed, or targets predicted, at a time.
_INFERENCE_CHUNK = 8192
# Relative to what was there before, what subtraction may leave below 0 by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class GridSums(TensorRecord):
    """The sums over points of ψ(u − x) [1, y] at every node u, in float64, and their number."""

    values: Float[Tensor, "batch dim_y_and_1 *nodes"]
    count: Integer[Tensor, "batch"]

    def merge(self, other: "GridSums") -> "GridSums":
        """The sums over both sets of points."""
        return GridSums(self.values + other.values, self.count + other.count)

    def remove(self, other: "GridSums") -> "GridSums":
        """The sums without the other's points, which these have in them."""
        return GridSums(self.values - other.values, self.count - other.count)


@dataclass(frozen=True, eq=False)
class ConvState(SavedState):
    """All that the model keeps of its context: sums on a grid, whatever the number of points.

    `encoding`, what convolutions make of them, follows from `sums`; it is None right after `merge`,
    which knows no model, until the model's `merge` or `query` works it out.
    """

    sums: GridSums
    encoding: Float[Tensor, "batch dim_hidden *nodes"] | None
    grid: Grid

    def merge(self, other: "ConvState") -> "ConvState":
        """The state of the union of two contexts: a sum, exact in any order and tree of merges.

        Raises:
            InputError: if the two are states of different numbers of tasks, or on other grids.
        """
        _check_grid(other.grid, self.grid, "the other state")
        mine, theirs = self.sums.values.shape, other.sums.values.shape
        if mine != theirs:
            raise InputError(
                f"states with sums of shapes {list(mine)} and {list(theirs)}, [tasks, outputs + 1, "
                f"nodes …], do not merge"
            )
        return type(self)(self.sums.merge(other.sums), None, self.grid)

    def _tensors_to_save(self) -> dict[str, Tensor]:
        return {"sums.values": self.sums.values, "sums.count": self.sums.count}

    def _notes(self) -> dict[str, str]:
        return {"grid": json.dumps(asdict(self.grid))}

    @classmethod
    def _from_file(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> "ConvState":
        fields = json.loads(notes["grid"])
        ends = {name: tuple(fields[name]) for name in ("low", "high")}
        sums = GridSums(tensors["sums.values"], tensors["sums.count"])
        return cls(sums, None, Grid(**fields | ends))


class ConvCNP(NeuralProcess):
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

    def on(self, low: float | tuple[float, ...], high: float | tuple[float, ...]) -> "ConvCNP":
        """The same model on another range of inputs, with a grid as dense as in training.

        Parameters are shared: training one trains both. States do not go from one to the other.

        Args:
            low: lower end of the range, one number for all inputs or one each.
            high: upper end.

        Raises:
            InputError: if the range is none.
        """
        grid = self.grid.on(low, high, self.dim_x)
        with torch.random.fork_rng(devices=[]):
            model = type(self)(**self.hparams | {"grid": grid})
        parameter = next(self.parameters())
        model.to(parameter.device, parameter.dtype).train(self.training)
        for name, module in self.named_children():
            setattr(model, name, module)
        return model

    def merge(self, *states: ConvState) -> ConvState:
        """The state of the union of one context or more, ready to be queried."""
        if not states:
            raise InputError("merge takes one state or more; condition on no points for a prior")
        return merge_all(states, finish=self._encoded)

    def all_merge(self, state: ConvState, group: ProcessGroup | None = None) -> ConvState:
        """The collective form of `merge`: one sum over ranks; see `npbench.distributed.all_sum`.

        Args:
            state: of this rank's shard of the context, which may be empty.
            group: the ranks that share the context; by default all.

        Raises:
            InputError: if there is no process group, or this process is not in it.
        """
        return self._state(all_sum(self._sums(state), group, self.parameters()))

    def forget(
        self,
        state: ConvState,
        x: Float[Tensor, "batch points dim_x"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> ConvState:
        """The state without these points, which it has absorbed before: the inverse of `update`.

        A subtraction in float64: exact but for rounding, however few points are left.

        Raises:
            InputError: as `update`; and if the state cannot have absorbed the points.
        """
        points = self._inputs.points("x", x, "y", y, mask)
        check_batch("x", points.x, state.batch_size)
        before = self._sums(state)
        left = before.remove(self._absorb(points))
        density = left.values[:, 0].flatten(1)
        floor = -_ROUNDING * (1 + before.values[:, 0].flatten(1))
        wrong = (left.count < 0) | (density < floor).any(dim=-1)
        if wrong.any():
            task = int(wrong.nonzero()[0])
            raise InputError(
                f"forgetting these points would leave task {task} with {int(left.count[task])} "
                f"points and a density of {float(density[task].min()):.3g}: the state has never "
                f"absorbed them"
            )
        return self._state(left)

    def _condition(self, chunks: Iterator[Points]) -> ConvState:
        return merge_all(map(self._absorb, chunks), finish=self._state)

    def _update(self, state: ConvState, points: Points) -> ConvState:
        return self._state(self._sums(state).merge(self._absorb(points)))

    def _query(self, state: ConvState, xt: Tensor) -> Distribution:
        self._sums(state)
        if not torch.is_grad_enabled():
            self._warn_if_outside("targets", xt)
        encoding = cast(Tensor, self._encoded(state).encoding)
        size, axes = xt.shape[1], self._axes(xt.dtype)
        if not torch.is_grad_enabled():
            size = _INFERENCE_CHUNK
        parts = (
            self.head.parts(self.gather.to_points(self._seen(x).to(x.dtype), encoding, axes))
            for x in xt.split(size, dim=1)
        )
        return self.head.distribution(*(torch.cat(z, dim=1) for z in zip(*parts)))

    def _absorb(self, points: Points) -> GridSums:
        x = points.x if points.mask is None else points.x[points.mask]
        if not torch.is_grad_enabled():
            self._warn_if_outside("points", x)
        values = torch.cat([torch.ones_like(points.y[..., :1]), points.y], dim=-1).double()
        if points.mask is not None:
            values = values.masked_fill(~points.mask[..., None], 0.0)
        sums = self.spread.to_grid(self._seen(points.x), values, self._axes(torch.float64))
        return GridSums(sums, points.count)

    def _state(self, sums: GridSums) -> ConvState:
        density, signal = sums.values[:, :1], sums.values[:, 1:]
        function = torch.cat([density, signal / (density + 1e-8)], dim=1)
        return ConvState(sums, self.network(function.to(self._inputs.dtype)), self.grid)

    def _encoded(self, state: ConvState) -> ConvState:
        return state if state.encoding is not None else self._state(self._sums(state))

    def _sums(self, state: ConvState) -> GridSums:
        _check_grid(state.grid, self.grid, "the model")
        return state.sums

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
        warnings.warn(
            f"{what} are outside the grid from {self.grid.low} to {self.grid.high} and its margin: "
            f"they are hardly seen. model.on(low, high) has the same weights on another range "
            f"(said once)",
            stacklevel=2,
        )

    def _chunk_size(self) -> int | None:
        return None if torch.is_grad_enabled() else _INFERENCE_CHUNK


def _check_grid(mine: Grid, other: Grid, whose: str) -> None:
    """Refuse a state on another grid, whose numbers mean something else."""
    if mine != other:
        raise InputError(
            f"the state is on a grid from {mine.low} to {mine.high} with nodes {mine.spacing:g} "
            f"apart, {whose} on one from {other.low} to {other.high} with nodes {other.spacing:g} "
            f"apart: condition again with model.on(low, high), to have all on the same"
        )
