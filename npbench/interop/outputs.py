"""Which outputs of a table are tasks of a model."""

from collections.abc import Iterator

from npbench.errors import InputError
from npbench.models import NeuralProcess
from npbench.scaling import Scaling


def by_output(model: NeuralProcess, scaling: Scaling) -> Iterator[tuple[NeuralProcess, slice]]:
    """The model in the units of each output that is a task by itself, and which output that is.

    A model of as many outputs takes all of them as one task; one of a single output takes each by
    itself, with the same weights.

    Raises:
        InputError: if the model is for another number of outputs.
    """
    number = len(scaling.y)
    if model.dim_y == number and not scaling.each_output:
        yield model.scaled(scaling), slice(None)
    elif model.dim_y == 1:
        for index, column in enumerate(scaling.y):
            yield model.scaled(scaling.of_output(column.name)), slice(index, index + 1)
    else:
        raise InputError(
            f"the model has dim_y={model.dim_y}, and the rows have {number} output(s): one of 1 "
            f"output takes any number, each by itself"
        )
