"""The units of data: from the values of columns to the numbers that a model computes with."""

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from npbench.errors import DataWarning, InputError
from npbench.point_files import DateUnit

Kind = Literal["standard", "min-max", "log", "circular", "none"]

# Where inputs lie in the paper's tasks: the ends of "min-max" numbers, unless they are told.
DEFAULT_ENDS = -2.0, 2.0
_KINDS = get_args(Kind)
_CIRCULAR = re.compile(r"circular\((.+)\)")
# Of checkpoints and of the notes of state files.
_ENTRY = "scaling"


@dataclass(frozen=True)
class Spread:
    """How the values of a column are spread; those of two sets merge to that of both.

    Example:
        >>> spread = Spread.of("x", "standard", np.array([1.0, np.nan]))
        >>> spread = spread.merge(Spread.of("x", "standard", np.array([3.0])))
        >>> spread.mean, spread.std
        (2.0, 1.0)
    """

    low: float = math.inf
    high: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""
    count: int = 0

    @classmethod
    def of(cls, name: str, kind: str, values: Real[np.ndarray, "rows"]) -> "Spread":
        """That of values, or of the logarithms of a logarithmic column; NaN is missing.

        Raises:
            InputError: if a value has no logarithm.
        """
        known = np.asarray(values, dtype=np.float64)
        known = known[np.isfinite(known)]
        if not len(known):
            return cls()
        if kind == "log":
            if known.min() <= 0:
                raise InputError(
                    f"column {name} holds {known.min():.6g}, and its log scaling takes values "
                    f"above 0; drop such rows, or choose another scaling"
                )
            known = np.log(known)
        mean = float(known.mean())
        squares = float(np.square(known - mean).sum())
        return cls(float(known.min()), float(known.max()), mean, squares, len(known))

    def merge(self, other: "Spread") -> "Spread":
        """That of both sets of values."""
        count = self.count + other.count
        share = other.count / max(1, count)
        apart = other.mean - self.mean
        return Spread(
            min(self.low, other.low),
            max(self.high, other.high),
            self.mean + share * apart,
            self.squares + other.squares + self.count * share * apart**2,
            count,
        )

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / max(1, self.count))


@dataclass(frozen=True)
class Column:
    r"""How the values v of a column become the numbers z of a model, and back.

    - "standard", "min-max" and "none": $z = (v - \mathrm{shift}) / \mathrm{scale}$;
    - "log": $z = (\log v - \mathrm{shift}) / \mathrm{scale}$, for values above 0;
    - "circular", for inputs: the two numbers $\cos$ and $\sin$ of $2 \pi v / \mathrm{scale}$, where
      the scale is the period, such as 24 for hours and 360 for longitudes.

    Example:
        >>> celsius = Column("temperature", "standard", shift=15.0, scale=10.0)
        >>> float(celsius.encode(torch.tensor(25.0))), float(celsius.decode(torch.tensor(1.0)))
        (1.0, 25.0)
    """

    name: str
    kind: Kind = "none"
    shift: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(
                f"column {self.name} has the scaling {self.kind!r}; choose from {', '.join(_KINDS)}"
            )
        if not (math.isfinite(self.shift) and math.isfinite(self.scale) and self.scale > 0):
            raise InputError(
                f"column {self.name} has shift={self.shift} and scale={self.scale}, which must be "
                f"finite, and the scale above 0"
            )

    @classmethod
    def fit(
        cls,
        name: str,
        kind: str,
        values: Real[np.ndarray, "rows"],
        ends: tuple[float, float] = DEFAULT_ENDS,
    ) -> "Column":
        """The column whose numbers suit a model, from values of which some may be NaN (missing).

        "standard" and "log" numbers have mean 0 and standard deviation 1; "min-max" numbers run
        from one of the `ends` to the other; "circular(24)" has the period 24.

        Raises:
            InputError: if there is no such kind, no value, or one that the kind cannot take.

        Warns:
            DataWarning: if all values are the same, which are only shifted then.

        Example:
            >>> Column.fit("x", "min-max", np.array([10.0, np.nan, 30.0]))
            Column(name='x', kind='min-max', shift=20.0, scale=5.0)
        """
        return cls.of_spread(name, kind, Spread.of(name, kind, values), ends)

    @classmethod
    def of_spread(
        cls, name: str, kind: str, spread: "Spread", ends: tuple[float, float] = DEFAULT_ENDS
    ) -> "Column":
        """The same, of values that are spread so; see `Spread.of`."""
        if period := _CIRCULAR.fullmatch(kind.replace(" ", "")):
            try:
                return cls(name, "circular", scale=float(period[1]))
            except ValueError as error:
                raise InputError(
                    f"column {name} has the scaling {kind!r}; write a period above 0, as in "
                    f"circular(24)"
                ) from error
        if kind == "circular":
            raise InputError(f"column {name} is circular; write its period, as in circular(24)")
        if kind not in _KINDS:
            raise InputError(
                f"column {name} has the scaling {kind!r}; choose from standard, min-max, log, none "
                f"and, with a period, circular(24)"
            )
        if not spread.count:
            raise InputError(f"column {name} has no values; drop it, or give data that have some")
        if kind == "none":
            return cls(name)
        low, high = spread.low, spread.high
        if low == high:
            value = math.exp(low) if kind == "log" else low
            warnings.warn(
                f"column {name} has one value only, {value:.6g}: it is shifted, and not scaled",
                DataWarning,
                stacklevel=3,
            )
        if kind == "min-max":
            scale = (high - low) / (ends[1] - ends[0]) if low < high else 1.0
            return cls(name, "min-max", (low + high) / 2 - scale * sum(ends) / 2, scale)
        # The rounding of a mean may give a constant column a spread.
        return cls(name, cast(Kind, kind), spread.mean, spread.std if low < high else 1.0)

    @property
    def kind_text(self) -> str:
        """The kind as it is written, with its period if it has one, such as "circular(24)"."""
        return f"circular({self.scale:g})" if self.kind == "circular" else self.kind

    @property
    def width(self) -> int:
        """How many numbers stand for a value."""
        return 2 if self.kind == "circular" else 1

    def encode(self, values: Real[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """The numbers of the model."""
        if self.kind == "circular":
            angle = values * (2 * math.pi / self.scale)
            return torch.stack([angle.cos(), angle.sin()], dim=-1)
        values = values.log() if self.kind == "log" else values
        return ((values - self.shift) / self.scale)[..., None]

    def decode(self, numbers: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The values of these numbers; of a circular column the numbers themselves."""
        if self.kind == "circular":
            return numbers
        values = numbers * self.scale + self.shift
        return values.exp() if self.kind == "log" else values


@dataclass(frozen=True)
class Scaling:
    r"""The units of a model: its data's columns of inputs and outputs, with their names.

    A model that has one (`NeuralProcess.scaling`) takes values in the units of the data, and
    answers in them: means and standard deviations, quantiles, samples, and densities of the values
    themselves, $\log p(v) = \log p(z) + \log |\mathrm{d}z / \mathrm{d}v|$. It computes with the
    numbers that `encode_x` and `encode_y` give, in float64 until they are the model's.

    Args:
        x: columns of the inputs, in the order in which values come.
        y: columns of the outputs.
        dates: what dates are as numbers, such as "days since 2020-01-01".
        each_output: whether each output is a function by itself, for a model of one output: its
            units are those of the output that a task is of, or that `of_output` chooses.

    Example:
        >>> x, y = np.array([[0.0], [10.0]]), np.array([[15.0], [25.0]])
        >>> scaling = Scaling.fit(x, y, ["hour"], ["temperature"], {"hour": "circular(24)"})
        >>> scaling
        Scaling(x=[hour: circular(24)], y=[temperature: standard])
        >>> scaling.dim_x, scaling.encode_y(torch.tensor([[25.0]])).tolist()
        (2, [[1.0]])
    """

    x: tuple[Column, ...]
    y: tuple[Column, ...]
    dates: str | None = None
    each_output: bool = False

    def __post_init__(self) -> None:
        names = [*self.x_names, *self.y_names]
        if not self.x or not self.y:
            raise InputError("a scaling takes one column of inputs and one of outputs at least")
        if len(set(names)) < len(names):
            raise InputError(f"two columns of {', '.join(names)} have one name")
        for column in self.y:
            if column.kind == "circular":
                raise InputError(
                    f"column {column.name} is an output, which cannot be circular; choose another "
                    f"scaling"
                )
        if self.dates is not None:
            DateUnit.parse(self.dates)

    def __repr__(self) -> str:
        parts = [
            f"{side}=[{', '.join(f'{column.name}: {column.kind_text}' for column in columns)}]"
            for side, columns in (("x", self.x), ("y", self.y))
        ]
        parts += [] if self.dates is None else [f"dates={self.dates!r}"]
        parts += ["each_output=True"] if self.each_output else []
        return f"Scaling({', '.join(parts)})"

    @classmethod
    def fit(
        cls,
        x: Real[np.ndarray, "rows num_x"],
        y: Real[np.ndarray, "rows_y num_y"],
        x_names: Sequence[str],
        y_names: Sequence[str],
        kinds: Mapping[str, str] | None = None,
        ends: tuple[float, float] = DEFAULT_ENDS,
        dates: str | None = None,
    ) -> "Scaling":
        """The units of these data.

        Args:
            x: values of the inputs; NaN is missing.
            y: values of the outputs, of the same rows or of others.
            x_names: names of the inputs.
            y_names: names of the outputs.
            kinds: the scalings of columns by name, such as {"hour": "circular(24)"}; by default
                inputs are "min-max" and outputs "standard".
            ends: what "min-max" inputs run between: where the model's inputs lay in training.
            dates: what dates are as numbers.

        Raises:
            InputError: as `Column.fit`, and if `kinds` names another column.
        """
        return cls.of_chunks([(x, y)], x_names, y_names, kinds, ends, dates)

    @classmethod
    def of_chunks(
        cls,
        chunks: Iterable[tuple[np.ndarray, np.ndarray]],
        x_names: Sequence[str],
        y_names: Sequence[str],
        kinds: Mapping[str, str] | None = None,
        ends: tuple[float, float] = DEFAULT_ENDS,
        dates: str | None = None,
    ) -> "Scaling":
        """The same, of (x, y) chunks such as those of a `PointTable`, in one pass.

        Raises:
            InputError: as `fit`.
        """
        names = [*x_names, *y_names]
        if unknown := set(kinds or {}) - {*names}:
            raise InputError(
                f"there is a scaling of {', '.join(sorted(unknown))}, and the columns are "
                f"{', '.join(names)}"
            )
        if not ends[0] < ends[1]:
            raise InputError(f"inputs cannot run from {ends[0]} to {ends[1]}")
        defaults = dict.fromkeys(x_names, "min-max") | dict.fromkeys(y_names, "standard")
        of_column = defaults | dict(kinds or {})
        spreads = [Spread()] * len(names)
        for x, y in chunks:
            spreads = [
                spread.merge(Spread.of(name, of_column[name], values))
                for name, spread, values in zip(names, spreads, [*x.T, *y.T], strict=True)
            ]
        columns = [
            Column.of_spread(name, of_column[name], spread, ends)
            for name, spread in zip(names, spreads, strict=True)
        ]
        return cls(tuple(columns[: len(x_names)]), tuple(columns[len(x_names) :]), dates)

    @property
    def x_names(self) -> list[str]:
        return [column.name for column in self.x]

    @property
    def y_names(self) -> list[str]:
        return [column.name for column in self.y]

    @property
    def dim_x(self) -> int:
        """How many numbers the inputs of a point become."""
        return sum(column.width for column in self.x)

    @property
    def dim_y(self) -> int:
        """How many outputs of a model they are the units of."""
        return 1 if self.each_output else len(self.y)

    def of_output(self, name: str) -> "Scaling":
        """The units of the same inputs and of one of the outputs.

        Raises:
            InputError: if no output has this name.

        Example:
            >>> y = Column("celsius", "standard", 15.0, 10.0), Column("hPa", "standard", 1010.0)
            >>> Scaling((Column("hour"),), y, each_output=True).of_output("hPa")
            Scaling(x=[hour: none], y=[hPa: standard])
        """
        columns = tuple(column for column in self.y if column.name == name)
        if not columns:
            raise InputError(f"there are units of {', '.join(self.y_names)}, and none of {name}")
        return Scaling(self.x, columns, self.dates)

    @property
    def has_log_output(self) -> bool:
        return any(column.kind == "log" for column in self.y)

    def column_of(self, index: int) -> tuple[int, Column]:
        """The column that a number of the model is of, and its index among those of the data.

        Args:
            index: among the numbers of a point, inputs before outputs.
        """
        columns = [*self.x, *self.y]
        data = [i for i, column in enumerate(columns) for _ in range(column.width)][index]
        return data, columns[data]

    def encode_x(self, x: Real[Tensor, "*batch num_x"]) -> Float[Tensor, "*batch dim_x"]:
        """The inputs as the model's numbers, in float64."""
        return _encoded(x, self.x)

    def encode_y(self, y: Real[Tensor, "*batch dim_y"]) -> Float[Tensor, "*batch dim_y"]:
        """The outputs as the model's numbers, in float64."""
        return _encoded(y, self.y)

    def decode_y(self, z: Float[Tensor, "*batch dim_y"]) -> Float[Tensor, "*batch dim_y"]:
        """The outputs of the model's numbers, in float64."""
        numbers = z.double().unbind(dim=-1)
        return torch.stack([c.decode(z) for c, z in zip(self.y, numbers, strict=True)], dim=-1)

    def log_slope(self, z: Float[Tensor, "*batch dim_y"]) -> Float[Tensor, "*batch"]:
        r"""$\log |\mathrm{d}z / \mathrm{d}v|$ at the model's numbers of outputs, summed over them:
        what a log-density of values has more than that of numbers."""
        total = torch.zeros_like(z[..., 0], dtype=torch.float64)
        for column, numbers in zip(self.y, z.double().unbind(dim=-1), strict=True):
            total = total - math.log(column.scale)
            if column.kind == "log":
                total = total - (numbers * column.scale + column.shift)
        return total

    def output_scale(self, like: Tensor) -> Float[Tensor, "dim_y"]:
        """The scale of each output, in float64 on the device of a tensor."""
        return like.new_tensor([column.scale for column in self.y], dtype=torch.float64)

    def output_shift(self, like: Tensor) -> Float[Tensor, "dim_y"]:
        """The shift of each output, likewise."""
        return like.new_tensor([column.shift for column in self.y], dtype=torch.float64)

    def to_json(self) -> str:
        """A text that `from_json` takes, for the notes of a state file."""
        fields = asdict(self)
        if not self.each_output:  # as releases wrote it that knew of no other
            del fields["each_output"]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Scaling":
        """The scaling that `to_json` has written.

        Raises:
            InputError: if it has not.
        """
        try:
            return cls._of(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{text[:50]!r} is no scaling: {error}") from error

    def to_checkpoint(self) -> dict[str, Any]:
        """What `of_checkpoint` takes, as an entry of a checkpoint."""
        return {_ENTRY: json.loads(self.to_json())}

    @classmethod
    def of_checkpoint(cls, content: Mapping[str, Any]) -> "Scaling | None":
        """That of the model of a checkpoint, if it has one."""
        known = content.get(_ENTRY)
        return None if known is None else cls._of(known)

    def to_notes(self) -> dict[str, str]:
        """What `of_notes` takes, among the notes of a state file."""
        return {_ENTRY: self.to_json()}

    @classmethod
    def of_notes(cls, notes: Mapping[str, str]) -> "Scaling | None":
        """That in whose units a state was made, if there is one."""
        return cls.from_json(notes[_ENTRY]) if _ENTRY in notes else None

    @classmethod
    def _of(cls, fields: Any) -> "Scaling":
        try:
            x, y = (tuple(Column(**column) for column in fields[name]) for name in ("x", "y"))
            return cls(x, y, fields.get("dates"), fields.get("each_output", False))
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"there is a scaling that npbench has not written: {error}") from error


def _encoded(
    values: Real[Tensor, "*batch columns"], columns: Sequence[Column]
) -> Float[Tensor, "*batch numbers"]:
    parts = values.double().unbind(dim=-1)
    return torch.cat([c.encode(part) for c, part in zip(columns, parts, strict=True)], dim=-1)


def shown_ends(low: float, high: float, *others: float) -> tuple[str, ...]:
    """Both ends of a range, and other values beside them, as texts: to a ten-thousandth of its
    width, as what is beyond is rounding.

    Example:
        >>> shown_ends(-1.2e-7, 47.000002), shown_ends(2000.0, 2000.25, 2001.5)
        (('0', '47'), ('2000', '2000.25', '2001.5'))
    """
    values = (low, high, *others)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return tuple(f"{value:.6g}" for value in values)
    decimals = 4 - math.ceil(math.log10(high - low))
    return tuple(f"{round(value, decimals) + 0.0:.15g}" for value in values)  # without −0
