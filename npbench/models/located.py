"""Located CMANP: constant memory whose latents have places, at the accuracy of full attention."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from npbench.attention import AttentionState
from npbench.attention.rotary import Rotary
from npbench.blocks.layers import MLP, LayerConfig
from npbench.blocks.located import At, LocatedDecoder, LocatedMix
from npbench.blocks.pack import Pack, near_first, state_of
from npbench.blocks.places import Locations, Places, offsets
from npbench.blocks.scales import Scales
from npbench.blocks.windows import Windows, padded_groups
from npbench.errors import InputError
from npbench.likelihoods import Likelihood, target_head
from npbench.models.contracts.constant_memory import (
    ConstantMemoryProcess,
    ConstantMemoryState,
    check_chunk_size,
)
from npbench.models.contracts.memory import MemoryView
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import records_arguments
from npbench.task import Task

# More places than these learn of each other in windows.
_MOST_TOGETHER = 1024
# Windows, and targets in them, at a time.
_WINDOWS, _TARGETS_OF_WINDOWS = 32, 16_384
# Pairs of points and places up to which all of them are scored at once.
_FEW_PAIRS = 2**16


@dataclass(frozen=True, eq=False)
class LocatedState(ConstantMemoryState):
    """All that a located model keeps of its context, and the places that it is kept at.

    `attention` is the state of the `Pack` and `latents` are what `Mix` makes of it; both have a
    first dimension of 1, as of a model with one block.
    """

    places: Places

    def merge(self, other: "LocatedState") -> "LocatedState":
        """The state of the union of two contexts, exact in any order and any tree of merges.

        Raises:
            InputError: if the two are states at different places, or of different numbers of tasks.
        """
        check_places(other.places, self.places, "the other state")
        return super().merge(other)

    def _notes(self) -> dict[str, str]:
        return {"places": json.dumps(asdict(self.places))}

    @classmethod
    def _from_file(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> "LocatedState":
        fields = json.loads(notes["places"])
        ends = {name: tuple(fields[name]) for name in ("low", "high")}
        attention = AttentionState(tensors["attention.lse"], tensors["attention.out"])
        return cls(attention, tensors.get("latents"), Places(**fields | ends))


class LocatedCMANP(ConstantMemoryProcess):
    r"""Constant Memory Attentive Neural Process whose latents have places in the inputs' space.

    Latents at places $u_l$ keep of the points near them what attention with a kernel of distance
    keeps, in an `AttentionState` of constant size (`Pack`); they learn of each other, and targets
    learn of them, by attention that knows nothing but differences of positions
    (`LocatedAttention`):

    $$S = \mathrm{Pack}(\{x_j, y_j\} \to u), \qquad Z = \mathrm{Mix}(\mathrm{readout}(S)), \qquad
      X_0 = q, \quad X_i = \mathrm{FF}(\mathrm{Attn}(X_{i-1} \to Z))$$
    $$y_t \sim \mathcal{N}(\mu, \sigma^2), \qquad [\mu, \sigma] = \mathrm{head}(\mathrm{LN}(X_K))$$

    with one learned q for all targets. It is exact in any order, in chunks and in merges as `CMANP`
    is, and takes its verbs; a point costs no more where there are more places. Moving all points,
    targets and places together changes nothing, so that `on` gives the same weights on another
    range.

    A target far outside the places is predicted as if there were no points at all: its encoding
    moves to that of the prior with the distance, and a warning says so once.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_model: width D.
        num_heads: heads of the attention among latents and from targets.
        num_layers: number of layers in which latents learn of each other.
        num_query_layers: number K of layers in which targets learn of latents.
        dim_feedforward: hidden width of the feed-forward layers and of the head.
        places: where the latents are.
        scales: lengths of the heads' kernels and frequencies of positions; by default
            `Scales.of(dim_x)`, for a box of side 4.
        content: whether points are also scored by what they are, for inputs that are not spatial.
            The model then knows where inputs are, not only how far apart.
        dropout: rate after each feed-forward layer.
        bound_std: keep the standard deviation above 0.05.
        max_density: for streams: number of context points in a unit of volume beyond which a place
            counts no more of them, so that it knows from training what so many points mean.
        context_chunk_size: as of `CMANP`, with 65,536 points at a time where it is None and no
            gradients are recorded.
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.
        window: side of the windows (`Windows`) in which latents learn of each other, and targets of
            latents, for ranges much wider than that of training; by default all see all.

    Example:
        >>> model = LocatedCMANP(dim_x=1, dim_y=1, num_layers=1).eval()
        >>> x, y = torch.linspace(-2, 2, 100).reshape(1, -1, 1), torch.randn(1, 100, 1)
        >>> state = model.update(model.condition(x[:, :50], y[:, :50]), x[:, 50:], y[:, 50:])
        >>> moved = model.on(8.0, 12.0)
        >>> same = moved.query(moved.condition(x + 10, y), x + 10).mean
        >>> torch.allclose(model.query(state, x).mean, same, atol=1e-4)
        True
    """

    state_class = LocatedState
    points_at_a_time = 65_536

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
        max_density: float | None = None,
        likelihood: Likelihood = "gaussian",
        window: float | None = None,
    ) -> None:
        super().__init__(dim_x, dim_y)
        self.context_chunk_size = check_chunk_size(context_chunk_size)
        scales = Scales.of(dim_x) if scales is None else scales
        scales.check(num_heads)
        # Of inputs the places tell what is far; they may be moved after training.
        self.watch.watched = range(dim_x, dim_x + dim_y)
        if max_density is not None and not max_density > 0:
            raise InputError(f"max_density={max_density} must be above 0")
        self.places = places.resolved(dim_x)
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout, norm_residual=False)
        dim_head = dim_model // num_heads
        self.locations = Locations(places, dim_x, scales.reach, scales.margin)
        self.windows = None
        if window is not None:
            if places.learned or content:
                raise InputError("window is for places that are not learned and have no content")
            self.windows = Windows(places, dim_x, window)
            self.targets_at_a_time = _TARGETS_OF_WINDOWS
        self.rotary = Rotary(dim_x, dim_head, *scales.frequencies)
        num_places = len(self.locations.initial)
        self.pack = Pack(
            dim_x, dim_y, dim_model, dim_head, scales.pack,
            offsets(scales.pack, self.locations.step, dim_x), num_places if content else None,
            max_density,
        )  # fmt: skip
        self.mix = LocatedMix(config, scales.mix, num_layers)
        self.decoder = LocatedDecoder(config, scales.query, num_query_layers)
        self.head = target_head(
            likelihood,
            dim_y,
            lambda n: MLP(dim_model, dim_feedforward, n, depth=2),
            min_std=0.05 if bound_std else None,
        )

    def on(
        self,
        low: float | tuple[float, ...],
        high: float | tuple[float, ...],
        window: float | None = None,
    ) -> "LocatedCMANP":
        """The same model on another range of inputs, with places as far apart as in training.

        Parameters are shared: training one trains both. States do not go from one to the other.

        Args:
            low: lower end of the range, one number for all inputs or one each, in the units of
                the model.
            high: upper end.
            window: side of the windows in which latents learn of each other. By default all see all
                up to 1,024 places; where there are more, it is the longest side of the range that
                the model is on now.

        Raises:
            InputError: if the range is none, or if the model's places are learned or have content,
                which belong to the range of training.
        """
        if self.places.learned or self.pack.queries is not None:
            raise InputError(
                "places that are learned, or that score content, cannot move to another range: "
                "train with learned=False and content=False for models that can"
            )
        before = self.places
        places = self.places.on(*self._own_range(low, high), self.dim_x)
        changed: dict[str, Any] = {"places": places}
        if window is None and places.number > max(_MOST_TOGETHER, before.number):
            window = self.hparams.get("window") or float(before.box(self.dim_x)[2].max())
        if window is not None:
            changed["window"] = window
        with torch.random.fork_rng(devices=[]):
            model = type(self)(**self.hparams | changed)
        parameter = next(self.parameters())
        model.to(parameter.device, parameter.dtype).train(self.training)
        for name, module in self.named_children():
            if name not in ("locations", "windows"):
                setattr(model, name, module)
        model.watch = self.watch
        return model

    def memory_layers(self, batch: Task) -> list[MemoryView]:
        """What the places keep of the contexts of tasks; it is one layer."""
        context, _ = self._inputs.of_task(batch)
        attention, places = self._absorb(context), self.locations.positions
        packed = self.pack.readout(attention[0], places, self.rotary)
        at = self._at(context.x)
        log_weights = self.pack.log_weights(at, context.y, context.mask, places)
        return [MemoryView(packed, self._encode(attention)[0], log_weights)]

    def _states(self, chunks: Iterable[Points]) -> Iterator[AttentionState]:
        for points in chunks:
            if not torch.is_grad_enabled():
                real = points.x if points.mask is None else points.x[points.mask]
                self.locations.warn_if_far("points", real, self.watch.between)
            yield state_of(self._sums(points)[None])

    def _fold(self, points: Points, size: int) -> AttentionState:
        total = 0.0
        for chunk in points.blocks(size):
            total = total + checkpoint(
                self._sums, chunk, use_reentrant=False, preserve_rng_state=False
            )
        return state_of(total[None])

    def _sums(self, points: Points) -> Float[Tensor, "batch heads places dim_value"]:
        places = self.locations.positions
        pairs = points.x.shape[1] * len(places)
        if torch.is_grad_enabled() or pairs < _FEW_PAIRS:
            return self.pack.sums(self._at(points.x), points.y, points.mask, places)
        tasks = []
        for index in range(len(points.x)):
            order = near_first(points.x[index], self.locations.step)
            task = points.map(lambda z, i=index, order=order: z[i, order][None])
            at = self._at(task.x)
            tasks.append(self.pack.sums_of_many(at, task.y, task.mask, places))
        return torch.cat(tasks)

    def _encode(self, attention: AttentionState) -> Float[Tensor, "1 batch places dim_model"]:
        latents = self.pack.readout(attention[0], self.locations.positions, self.rotary)
        if self.windows is None:
            return self.mix(latents, self._places_at)[None]
        mixed = []
        for members in self.windows.members.split(_WINDOWS):
            seen = latents[:, members]
            mixed.append(self.mix(seen.flatten(0, 1), self._places_at).view_as(seen))
        return torch.cat(mixed, dim=1)[:, self.windows.owner, self.windows.slot][None]

    def _decode(
        self,
        xt: Float[Tensor, "batch target dim_x"],
        latents: Float[Tensor, "1 batch places dim_model"],
    ) -> Float[Tensor, "batch target dim_model"]:
        if self.windows is None:
            encoding = self.decoder(self._at(xt), latents[0], self._places_at)
        else:
            pairs = zip(self.locations.seen(xt), latents[0])
            encoding = torch.stack([self._decode_by_windows(*pair, self.windows) for pair in pairs])
        nearness = self.locations.nearness(xt)[..., None]
        # With gradients nothing waits for values on the device, and the prior is always there.
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            if (nearness == 1).all():
                return encoding
            self.locations.warn_if_far("targets", xt, self.watch.between)
        return torch.lerp(self._prior_encoding(xt), encoding, nearness.to(encoding.dtype))

    def _decode_by_windows(
        self,
        x: Float[Tensor, "target dim_x"],
        latents: Float[Tensor, "places dim_model"],
        windows: Windows,
    ) -> Float[Tensor, "target dim_model"]:
        """Each target learns of the latents in the window that it is in the middle of."""
        window = windows.of(x)
        indices, encodings = [], []
        for table in padded_groups(window, _TARGETS_OF_WINDOWS):
            of_row = window[table[:, 0]]
            at = At.of(x[table] - windows.centres[of_row][:, None], self.rotary)
            encoding = self.decoder(at, latents[windows.members[of_row]], self._places_at)
            real = table >= 0
            indices.append(table[real])
            encodings.append(encoding[real])
        return torch.cat(encodings)[torch.cat(indices).argsort()]

    @torch.no_grad()
    def _prior_encoding(self, xt: Tensor) -> Float[Tensor, "1 1 dim_model"]:
        """The encoding of a target at the centre where there are no points."""
        positions = self._places_at.x[0]
        out = xt.new_zeros(1, self.pack.num_heads, len(positions), self.pack.dim_head)
        nothing = AttentionState(torch.full_like(out[..., 0], -torch.inf), out)
        latents = self.mix(self.pack.readout(nothing, positions, self.rotary), self._places_at)
        centre = At.of(torch.zeros_like(positions[None, :1]), self.rotary)
        return self.decoder(centre, latents, self._places_at)

    def _at(self, x: Float[Tensor, "batch points dim_x"]) -> At:
        return At.of(self.locations.seen(x), self.rotary)

    @property
    def _places_at(self) -> At:
        """Where the places are that see each other: all, or those of a window from its centre."""
        positions = self.locations.positions if self.windows is None else self.windows.positions
        return At.of(positions[None], self.rotary)

    def _attention(self, state: LocatedState) -> AttentionState:
        check_places(state.places, self.places, "the model")
        return super()._attention(state)

    def _state(self, attention: AttentionState) -> LocatedState:
        latents = self._encode(attention).to(attention.out.dtype)  # also under autocast
        return LocatedState(attention, latents, self.places)


def check_places(mine: Places, other: Places, whose: str) -> None:
    """Refuse a state at other places, whose numbers mean something else."""
    if mine != other:
        raise InputError(
            f"the state is at {mine.number} places from {mine.low} to {mine.high}, {whose} at "
            f"{other.number} places from {other.low} to {other.high}: condition again with "
            f"model.on(low, high), to have all at the same"
        )
