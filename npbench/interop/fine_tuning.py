"""A model learns a table by itself: random subsets of its rows are the tasks."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR

from npbench.errors import InputError
from npbench.models import NeuralProcess
from npbench.models.contracts.process import in_mode
from npbench.optim import MuonAdam
from npbench.task import Task

# Tasks a step; fewest rows of a context, most, and most targets.
_TASKS, _FEWEST, _MOST, _TARGETS = 8, 3, 64, 64
# Most rows of a neighbourhood, in those of the largest task.
_SPREAD = 16
# Most rows of the context in a window.
_MOST_IN_WINDOW = 1024


def fine_tuned(
    model: NeuralProcess,
    x: Float[Tensor, "rows dim_x"],
    y: Float[Tensor, "rows outputs"],
    steps: int,
    learning_rate: float,
    seed: int,
    window: tuple[float, float] | None = None,
) -> NeuralProcess:
    """The model after so many steps on tasks from the rows.

    A task is a random subset of a neighbourhood of a random row, or of all rows: some of its rows
    are context and the others targets. Half of the tasks are of either kind.

    Args:
        model: has no units, and is changed; its own numbers are x and y.
        x: inputs.
        y: outputs, NaN where they are missing; of a model of one output each is a task by itself.
        steps: of the optimiser, whose rates fall linearly to 0.
        learning_rate: of matrices, by Muon; Adam takes a tenth of it for all else.
        seed: of the tasks.
        window: the ends between which the model's inputs lie. With it each task is what a window of
            this width shows of the rows, moved to the model's range; for models that know nothing
            but differences of positions.

    Raises:
        InputError: if there are too few rows, or nothing to train.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if steps < 1 or not parameters:
        raise InputError(f"fine_tune={steps} must be 0 or more, for a model with free parameters")
    known = x.isfinite().all(dim=-1, keepdim=True) & y.isfinite()
    if model.dim_y != 1:
        known = known.all(dim=-1, keepdim=True)
    tables = [(x[real], y[real] if model.dim_y != 1 else y[real, i, None])
              for i, real in enumerate(known.unbind(dim=-1))]  # fmt: skip
    tables = [table for table in tables if len(table[0]) > 2 * _FEWEST]
    if not tables:
        raise InputError(f"fine_tune takes {2 * _FEWEST + 1} rows or more with known outputs")
    like = parameters[0]
    optimizer = MuonAdam(parameters, lr=learning_rate, adam_lr=learning_rate / 10)
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices), in_mode(model, training=True), torch.enable_grad():
        torch.manual_seed(seed)
        for _ in range(steps):
            task = _tasks(tables, window).map(
                lambda z: z.to(like.device, like.dtype if z.is_floating_point() else z.dtype)
            )
            optimizer.zero_grad()
            loss = model.loss(task)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if norm.isfinite():  # weights are never made of what is not
                optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    return model


def _tasks(tables: list[tuple[Tensor, Tensor]], window: tuple[float, float] | None) -> Task:
    """A batch of tasks, each of one of the tables, with zeros behind the points of the smaller."""
    drawn: list[tuple[Tensor, ...]] = []
    while len(drawn) < _TASKS:
        table = tables[int(torch.randint(len(tables), ()))]
        drawn.append(_task(*table) if window is None else _task_in_window(*table, window))
    parts = []
    for values in zip(*drawn, strict=True):
        most = max(len(value) for value in values)
        masks = torch.stack([_mask(len(value), most) for value in values])
        padded = [torch.nn.functional.pad(z, (0, 0, 0, most - len(z))) for z in values]
        parts.append((torch.stack(padded), masks))
    (xc, real), (yc, _), (xt, wanted), (yt, _) = parts
    return Task(xc, yc, xt, yt, context_mask=real, target_mask=wanted)


def _task(
    x: Float[Tensor, "rows dim_x"], y: Float[Tensor, "rows dim_y"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = torch.randint(len(x), (_SPREAD * (_MOST + _TARGETS),)).unique()
    if torch.rand(()) < 0.5:
        rows = _near(x, rows)
    rows = rows[torch.randperm(len(rows))]
    number = int(torch.randint(_FEWEST, min(_MOST, len(rows) - 1) + 1, ()))
    context, targets = rows[:number], rows[number : number + _TARGETS]
    return x[context], y[context], x[targets], y[targets]


def _task_in_window(
    x: Float[Tensor, "rows dim_x"], y: Float[Tensor, "rows dim_y"], window: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A window around a random row; most often most of what it shows is context."""
    low, high = window
    centre = x[int(torch.randint(len(x), ()))]
    rows = ((x - centre).abs() <= (high - low) / 2).all(dim=-1).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows))]
    most = min(_MOST_IN_WINDOW, max(1, len(rows) - _TARGETS))
    number = 1 + int(torch.rand(2).amax() * most)
    context, targets = rows[:number], rows[number : number + _TARGETS]
    if not len(targets):  # a row that is alone in its window
        targets = context
    moved = x - centre + (low + high) / 2
    return moved[context], y[context], moved[targets], y[targets]


def _near(x: Float[Tensor, "rows dim_x"], rows: Int[Tensor, "some"]) -> Int[Tensor, "near"]:
    """Of these rows a random number that are nearest to one of them."""
    fewest = min(len(rows), 2 * _FEWEST + 1)
    number = fewest + int(torch.rand(()).square() * (len(rows) - fewest))
    distance = (x[rows] - x[rows[int(torch.randint(len(rows), ()))]]).square().sum(dim=-1)
    return rows[distance.topk(number, largest=False).indices]


def _mask(number: int, most: int) -> Bool[Tensor, "most"]:
    return torch.arange(most) < number
