"""`npbench merge`: the states of several tables become the state of all of them."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npbench.commands import checkpoints
from npbench.commands.arguments import add_allow, add_device, check_out
from npbench.errors import InputError
from npbench.files import only_writer
from npbench.messages import CommandParser
from npbench.models.contracts.process import evaluating
from npbench.models.contracts.state_files import read_notes

_DESCRIPTION = """\
Merge states that `npbench condition` has written, of one model: the result is the state of all
their points together, whoever has absorbed them and in whatever order.

  npbench merge monday.safetensors tuesday.safetensors --out both.safetensors
  npbench query --state both.safetensors --targets grid.parquet --out predictions.parquet

Points that two of the states have absorbed count twice; two states of the same rows are refused."""

# Facts that all states must share.
_SHARED = "x", "y", "dates"


def run(args: Sequence[str]) -> None:
    options = _parser().parse_args(args)
    with only_writer(options.out):
        _run(options)


def _run(options: Namespace) -> None:
    notes = [read_notes(path) for path in options.states]
    _check_different(options.states, notes)
    facts = _shared(options.states, notes)
    checkpoint = checkpoints.of_state(notes[0], options.ckpt)
    check_out(options.out, *options.states, checkpoint)
    model: Any = checkpoints.load_with_saved_states(checkpoint, notes[0]).to(options.device)
    with evaluating(model):
        states = (model.state_class.load(path, model) for path in options.states)
        merged = model.merge(*states)
    facts["checkpoint"] = str(checkpoint.resolve())
    points = ""
    if all("rows" in note for note in notes):
        rows = sum(int(note["rows"]) for note in notes)
        facts["rows"], points = str(rows), f" of {rows:,} points"
    try:
        merged.save(options.out, model, ledger=merged.ledger is not None, **facts)
    except OSError as error:
        raise InputError(f"{options.out} cannot be written ({error.strerror})") from error
    print(f"{len(notes)} states{points} merged into {options.out}; it answers by")
    out = shlex.quote(str(options.out))
    print(f"  npbench query --state {out} --targets FILE --out predictions.parquet")


def _check_different(paths: Sequence[Path], notes: Sequence[dict[str, str]]) -> None:
    """Refuse two states of the same rows."""
    seen: dict[str, Path] = {}
    for path, note in zip(paths, notes, strict=True):
        rows = note.get("digest", str(path.resolve()))
        if rows in seen:
            raise InputError(
                f"{seen[rows]} and {path} are of the same rows, whose points would count twice"
            )
        seen[rows] = path


def _shared(paths: Sequence[Path], notes: Sequence[dict[str, str]]) -> dict[str, str]:
    """The facts that all states have in common.

    Raises:
        InputError: if two states differ in one.
    """
    for name in _SHARED:
        for path, note in zip(paths, notes, strict=True):
            if note.get(name) != notes[0].get(name):
                raise InputError(
                    f"{paths[0]} and {path} differ in --{name}: {notes[0].get(name)} and "
                    f"{note.get(name)}"
                )
    return {name: notes[0][name] for name in _SHARED if name in notes[0]}


def _parser() -> CommandParser:
    parser = CommandParser("merge", _DESCRIPTION)
    parser.add_argument(
        "states", type=Path, nargs="+", metavar="STATE", help="files of `npbench condition`"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to keep the state in")
    parser.add_argument("--ckpt", type=Path, help="the states' checkpoint, if it was moved")
    add_allow(parser)
    add_device(parser)
    return parser
