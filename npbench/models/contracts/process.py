"""The contract of every model: a state that absorbs data."""

import copy
import os
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn
from torch.distributions import Distribution, MixtureSameFamily

from npbench.choices import Choice
from npbench.errors import ChunkError, InputError
from npbench.likelihoods import CategoricalHead, NormalMixture, in_units
from npbench.models.contracts.inputs import Inputs, check_batch, check_no_frame
from npbench.models.contracts.points import Points
from npbench.models.contracts.ranges import Extent, Watch
from npbench.scaling import Scaling
from npbench.structure import TensorRecord, counted, in_bytes
from npbench.task import Task

if TYPE_CHECKING:
    from npbench.models.contracts.saved_state import SavedState

AnyState = TypeVar("AnyState", bound="State")
Part = TypeVar("Part", bound=TensorRecord)
Model = TypeVar("Model", bound="NeuralProcess")

# What `condition` and `query` take in place of tensors: an iterable of chunks, or a file.
Stream = Iterable | str | os.PathLike


@dataclass(frozen=True, eq=False)
class State(TensorRecord):
    """What a model keeps of its context, as immutable tensors.

    The same dimension of all of them counts the tasks: the first, unless `batch_dim` is another.
    """

    batch_dim: ClassVar[int] = 0

    @property
    def batch_size(self) -> int:
        """Number of tasks."""
        return next(self.tensors()).shape[self.batch_dim]

    def is_finite(self) -> bool:
        """Whether all numbers are finite: no value has overflowed on its way into the state."""
        return are_finite(self.tensors())

    def contents(self) -> str:
        """The number of tasks, and the bytes of the tensors."""
        return f"{counted(self.batch_size, 'task')}, {in_bytes(self.nbytes)}"

    def repeat(self: AnyState, times: int) -> AnyState:
        """All tasks, `times` times over."""
        return self.map(lambda tensor: torch.cat([tensor] * times, dim=self.batch_dim))


class Marginals(NamedTuple):
    """The mean and standard deviation of each target's value, taken by itself."""

    mean: Float[Tensor, "batch target dim_y"]
    std: Float[Tensor, "batch target dim_y"]


class Evaluation(NamedTuple):
    """What a model says of a task's targets: one pass serves all metrics.

    `pit` is the probability that a target's value is no greater than the true one, each by itself;
    it is not known of classes. `mixture` is what `_evaluate` gives beside the moments where a
    target's value, as the model's number, is not normal; `evaluate` makes `pit` of it.
    """

    log_likelihood: Float[Tensor, "batch"]
    mean: Float[Tensor, "batch target dim_y"]
    std: Float[Tensor, "batch target dim_y"]
    pit: Float[Tensor, "batch target dim_y"] | None = None
    mixture: NormalMixture | None = None


def records_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Keep the arguments of a model's `__init__` as its `hparams`, for checkpoints to hold.

    An argument that is a dataclass is kept as a dictionary of its fields, and several of them as a
    list of dictionaries, which JSON and a checkpoint that runs no code can hold; where a dataclass
    is expected, `__init__` takes such a dictionary too. One that is a `Choice` is kept with its
    class path.
    """

    @wraps(init)
    def recording(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        bound = signature(init).bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        for name, expected in get_type_hints(init).items():
            if kind := _dataclass_of(expected):
                arguments[name] = _as_dataclass(arguments.get(name), kind)
            elif choice := _choice_of(expected):
                arguments[name] = choice.of(arguments.get(name))
        init(*bound.args, **bound.kwargs)
        # Bases record their arguments too; those of the outermost class come last, and stay.
        self.hparams = {
            name: _as_dictionary(value) for name, value in arguments.items() if name != "self"
        }

    return recording


def _dataclass_of(annotation: Any) -> type | None:
    """The dataclass that an annotation is, or has as one of its alternatives."""
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if is_dataclass(kind)), None)


def _choice_of(annotation: Any) -> type[Choice] | None:
    """The contract of choices that an annotation is, or has as one of its alternatives."""
    kinds = get_args(annotation) or (annotation,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Choice)), None)


def _as_dataclass(value: Any, kind: type) -> Any:
    """A dictionary as the dataclass whose fields it has, and a list of them as a list of these."""
    if isinstance(value, list | tuple):
        return [_as_dataclass(each, kind) for each in value]
    return kind(**value) if isinstance(value, dict) else value


def _as_dictionary(value: Any) -> Any:
    """A choice as `Choice.of` takes it; a dataclass, or a list of them, as `_as_dataclass` takes
    them; anything else as it is."""
    if isinstance(value, Choice):
        return value.described()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple) and any(map(is_dataclass, value)):
        return [_as_dictionary(each) for each in value]
    return value


class NeuralProcess(nn.Module, ABC):
    """Predictions at new inputs from a context set, through a state that absorbs data.

        state = model.condition(xc, yc)      # a context set becomes a state
        state = model.update(state, x, y)    # exact: the same as conditioning on all of it
        dist  = model.query(state, xt)       # a torch distribution over the targets

    A model implements `_condition`, `_update` and `_query`; the public methods check what they are
    given first, so the private ones meet finite tensors of the right shapes. Its `__init__` is
    decorated with `records_arguments`. A model whose targets depend on each other has its own
    `_evaluate` or `_sample` as well. A model with a `scaling` is given values in the units of the
    data and answers in them; its private methods know nothing of it.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
    """

    hparams: dict[str, Any]

    scores_jointly: ClassVar[bool] = False
    """Whether `log_likelihood` scores all targets together; its ceiling is then higher."""

    state_class: ClassVar["type[SavedState] | None"] = None
    """The class of the model's states, if these are of constant size and have `save` and `load`."""

    def __init__(self, dim_x: int, dim_y: int) -> None:
        super().__init__()
        if dim_x < 1 or dim_y < 1:
            raise InputError(f"dim_x={dim_x} and dim_y={dim_y} must be 1 or more")
        self.dim_x = dim_x
        self.dim_y = dim_y
        self.watch = Watch(dim_x, dim_y)

    @property
    def scaling(self) -> Scaling | None:
        """The units in which the model is given values, and answers; None: its own numbers.

        States and `loss` are in the model's numbers: a state means the same in any units, and one
        that was made in other units than those of the query is not noticed in Python, while files
        tell. Checkpoints and state files keep the units.

        Raises:
            InputError: on setting those of other numbers of columns, or units for classes.
        """
        return self.watch.scaling

    @scaling.setter
    def scaling(self, scaling: Scaling | None) -> None:
        if scaling is not None:
            if (scaling.dim_x, scaling.dim_y) != (self.dim_x, self.dim_y):
                each = ", each of them by itself" if scaling.each_output else ""
                raise InputError(
                    f"the columns {', '.join([*scaling.x_names, *scaling.y_names])} are "
                    f"{scaling.dim_x} number(s) of inputs and {scaling.dim_y} of outputs{each}, "
                    f"for a model with dim_x={self.dim_x} and dim_y={self.dim_y}; set these to "
                    f"{scaling.dim_x} and {scaling.dim_y}, or name other columns"
                )
            if self.predicts_classes and any(column.kind != "none" for column in scaling.y):
                raise InputError(
                    'outputs that are classes take the scaling "none": they have no units'
                )
        self.watch.scaling = scaling

    def scaled(self: Model, scaling: Scaling | None) -> Model:
        """The same model in other units: it shares its parameters with this one.

        Raises:
            InputError: as on setting `scaling`.

        Example:
            >>> from npbench.models import CNP
            >>> from npbench.scaling import Column, Scaling
            >>> celsius = Column("temperature", "standard", shift=15.0, scale=10.0)
            >>> model = CNP(dim_x=1, dim_y=1).scaled(Scaling((Column("day"),), (celsius,)))
            >>> state = model.condition(np.array([[0.0], [1.0]]), np.array([[14.0], [17.0]]))
            >>> model.query(state, np.array([[2.0]])).mean.dtype
            torch.float64
        """
        model = copy.copy(self)
        model.watch = self.watch.anew()
        model.scaling = scaling
        return model

    def of_output(self: Model, name: str) -> Model:
        """The same model in the units of one output, where it takes each output by itself.

        It shares its parameters with this one, and warns of no column that this one has warned of.

        Raises:
            InputError: if the model has no units of such an output.

        Example:
            >>> from npbench.models import CNP
            >>> from npbench.scaling import Column, Scaling
            >>> y = Column("celsius", "standard", 15.0, 10.0), Column("hPa", "standard", 1010.0)
            >>> model = CNP(dim_x=1, dim_y=1).scaled(Scaling((Column("day"),), y, each_output=True))
            >>> model.of_output("hPa").columns
            (['day'], ['hPa'])
        """
        if self.scaling is None:
            raise InputError(f"the model has no units, and so none of {name}")
        if (scaling := self.scaling.of_output(name)) == self.scaling:
            return self
        model = copy.copy(self)
        model.watch = copy.copy(self.watch)
        model.scaling = scaling
        return model

    def of_task(self: Model, task: Task) -> Model:
        """The model in the units of the output that a batch of tasks is of, if it is of one."""
        if task.output is None or self.scaling is None:
            return self
        return self.of_output(task.output)

    @property
    def columns(self) -> tuple[list[str], list[str]]:
        """The names of the columns of inputs and outputs: those of the data, where the model has
        its units, else x0, x1, … and y0, …."""
        if self.scaling is not None:
            return self.scaling.x_names, self.scaling.y_names
        return [f"x{i}" for i in range(self.dim_x)], [f"y{i}" for i in range(self.dim_y)]

    def check_columns(self, x: Sequence[str], y: Sequence[str] | None = None) -> None:
        """Refuse other numbers of columns than the model takes.

        Args:
            x: names of the inputs.
            y: names of the outputs, if there are any.

        Raises:
            InputError: if there are more or fewer; says what was expected.
        """
        for part, given, own in zip("xy", (x, y), self.columns):
            if given is None or len(given) == len(own):
                continue
            expected = f"was trained with dim_{part}={len(own)}"
            if self.scaling is not None:
                expected = f"has the units of {', '.join(own)}"
            what = "inputs" if part == "x" else "outputs"
            raise InputError(
                f"the model {expected}, and {len(given)} column(s) of {what} are named: "
                f"{','.join(given)}"
            )

    @property
    def predicts_classes(self) -> bool:
        """Whether outputs are one-hot classes, of which the model predicts probabilities."""
        return isinstance(getattr(self, "head", None), CategoricalHead)

    @abstractmethod
    def _condition(self, chunks: Iterator[Points]) -> State:
        """The state of the union of all chunks; there is one at least, perhaps of no points."""

    @abstractmethod
    def _update(self, state: State, points: Points) -> State:
        """The state after more points."""

    @abstractmethod
    def _query(self, state: State, xt: Tensor) -> Distribution:
        """The prediction at `xt`."""

    def __repr__(self) -> str:
        return one_line(self)

    def condition(
        self,
        xc: Real[Tensor, "*batch context dim_x"] | np.ndarray | Stream,
        yc: Real[Tensor, "*batch context dim_y"] | np.ndarray | None = None,
        mask: Bool[Tensor, "*batch context"] | np.ndarray | None = None,
        chunk_size: int | None = None,
    ) -> State:
        """The state of a context set; an empty one gives the prior.

        Tensors and NumPy arrays, memory-mapped ones too, are brought to the model's type and
        device, and may be of one task: [context, dim_x].

        Args:
            xc: context inputs; or, in place of `xc`, `yc` and `mask`, a stream: an iterable of
                (x, y) or (x, y, mask) chunks such as a generator, a `DataLoader` or a `PointTable`,
                or the path of a Parquet or CSV file with columns x0, x1, …, y0, ….
            yc: context outputs.
            mask: True where a context point is real.
            chunk_size: embed and absorb that many points at a time. The result is the same; where
                the model streams, peak memory does not depend on the number of points.

        Raises:
            InputError: on a wrong width, shape or type, and on NaN or infinite values. In a stream
                it is a `ChunkError`, whose `state` is that of the chunks before.
            ValueOverflow: on values of which the model cannot compute finite numbers.

        Warns:
            DataWarning: once for each column, of values far outside those of training, where these
                are known; see `Watch`. In training, with gradients, values are not looked at.
        """
        return self._absorbed(self._condition, self._chunks(xc, yc, mask, chunk_size))

    def update(
        self,
        state: State,
        x: Real[Tensor, "*batch points dim_x"] | np.ndarray,
        y: Real[Tensor, "*batch points dim_y"] | np.ndarray,
        mask: Bool[Tensor, "*batch points"] | np.ndarray | None = None,
    ) -> State:
        """The state after more points: the same as conditioning on the union.

        Raises:
            InputError: as `condition`.
        """
        points = self._inputs.points("x", x, "y", y, mask)
        check_batch("x", points.x, state.batch_size)
        return self._absorbed(lambda chunks: self._update(state, next(chunks)), iter([points]))

    def query(
        self, state: State, xt: Real[Tensor, "*batch target dim_x"] | np.ndarray | Stream
    ) -> Distribution | Iterator[Distribution]:
        """The predictive distribution at `xt`.

        Args:
            state: of the context.
            xt: target inputs; or a stream of them, chunk by chunk as in `condition`, whose
                distributions come one after another (`npbench.predictions` writes them to a file).

        Raises:
            InputError: as `condition`, and when there are no targets.
        """
        if isinstance(xt, Tensor | np.ndarray):
            return self._in_units(self._query(state, self._targets(state, xt).x))
        check_no_frame("xt", xt)
        if not isinstance(xt, Stream):
            raise InputError(
                f"query takes a tensor, or an iterable of chunks, not {type(xt).__name__}"
            )
        chunks = self._inputs.target_chunks(xt, state.batch_size)
        return (
            self._in_units(self._query(state, self._looked_at(targets).x)) for targets in chunks
        )

    def marginals(
        self,
        state: State,
        xt: Real[Tensor, "*batch target dim_x"] | np.ndarray,
        mask: Bool[Tensor, "*batch target"] | np.ndarray | None = None,
    ) -> Marginals:
        """The mean and standard deviation of each target's value, taken by itself.

        Args:
            state: of the context.
            xt: target inputs.
            mask: True where a target is real: those of a joint model see each other.

        Raises:
            InputError: as `query`.
            ValueOverflow: where a prediction is not finite.
        """
        targets = self._targets(state, xt, mask)
        marginals = self._marginals_in_units(state, targets)
        if self._looks_at_values and not are_finite(marginals):
            raise self._overflow(self.watch.look(targets))
        return marginals

    def quantiles(
        self,
        state: State,
        xt: Real[Tensor, "*batch target dim_x"] | np.ndarray,
        levels: Sequence[float],
    ) -> Float[Tensor, "levels batch target dim_y"]:
        """The values below which each target's value lies with these probabilities, by itself.

        Args:
            state: of the context.
            xt: target inputs.
            levels: probabilities between 0 and 1.

        Raises:
            InputError: as `query`; on another level; and of a model of classes.

        Example:
            >>> from npbench.models import CNP
            >>> model = CNP(dim_x=1, dim_y=1)
            >>> x, y = torch.randn(2, 16, 10, 1)
            >>> model.quantiles(model.condition(x, y), x, [0.05, 0.5, 0.95]).shape
            torch.Size([3, 16, 10, 1])
        """
        if not levels or not all(0 < level < 1 for level in levels):
            raise InputError(f"levels={list(levels)} must be probabilities between 0 and 1")
        if self.predicts_classes:
            raise InputError("a model of classes predicts probabilities, which have no quantiles")
        mixture = self._marginal_mixture(state, self._targets(state, xt))
        quantiles = mixture.quantiles(torch.tensor(levels, device=mixture.mean.device))
        return quantiles if self.scaling is None else self.scaling.decode_y(quantiles)

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch target dim_x"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> Distribution:
        """`query(condition(xc, yc, mask), xt)`."""
        return self.query(self.condition(xc, yc, mask), xt)

    def evaluate(self, task: Task) -> Evaluation:
        """Each task's log-likelihood, and the mean, the standard deviation and the probability
        integral transform at each target."""
        if (of_output := self.of_task(task)) is not self:
            return of_output.evaluate(task)
        state, targets = self._conditioned(task)
        evaluation = self._evaluate(state, targets)
        moments: Marginals = Marginals(evaluation.mean, evaluation.std)
        pit = None
        if not self.predicts_classes:
            with torch.no_grad():
                mixture = evaluation.mixture or NormalMixture.of_moments(*moments)
                pit = mixture.cdf(targets.y)
        if self.scaling is None:
            return Evaluation(evaluation.log_likelihood, *moments, pit)
        if self.scaling.has_log_output:
            moments = self._marginals_in_units(state, targets)
        else:
            moments = self._decoded(moments)
        return Evaluation(evaluation.log_likelihood + self._log_slope(targets), *moments, pit)

    def log_likelihood(self, task: Task) -> Float[Tensor, "batch"]:
        """Each task's log-likelihood in nats: summed over outputs, averaged over real targets.

        Joint and autoregressive models give the joint log-density divided by the number of targets.
        """
        if (of_output := self.of_task(task)) is not self:
            return of_output.log_likelihood(task)
        state, targets = self._conditioned(task)
        log_likelihood = self._log_likelihood(state, targets)
        return log_likelihood if self.scaling is None else log_likelihood + self._log_slope(targets)

    def loss(self, task: Task) -> Float[Tensor, ""]:
        """What training minimises: the negative log-likelihood per target, averaged over tasks, of
        the model's numbers; that in other units differs by what no parameter changes."""
        return -self._log_likelihood(*self._conditioned(task)).mean()

    def sample(
        self,
        state: State,
        xt: Real[Tensor, "*batch target dim_x"] | np.ndarray,
        num_samples: int = 1,
    ) -> Float[Tensor, "samples batch target dim_y"]:
        """Draws of the targets' values.

        Raises:
            InputError: as `query`, and when `num_samples` is not 1 or more.
        """
        if num_samples < 1:
            raise InputError(f"num_samples={num_samples} must be 1 or more")
        xt = self._targets(state, xt).x
        with torch.no_grad():
            samples = self._sample(state, xt, num_samples)
            return samples if self.scaling is None else self.scaling.decode_y(samples)

    def _chunks(self, xc: Any, yc: Any, mask: Any, chunk_size: int | None) -> Iterator[Points]:
        """What `condition` is given, checked chunk by chunk."""
        size = self._chunk_size() if chunk_size is None else chunk_size
        if isinstance(xc, Tensor | np.ndarray):
            if yc is None:
                raise InputError("condition got context inputs xc without outputs yc")
            return self._inputs.slices(xc, yc, mask, size)
        check_no_frame("xc", xc)
        if not isinstance(xc, Stream):
            raise InputError(
                f"condition takes tensors, or an iterable of (x, y) chunks, not {type(xc).__name__}"
            )
        if yc is not None or mask is not None:
            raise InputError(
                f"condition takes tensors xc and yc, or an iterable of (x, y) chunks alone; "
                f"got xc of type {type(xc).__name__} with other arguments"
            )
        return self._inputs.chunks(xc, size)

    def _chunk_size(self) -> int | None:
        """How many points `condition` absorbs at a time where it is not told."""
        return None

    def _marginals(self, state: State, targets: Points) -> Marginals:
        dist = self._query(state, targets.x)
        return Marginals(dist.mean, dist.stddev)

    def _marginal_mixture(self, state: State, targets: Points) -> NormalMixture:
        """Each target's value by itself, as a mixture of normals."""
        return NormalMixture.of(self._query(state, targets.x))

    def _marginals_in_units(self, state: State, targets: Points) -> Marginals:
        if self.scaling is None:
            return self._marginals(state, targets)
        if not self.scaling.has_log_output:
            return self._decoded(self._marginals(state, targets))
        dist = in_units(self._marginal_mixture(state, targets).distribution, self.scaling)
        return Marginals(dist.mean, dist.stddev)

    def _decoded(self, marginals: Marginals) -> Marginals:
        """The same in units of which none is logarithmic."""
        assert self.scaling is not None
        std = marginals.std * self.scaling.output_scale(marginals.std)
        return Marginals(self.scaling.decode_y(marginals.mean), std)

    def _in_units(self, dist: Distribution) -> Distribution:
        if self.scaling is None or self.predicts_classes:
            return dist
        return in_units(dist, self.scaling)

    def _log_slope(self, targets: Points) -> Float[Tensor, "batch"]:
        """What the log-likelihood per target is higher by in the model's units."""
        assert self.scaling is not None
        return masked_mean(self.scaling.log_slope(targets.y), targets.mask)

    def _evaluate(self, state: State, targets: Points) -> Evaluation:
        dist = self._query(state, targets.x)
        log_likelihood = masked_mean(dist.log_prob(targets.y), targets.mask)
        mixture = None
        if isinstance(dist, MixtureSameFamily):
            with suppress(TypeError):  # of what is not normal
                mixture = NormalMixture.of(dist)
        return Evaluation(log_likelihood, dist.mean, dist.stddev, mixture=mixture)

    def _log_likelihood(self, state: State, targets: Points) -> Float[Tensor, "batch"]:
        return self._evaluate(state, targets).log_likelihood

    def _sample(
        self, state: State, xt: Tensor, num_samples: int
    ) -> Float[Tensor, "samples batch target dim_y"]:
        samples = self._query(state, xt).sample(torch.Size([num_samples]))
        return samples.reshape(num_samples, *xt.shape[:2], self.dim_y)

    @property
    def _inputs(self) -> Inputs:
        parameter = next(self.parameters())
        dtype, device = parameter.dtype, parameter.device
        return Inputs(self.dim_x, self.dim_y, dtype, device, self.predicts_classes, self.scaling)

    def _targets(self, state: State, xt: Any, mask: Any = None) -> Points:
        targets = self._inputs.targets("xt", xt, mask)
        check_batch("xt", targets.x, state.batch_size)
        return self._looked_at(targets)

    @property
    def _looks_at_values(self) -> bool:
        """Whether values and states are looked at: not in training, which waits for no device."""
        is_training = self.training and torch.is_grad_enabled()
        return not (is_training or torch.compiler.is_compiling())

    def _looked_at(self, targets: Points) -> Points:
        """The targets; a warning says so if they are far outside those of training."""
        if self._looks_at_values and self.watch.ranges is not None:
            self.watch.warn_if_far(self.watch.look(targets))
        return targets

    def _overflow(self, extent: Extent) -> InputError:
        """Why what the model has computed of such points is not finite."""
        if not are_finite(self.parameters()):
            return InputError(
                "the model has weights that are NaN or infinite; load a checkpoint of before they "
                "became so, or train it anew"
            )
        return self.watch.overflow(extent, self._inputs.dtype)

    def _absorbed(
        self, absorb: Callable[[Iterator[Points]], State], chunks: Iterator[Points]
    ) -> State:
        """The state that `absorb` makes of the chunks, at which the watch looks; it is finite."""
        if not self._looks_at_values:
            return absorb(chunks)
        extent = Extent.of_none(self.dim_x + self.dim_y)
        state = absorb(extent.passing(chunks))
        if not state.is_finite():
            raise self._overflow(extent)
        self.watch.warn_if_far(extent)
        return state

    def _own_range(
        self, low: float | tuple[float, ...], high: float | tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The ends of a range of inputs as the model's numbers, one each."""
        ends = []
        for end in (low, high):
            numbers = end if isinstance(end, tuple | list) else (end,) * len(self.columns[0])
            if self.scaling is not None and len(numbers) == len(self.scaling.x):
                if any(column.width > 1 for column in self.scaling.x):
                    raise InputError("inputs that are circular have no range to move to")
                values = torch.tensor(numbers, dtype=torch.float64)
                numbers = self.scaling.encode_x(values).tolist()
            ends.append(tuple(map(float, numbers)))
        return ends[0], ends[1]

    def _conditioned(self, task: Task) -> tuple[State, Points]:
        """The state of a task's context, and its targets: checked, with 0 at padding."""
        context, targets = self._inputs.of_task(task)
        size = self._chunk_size()
        chunks = iter([context]) if size is None else context.blocks(size)
        return self._condition(chunks), targets


def one_line(model: nn.Module) -> str:
    """A model as one line: the arguments that it must have or that differ from their defaults, its
    size and its device. `print(*model.named_children(), sep="\\n")` shows what it is made of.

    Example:
        >>> from npbench.models import CNP
        >>> CNP(dim_x=1, dim_y=1, dim_hidden=64)
        CNP(dim_x=1, dim_y=1, dim_hidden=64; 54,594 parameters on cpu)
    """
    defaults = {name: p.default for name, p in signature(type(model).__init__).parameters.items()}
    defaults = {name: asdict(v) if is_dataclass(v) else v for name, v in defaults.items()}
    hparams: dict[str, Any] = getattr(model, "hparams", {})
    arguments = [
        f"{name}={'{…}' if isinstance(value, dict) else reprlib.repr(value)}"
        for name, value in hparams.items()
        if value != defaults.get(name, Parameter.empty)
    ]
    number = sum(parameter.numel() for parameter in model.parameters())
    device = next(model.parameters()).device
    return f"{type(model).__name__}({', '.join(arguments)}; {number:,} parameters on {device})"


def merge_all(parts: Iterable[Part], finish: Callable[[Part], Any] = lambda part: part) -> Any:
    """All parts merged, and finished; a `ChunkError` takes what there is until then with it."""
    whole = None
    try:
        for part in parts:
            whole = part if whole is None else whole.merge(part)
    except ChunkError as error:
        error.state = None if whole is None else finish(whole)
        raise
    return finish(whole)


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether none of the tensors holds NaN or an infinite number; one transfer from the device."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


@contextmanager
def unwatched(model: nn.Module) -> Iterator[None]:
    """For numbers that mean nothing, such as those that time a model: nothing is said of them, and
    they have no units."""
    watch, model.watch = model.watch, Watch(model.dim_x, model.dim_y)
    try:
        yield
    finally:
        model.watch = watch


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode; after it every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; after it every module is in the mode it was in."""
    with in_mode(model, training=False), torch.no_grad():
        yield


def masked_mean(
    values: Float[Tensor, "batch points"], mask: Bool[Tensor, "batch points"] | None
) -> Float[Tensor, "batch"]:
    """The mean over the real points of each row."""
    if mask is None:
        return values.mean(dim=-1)
    return values.masked_fill(~mask, 0.0).sum(dim=-1) / mask.sum(dim=-1)
