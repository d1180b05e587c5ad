"""`npbench export`: a trained model becomes a folder without its run."""

from collections.abc import Sequence
from pathlib import Path

from npbench.commands import checkpoints
from npbench.commands.arguments import add_allow
from npbench.errors import InputError
from npbench.files import only_writer
from npbench.messages import CommandParser
from npbench.pretrained import export, find

_DESCRIPTION = """\
Make a folder of a trained model: what it is (model.yaml), its weights (model.safetensors), and its
card (README.md). The folder takes the place of a checkpoint everywhere, and npbench.load takes it.

  npbench export RUN --out my-model --card card.md
  npbench condition --ckpt my-model --data points.csv --x t --y temperature --out STATE

The card says how the model was trained and how good it is; you write it."""


def run(args: Sequence[str]) -> None:
    options = _parser().parse_args(args)
    checkpoint = find(options.model)
    if options.out.is_file():
        raise InputError(f"{options.out} is a file; name a folder by --out")
    try:
        card = options.card.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{options.card} cannot be read as a text: {error}") from error
    model = checkpoints.load(checkpoint)
    with only_writer(options.out):
        export(model, options.out, card)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out} written ({size / 2**20:.2f} MiB): {model}")


def _parser() -> CommandParser:
    parser = CommandParser("export", _DESCRIPTION)
    parser.add_argument("model", metavar="RUN", help="a run's folder, a checkpoint or a name")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--card", type=Path, required=True, help="a Markdown file: what there is to know of it"
    )
    add_allow(parser)
    return parser
