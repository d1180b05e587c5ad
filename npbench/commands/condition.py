"""`npbench condition`: a table of points, of any size, becomes a state in a small file."""

import os
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from npbench.commands import checkpoints
from npbench.commands.arguments import (
    add_allow,
    add_device,
    add_engine,
    add_table_format,
    check_out,
    columns,
    engine_of,
    given,
    unit,
)
from npbench.commands.progress import progress_bar
from npbench.conditioning import fitted_units, write_state
from npbench.errors import InputError
from npbench.files import only_writer
from npbench.messages import CommandParser
from npbench.models import NeuralProcess
from npbench.models.contracts.state_files import read_notes
from npbench.point_files import files_in
from npbench.tables import PointTable

_DESCRIPTION = """\
Condition a model on the rows of Parquet or CSV files, of any number, and keep its state: a file
of a few hundred kilobytes that answers queries.

  npbench condition --ckpt RUN --data points.parquet --x lat,lon --y temperature \\
    --out state.safetensors
  npbench query --state state.safetensors --targets grid.parquet --out predictions.parquet
  npbench condition --state state.safetensors --data today.csv --out state.safetensors
  npbench condition --ckpt RUN --data folder 'more-*.csv' --x lat,lon,time --y temperature \\
    --dates "days since 2020-01-01" --out state.safetensors
  npbench condition --ckpt gp-1d --data points.csv --x hour --y celsius --units \
    --out state.safetensors
  npbench condition --engine ray --ckpt RUN --data s3://bucket/weather/ --x lat,lon \\
    --y temperature --out state.safetensors

The third adds points to a state. --units brings a table to the numbers of a model that was trained
on others: the state then answers in the table's units. The last shares the work among the processes
of a cluster. Several files, the files of a folder, and those that a pattern matches come in the
order of their names. Memory does not depend on the number of rows. After an interrupt, or a row
that cannot be read, the same command goes on where it was."""

# Enough that the latents, worked out once a chunk, cost little beside its points.
_ROWS = 131_072


def run(args: Sequence[str]) -> None:
    options = _parser().parse_args(args)
    with only_writer(options.out):
        _run(options)


def _run(options: Namespace) -> None:
    made_by = read_notes(options.state) if options.state else {}
    checkpoint = checkpoints.of_state(made_by, options.ckpt)
    engine = engine_of(options)
    # A cluster's engine finds the files itself, which may not be here.
    files = files_in(options.data) if engine is None else []
    check_out(options.out, *files, checkpoint)
    model = checkpoints.load_with_saved_states(checkpoint, made_by).to(options.device)
    if model.scaling is not None and model.scaling.each_output:
        model = _of_output(model, options.y)
    x, y = (
        columns_of(model, part, made_by, names) for part, names in zip("xy", (options.x, options.y))
    )
    dates = options.dates or made_by.get("dates") or dates_of(model)
    table = PointTable(
        files, x, y, chunk_size=_ROWS, separator=options.separator, decimal=options.decimal,
        dates=dates,
    )  # fmt: skip
    if options.units is not None:
        if options.state or model.scaling is not None or engine is not None:
            raise InputError(
                "--units is for a model without units, a first table, and --engine local"
            )
        model.scaling = fitted_units(model, table, dict(options.units), options.margin)
    model.check_columns(x, y)
    model.watch.columns = [*x, *y]
    start = model.state_class.load(options.state, model) if options.state else None
    sources = [str(file.resolve()) for file in files] or options.data
    origin = {
        "checkpoint": str(checkpoint.resolve()),
        "data": os.pathsep.join(sources),
        **({"dates": dates} if dates else {}),
    }
    with progress_bar() as progress:
        if engine is not None:
            if options.ledger:
                raise InputError("--ledger is for --engine local")
            shown = progress.add_task("rows", total=None)
            rows = engine.write_state(
                model, options.data, x, y, options.out, start, origin, dates,
                lambda n: progress.advance(shown, n),
            )  # fmt: skip
        else:
            shown = progress.add_task("rows", total=table.num_rows())
            rows = write_state(
                model,
                table,
                options.out,
                start,
                origin,
                lambda n: progress.advance(shown, n),
                ledger=options.ledger,
            )
    print(f"{rows:,} points absorbed into {options.out}; it answers by")
    out = shlex.quote(str(options.out))
    print(f"  npbench query --state {out} --targets FILE --out predictions.parquet")


def _of_output(model: NeuralProcess, named: Sequence[str] | None) -> NeuralProcess:
    """The model in the units of the output that is named, where it takes each by itself.

    Raises:
        InputError: if none is named, or several are.
    """
    if named is None or len(named) != 1:
        raise InputError(
            f"the model takes {', '.join(model.columns[1])} each by itself, in a state of its own: "
            f"name one of them by --y"
        )
    return model.of_output(named[0])


def columns_of(
    model: NeuralProcess, part: str, notes: Mapping[str, str], named: Sequence[str] | None
) -> Sequence[str]:
    """The columns of inputs or outputs: those that are named, or else those that a state file
    notes, or those of the model's units.

    Args:
        model: whose columns they are.
        part: "x" or "y".
        notes: of the state file, if there is one.
        named: what the option says, if it is given.

    Raises:
        InputError: if nothing says which they are.
    """
    own = ",".join(model.columns[part == "y"]) if model.scaling is not None else None
    return named or given(f"--{part}", notes.get(part, own)).split(",")


def dates_of(model: NeuralProcess) -> str | None:
    """What dates are as numbers in the units of the model."""
    return None if model.scaling is None else model.scaling.dates


def _parser() -> CommandParser:
    parser = CommandParser("condition", _DESCRIPTION)
    parser.add_argument("--ckpt", type=Path, help="a checkpoint, or the folder of a run")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="PATH",
        help=".parquet or .csv files, folders of them, or patterns in quotes",
    )  # fmt: skip
    parser.add_argument("--x", type=columns, metavar="NAME,…", help="columns of the inputs")
    parser.add_argument("--y", type=columns, metavar="NAME,…", help="columns of the outputs")
    parser.add_argument("--out", type=Path, required=True, help="file to keep the state in")
    parser.add_argument(
        "--state", type=Path,
        help="a state to add the points to, which gives --ckpt, --x and --y too",
    )  # fmt: skip
    parser.add_argument(
        "--ledger", action="store_true",
        help="note which rows were absorbed, in 16 bytes each, so that npbench forget is certain",
    )  # fmt: skip
    parser.add_argument(
        "--units", type=unit, nargs="*", metavar="NAME=SCALING",
        help="fit units to the table, for a model that has none; inputs are min-max and outputs "
        "standard, unless one is named: standard, min-max, log, none, circular(24)",
    )  # fmt: skip
    parser.add_argument(
        "--margin", type=float, default=0.025,
        help="of --units: room on either side for the inputs of later rows, as a share of the "
        "width of these (default: 0.025)",
    )  # fmt: skip
    add_allow(parser)
    add_table_format(parser)
    add_engine(parser)
    add_device(parser)
    return parser
