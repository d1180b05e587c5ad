"""`npbench query`: a saved state predicts at the rows of a table."""

from collections.abc import Sequence
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
    levels,
)
from npbench.commands.condition import columns_of, dates_of
from npbench.commands.progress import progress_bar
from npbench.messages import CommandParser
from npbench.models.contracts.state_files import read_notes
from npbench.predictions import write_predictions
from npbench.tables import PointTable

_DESCRIPTION = """\
Predict at the rows of a Parquet or CSV file, of any number, from a state that `npbench condition`
has written.

  npbench query --state state.safetensors --targets grid.parquet --out predictions.parquet

The new file has all columns of the targets, and NAME_mean and NAME_std for each output, in the
units of the data. --quantiles 0.05,0.95 adds NAME_q0.05 and NAME_q0.95."""


def run(args: Sequence[str]) -> None:
    options = _parser().parse_args(args)
    notes = read_notes(options.state)
    checkpoint = checkpoints.of_state(notes, options.ckpt)
    check_out(options.out, options.targets, options.state, checkpoint)
    model = checkpoints.load_with_saved_states(checkpoint, notes).to(options.device)
    x = columns_of(model, "x", notes, options.x)
    model.check_columns(x)
    model.watch.columns = [*x, *model.watch.columns[model.dim_x :]]
    state = model.state_class.load(options.state, model)
    dates = options.dates or notes.get("dates") or dates_of(model)
    outputs = notes["y"].split(",") if "y" in notes else None
    if (engine := engine_of(options)) is not None:
        rows = engine.query_dataset(
            model, state, str(options.targets), x, options.out, outputs,
            quantiles=options.quantiles, dates=dates,
        )  # fmt: skip
    else:
        targets = PointTable(
            options.targets, x, separator=options.separator, decimal=options.decimal, dates=dates
        )
        with progress_bar() as progress:
            shown = progress.add_task("rows", total=targets.num_rows())
            rows = write_predictions(
                model, state, targets, options.out, outputs,
                lambda n: progress.advance(shown, n), options.quantiles,
            )  # fmt: skip
    print(f"predictions at {rows:,} targets written to {options.out}")


def _parser() -> CommandParser:
    parser = CommandParser("query", _DESCRIPTION)
    parser.add_argument("--state", type=Path, required=True, help="file of `npbench condition`")
    parser.add_argument("--targets", type=Path, required=True, help="a .parquet or .csv file")
    parser.add_argument("--out", type=Path, required=True, help="a .parquet or .csv file")
    parser.add_argument(
        "--x", type=columns, metavar="NAME,…", help="columns of the inputs, if others than before"
    )
    parser.add_argument(
        "--quantiles", type=levels, metavar="P,…", default=(), help="probabilities, such as 0.05"
    )
    parser.add_argument("--ckpt", type=Path, help="the state's checkpoint, if it was moved")
    add_allow(parser)
    add_table_format(parser)
    add_engine(parser)
    add_device(parser)
    return parser
