"""Deployment without npbench: `query` as a program of torch alone.

    export_query(model)              # an ExportedProgram: (state, xt) -> mean, std
    write_query("model.pt2", model)  # the same in a file; `npbench export RUN --out model.pt2`

Take it where predictions are served and npbench is not installed, or where a compiler for another
device takes an `ExportedProgram`. The program takes what a state file holds, so that one program
answers for any number of states.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from npbench.errors import InputError
from npbench.files import output_file
from npbench.models import NeuralProcess, State
from npbench.models.contracts import SavedState
from npbench.models.contracts.process import evaluating

# The entry of a program's file that says what its columns are.
_FACTS = "npbench.json"
# A dimension of 1 in the example would stay 1 in the program; these are no sizes of layers.
_TASKS, _POINTS, _TARGETS = 2, 7, 5

# What torch says of steps that depend on sizes, or on values.
_DEPENDS = "Constraints violated", "data-dependent"


def export_query(
    model: NeuralProcess, state: State | None = None, quantiles: Sequence[float] = ()
) -> ExportedProgram:
    """The program that predicts from a state, for any number of tasks and of targets.

    `program.module()(tensors, xt)` takes the tensors of a state by their names (`state_tensors`,
    which are those of a state file) and the targets' inputs [batch, target, dim_x], and gives a
    dictionary: `mean` and `std` [batch, target, dim_y], as of `model.marginals`, and with
    `quantiles` also `quantiles` [levels, batch, target, dim_y]. Where the model has units, inputs
    and answers are in them. All targets are predicted at once. Values are not checked. A model that
    samples does so in the program.

    Args:
        model: with the weights and the units that the program is to have.
        state: like those that the program is to take, where these are not as of `model.condition`
            without a mask, or as files hold them.
        quantiles: probabilities between 0 and 1.

    Raises:
        InputError: if the model predicts targets in turns whose number the program would have to
            know, as `CMANPAND` does block by block; and on `quantiles` as of `model.quantiles`.

    Example:
        >>> model = CNP(dim_x=1, dim_y=1).eval()
        >>> program = export_query(model).module()  # doctest: +SKIP
        >>> tensors = state_tensors(model.condition(*torch.randn(2, 3, 10, 1)))
        >>> program(tensors, torch.zeros(3, 20, 1))["mean"].shape  # doctest: +SKIP
        torch.Size([3, 20, 1])
    """
    model = deepcopy(model).requires_grad_(False).eval()
    model.watch.ranges = None  # the values of the example mean nothing
    with evaluating(model):
        example = _example(model) if state is None else state.repeat(_TASKS)
    example = _as_saved(example)
    tensors = dict(example.named_tensors())
    like = next(model.parameters())
    dtype = like.dtype if model.scaling is None else torch.float64
    xt = torch.ones(example.batch_size, _TARGETS, len(model.columns[0]), dtype=dtype)
    if quantiles:  # which are checked before the model is traced
        model.quantiles(example, xt, quantiles)
    batch, target = Dim("batch", min=1), Dim("target", min=1)
    # States that grow with the context do so in other dimensions than that of the tasks.
    others = Dim.STATIC if isinstance(example, SavedState) else Dim.AUTO
    shapes = {
        name: {i: batch if i == example.batch_dim else others for i in range(tensor.ndim)}
        for name, tensor in tensors.items()
    }
    try:
        # With gradients models take all points at once, where they would count chunks.
        with torch.enable_grad():
            return torch.export.export(
                _Query(model, example, quantiles), (tensors, xt.to(like.device)),
                dynamic_shapes={"state": shapes, "xt": {0: batch, 1: target}},
            )  # fmt: skip
    except RuntimeError as error:
        if not any(reason in str(error) for reason in _DEPENDS):
            raise
        raise InputError(
            f"the query of {type(model).__name__} takes other steps for other tasks and targets, "
            f"so that no single program answers for all of them; export a model that predicts each "
            f"target by itself, without a window, such as CMANP"
        ) from error


def write_query(
    path: str | os.PathLike,
    model: NeuralProcess,
    state: State | None = None,
    quantiles: Sequence[float] = (),
) -> None:
    """Write the program of `export_query` to a file, whole or not at all.

    `torch.export.load(path)` loads it, without npbench. Its extra file `npbench.json` names the
    columns: `x`, `y` and the levels of `quantiles`.

    Args: as `export_query`.

    Raises:
        InputError: as `export_query`; and if the file cannot be written.
    """
    x, y = model.columns
    facts = {"model": str(model), "x": x, "y": y, "quantiles": list(quantiles)}
    data = io.BytesIO()
    torch.export.save(
        export_query(model, state, quantiles), data, extra_files={_FACTS: json.dumps(facts)}
    )
    with output_file(path) as unfinished:
        unfinished.write_bytes(data.getvalue())


def state_tensors(state: State) -> dict[str, Tensor]:
    """What a program takes of a state: its tensors by their names.

    Of a state that files keep they are those of its file, which
    `safetensors.torch.load_file(path)` gives too.

    Example:
        >>> state = CNP(dim_x=1, dim_y=1).condition(*torch.randn(2, 3, 10, 1))
        >>> {name: tuple(tensor.shape) for name, tensor in state_tensors(state).items()}
        {'mean': (3, 2, 128), 'count': (3, 1, 1)}
    """
    return dict(_as_saved(state).named_tensors())


class _Query(nn.Module):
    """From tensors and targets to predictions."""

    def __init__(self, model: NeuralProcess, like: State, quantiles: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.like = like
        self.names = [name for name, _ in like.named_tensors()]
        self.quantiles = quantiles

    def forward(
        self, state: Mapping[str, Tensor], xt: Float[Tensor, "batch target num_x"]
    ) -> dict[str, Tensor]:
        tensors = iter([state[name] for name in self.names])
        built = self.like.map(lambda _: next(tensors))
        answers = dict(self.model.marginals(built, xt)._asdict())
        if self.quantiles:
            answers["quantiles"] = self.model.quantiles(built, xt, self.quantiles)
        return answers


def _as_saved(state: State) -> State:
    """The state as a file would give it back, where files keep it."""
    if not isinstance(state, SavedState):
        return state
    return type(state).from_bytes(state.to_bytes()).to(next(state.tensors()).device)


def _example(model: NeuralProcess) -> Any:
    """A state of a few points whose values all scalings take."""
    x, y = (torch.ones(_TASKS, _POINTS, len(names)) for names in model.columns)
    if model.predicts_classes:
        y[..., 1:] = 0.0
    return model.condition(x, y)
