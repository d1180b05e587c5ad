"""What goes wrong in a way that the user can mend.

Every message says in one sentence what was given, what was expected, and how to mend it. The
command line prints it as it is; any other exception is a bug, and comes with its traceback.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npbench.structure import TensorRecord


class InputError(ValueError):
    """Something was given that cannot be used: an argument, a tensor, a file, a configuration.

    Example:
        >>> from npbench.models import CNP
        >>> try:
        ...     CNP(dim_x=0, dim_y=1)
        ... except InputError as error:
        ...     print(error)
        dim_x=0 and dim_y=1 must be 1 or more
    """


class ChunkError(InputError):
    """A chunk, in the middle of a stream, that a model cannot take in.

    Attributes:
        number: of the chunk; the first is 0.
        state: of all the chunks before it, to go on from; None where nothing was absorbed, or the
            model keeps no state of a part.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"chunk {number}: {reason}")
        self.number = number
        self.state: TensorRecord | None = None


class ValueOverflow(InputError):
    """A value so large that what a model computes of it is not finite.

    Attributes:
        column: index of its column, outputs behind inputs.
        size: its magnitude.
        point: index of its point among those that were given.
    """

    def __init__(
        self, column: int, name: str, size: float, task: int, point: int, dtype: object
    ) -> None:
        super().__init__(
            f"{name} of task {task}, point {point} is of size {size:.6g}, of which the model "
            f"computes what overflows {dtype}; drop such points, or bring them to the unit of "
            f"training"
        )
        self.column = column
        self.size = size
        self.point = point


class NotAbsorbed(InputError):
    """Points that a state is to forget and, by its ledger, has not absorbed.

    Attributes:
        point: index of one of them among those that were given.
        number: how many there are.
    """

    def __init__(self, point: int, number: int) -> None:
        super().__init__(
            f"point {point}, one of {number}, was never absorbed by this state, or is forgotten "
            f"already, as its ledger says; give points that it has absorbed, with the same values"
        )
        self.point = point
        self.number = number


class DataWarning(UserWarning):
    """What was given can be used, and is likely not what was meant.

    The command line prints it in one sentence, once.
    """
