"""`npbench export`: a trained model becomes a folder without its run, or a program."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from npbench.commands import checkpoints
from npbench.commands.arguments import add_allow, check_out, given, levels
from npbench.errors import InputError
from npbench.files import only_writer
from npbench.messages import CommandParser
from npbench.models.contracts.state_files import read_notes
from npbench.pretrained import export, find

_DESCRIPTION = """\
Make a folder of a trained model: what it is (model.yaml), its weights (model.safetensors), and its
card (README.md). The folder takes the place of a checkpoint everywhere, and npbench.load takes it.

  npbench export RUN --out my-model --card card.md
  npbench condition --ckpt my-model --data points.csv --x t --y temperature --out STATE

The card says how the model was trained and how good it is; you write it.

  npbench export RUN --out model.pt2
  npbench export RUN --state state.safetensors --quantiles 0.05,0.95 --out model.pt2

A name that ends in .pt2 is that of a program: query alone, for places that have torch and no
npbench. It takes what a state file holds, and targets, of any number; docs/deployment.md shows
it."""

# How the name of a program's file ends.
_PROGRAM = ".pt2"


def run(args: Sequence[str]) -> None:
    options = _parser().parse_args(args)
    if options.out.suffix == _PROGRAM:
        _export_program(options)
    else:
        _export_folder(options)


def _export_folder(options: Namespace) -> None:
    if options.state or options.quantiles:
        raise InputError(
            f"--state and --quantiles are of a program, whose --out ends in {_PROGRAM}"
        )
    if options.out.is_file():
        raise InputError(f"{options.out} is a file; name a folder by --out")
    path = Path(given("--card", options.card))
    checkpoint = find(options.model)
    try:
        card = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a text: {error}") from error
    model = checkpoints.load(checkpoint)
    with only_writer(options.out):
        export(model, options.out, card)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out} written ({size / 2**20:.2f} MiB): {model}")


def _export_program(options: Namespace) -> None:
    # torch's compiler takes a second to import.
    from npbench.interop.export import write_query

    if options.card is not None:
        raise InputError(f"--card is of a folder, whose --out does not end in {_PROGRAM}")
    checkpoint, state = find(options.model), None
    if options.state is None:
        model = checkpoints.load(checkpoint)
    else:
        notes = read_notes(options.state)
        model = checkpoints.load_with_saved_states(checkpoint, notes)
        assert model.state_class is not None
        state = model.state_class.load(options.state, model)
    check_out(options.out, checkpoint, *([options.state] if options.state else []))
    with only_writer(options.out):
        write_query(options.out, model, state, options.quantiles)
    size = options.out.stat().st_size
    print(f"{options.out} written ({size / 2**20:.2f} MiB): the query of {model}")


def _parser() -> CommandParser:
    parser = CommandParser("export", _DESCRIPTION)
    parser.add_argument("model", metavar="RUN", help="a run's folder, a checkpoint or a name")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=f"folder to write to, or file that ends in {_PROGRAM}",
    )
    parser.add_argument(
        "--card", type=Path, help="of a folder: a Markdown file, what there is to know of it"
    )
    parser.add_argument(
        "--state", type=Path, help="of a program: a state in whose units it answers"
    )
    parser.add_argument(
        "--quantiles", type=levels, metavar="P,…", default=(),
        help="of a program: probabilities, such as 0.05",
    )  # fmt: skip
    add_allow(parser)
    return parser
