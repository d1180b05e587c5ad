"""`npbench forget`: the rows of a table are taken out of a state."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from npbench.commands import checkpoints
from npbench.commands.arguments import (
    add_allow,
    add_device,
    add_table_format,
    check_out,
    columns,
)
from npbench.commands.condition import columns_of, dates_of
from npbench.commands.progress import progress_bar
from npbench.conditioning import forget_rows
from npbench.errors import InputError
from npbench.files import only_writer
from npbench.messages import CommandParser
from npbench.models.contracts.merging import ForgettingProcess
from npbench.models.contracts.state_files import read_notes
from npbench.point_files import files_in
from npbench.tables import PointTable

_DESCRIPTION = """\
Take the rows of a Parquet or CSV file out of a state that `npbench condition` has written: what is
left is the state of all other rows, but for rounding.

  npbench condition --ledger --ckpt RUN --data points.parquet --x lat,lon --y temperature \\
    --out state.safetensors
  npbench forget --state state.safetensors --data unwanted.csv --out state.safetensors

A state with a ledger forgets exactly the rows that it has absorbed, and refuses all others. A state
without one cannot know: a row that it never absorbed, or has forgotten already, is refused where
what is left could be of no data, and else leaves a state that is wrong."""


# Facts of a state that are true of what is left of it.
_KEPT = "checkpoint", "data", "x", "y", "dates"


def run(args: Sequence[str]) -> None:
    options = _parser().parse_args(args)
    with only_writer(options.out):
        _run(options)


def _run(options: Namespace) -> None:
    notes = read_notes(options.state)
    checkpoint = checkpoints.of_state(notes, options.ckpt)
    files = files_in(options.data)
    check_out(options.out, *files, checkpoint)
    model = checkpoints.load_with_saved_states(checkpoint, notes).to(options.device)
    if not isinstance(model, ForgettingProcess):
        raise InputError(
            f"{checkpoint} holds a {type(model).__name__}, whose states do not forget; condition "
            f"it on the rows that remain"
        )
    x, y = (
        columns_of(model, part, notes, names) for part, names in zip("xy", (options.x, options.y))
    )
    model.check_columns(x, y)
    table = PointTable(
        files, x, y, separator=options.separator, decimal=options.decimal,
        dates=options.dates or notes.get("dates") or dates_of(model),
    )  # fmt: skip
    with progress_bar() as progress:
        shown = progress.add_task("rows", total=table.num_rows())
        state, rows = forget_rows(
            model,
            table,
            model.state_class.load(options.state, model),
            lambda n: progress.advance(shown, n),
        )
    known = {name: text for name, text in notes.items() if name in _KEPT}
    has_ledger = state.ledger is not None
    state.save(options.out, model, ledger=has_ledger, **known)
    print(f"{rows:,} points forgotten; what is left is in {options.out}")
    if not has_ledger:
        print("The state has no ledger: that it had absorbed them is not known (npbench forget -h)")


def _parser() -> CommandParser:
    parser = CommandParser("forget", _DESCRIPTION)
    parser.add_argument("--state", type=Path, required=True, help="file of `npbench condition`")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="PATH",
        help=".parquet or .csv files, folders of them, or patterns in quotes",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="file to keep what is left in")
    for name, what in (("--x", "inputs"), ("--y", "outputs")):
        parser.add_argument(
            name, type=columns, metavar="NAME,…", help=f"columns of the {what}, if others than then"
        )
    parser.add_argument("--ckpt", type=Path, help="the state's checkpoint, if it was moved")
    add_allow(parser)
    add_table_format(parser)
    add_device(parser)
    return parser
