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


class DataWarning(UserWarning):
    """What was given can be used, and is likely not what was meant.

    The command line prints it in one sentence, once.
    """
