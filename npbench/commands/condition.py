"""`npbench condition`: a table of points, of any size, becomes a state in a small file."""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npbench.commands import checkpoints
from npbench.commands.arguments import check_out, columns, default_device, device, given
from npbench.commands.progress import progress_bar
from npbench.errors import InputError
from npbench.messages import CommandParser
from npbench.models.contracts.constant_memory import ConstantMemoryProcess, ConstantMemoryState
from npbench.models.contracts.process import evaluating
from npbench.models.contracts.state_files import fingerprint, read_notes
from npbench.tables import PointTable

_DESCRIPTION = """\
Condition a model on the rows of a Parquet or CSV file, of any number, and keep its state: a file
of a few hundred kilobytes that answers queries.

  npbench condition --ckpt RUN --data points.parquet --x lat,lon --y temperature \\
    --out state.safetensors
  npbench query --state state.safetensors --targets grid.parquet --out predictions.parquet
  npbench condition --state state.safetensors --data today.csv --out state.safetensors

The last one adds points to a state. Memory does not depend on the number of rows. After an
interrupt, or a row that cannot be read, the same command goes on where it was."""

# Enough that the latents, worked out once a chunk, cost little beside its points.
_ROWS = 131_072


def run(args: Sequence[str]) -> None:
    options = _parser().parse_args(args)
    made_by = read_notes(options.state) if options.state else {}
    checkpoint = checkpoints.of_state(made_by, options.ckpt)
    check_out(options.out, options.data, checkpoint)
    x, y = (
        names or given(f"--{key}", made_by.get(key)).split(",")
        for key, names in (("x", options.x), ("y", options.y))
    )
    model = checkpoints.load_of_constant_memory(checkpoint).to(options.device)
    check_columns("x", x, model.dim_x)
    check_columns("y", y, model.dim_y)
    start = model.state_class.load(options.state, model) if options.state else None
    task = {"x": ",".join(x), "y": ",".join(y), "state": _hash_of(options.state)}
    origin = {"checkpoint": str(checkpoint.resolve()), "data": str(options.data.resolve())}
    partial = options.out.with_name(f"{options.out.name}.partial")
    table = PointTable(options.data, x, y, chunk_size=_ROWS)
    rows, digest = _resume(partial, task, model, table)
    state = model.state_class.load(partial, model) if rows else start
    table = replace(table, skip=rows)

    def save(state: ConstantMemoryState) -> None:
        so_far = {"rows": str(rows), "digest": digest.hexdigest()}
        try:
            state.save(partial, model, **task, **origin, **so_far)
        except OSError as error:
            raise InputError(f"{partial} cannot be written ({error.strerror})") from error

    try:
        with evaluating(model), progress_bar() as progress:
            shown = progress.add_task("rows", total=table.num_rows(), completed=rows)
            for points in table:
                more = model.condition(*points)
                state = more if state is None else state.merge(more)
                digest.update(np.hstack(points))
                rows += len(points[0])
                save(state)
                progress.update(shown, completed=rows)
            if not rows:
                raise InputError(f"{options.data} has no rows")
            save(model.merge(state))
        partial.replace(options.out)
    except (KeyboardInterrupt, ValueError, OSError) as error:
        if not partial.exists():
            raise
        kept = (
            f"the state of the first {int(read_notes(partial)['rows']):,} rows is kept in "
            f"{partial}: the same command goes on from there"
        )
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"; {kept}") from error
        raise InputError(f"{error}; {kept}") from error
    print(f"{rows:,} points absorbed into {options.out}; it answers by")
    out = shlex.quote(str(options.out))
    print(f"  npbench query --state {out} --targets FILE --out predictions.parquet")


def check_columns(name: str, names: Sequence[str], dim: int) -> None:
    if len(names) != dim:
        raise InputError(
            f"the model was trained with dim_{name}={dim}; --{name} names {len(names)} column(s): "
            f"{','.join(names)}"
        )


def _resume(
    partial: Path, task: dict[str, str], model: ConstantMemoryProcess, table: PointTable
) -> tuple[int, Any]:
    """How many rows a run that was cut off has absorbed, and the digest of their values.

    The table must still begin with them; what comes after may have been mended since.
    """
    digest = hashlib.sha256()
    if not partial.exists():
        return 0, digest
    notes = read_notes(partial)
    rows = missing = int(notes.get("rows", 0))
    for points in table:
        values = np.hstack(points)[:missing]
        digest.update(values)
        missing -= len(values)
        if not missing:
            break
    facts = task | {"fingerprint": fingerprint(model), "digest": digest.hexdigest()}
    if notes | facts != notes:
        raise InputError(
            f"{partial} was left by a run on other data, columns, weights or --state; delete it, "
            f"or choose another --out"
        )
    return rows, digest


def _hash_of(path: Path | None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""


def _parser() -> CommandParser:
    parser = CommandParser("condition", _DESCRIPTION)
    parser.add_argument("--ckpt", type=Path, help="a checkpoint, or the folder of a run")
    parser.add_argument("--data", type=Path, required=True, help="a .parquet or .csv file")
    parser.add_argument("--x", type=columns, metavar="NAME,…", help="columns of the inputs")
    parser.add_argument("--y", type=columns, metavar="NAME,…", help="columns of the outputs")
    parser.add_argument("--out", type=Path, required=True, help="file to keep the state in")
    parser.add_argument(
        "--state", type=Path,
        help="a state to add the points to, which gives --ckpt, --x and --y too",
    )  # fmt: skip
    parser.add_argument(
        "--device", type=device, default=default_device(), help="cuda where there is one, else cpu"
    )
    return parser
