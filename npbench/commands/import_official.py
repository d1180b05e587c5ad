"""`npbench import-official`: a checkpoint of the paper's official code becomes one of ours."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from npbench.commands.sections import instantiate
from npbench.errors import InputError
from npbench.files import only_writer
from npbench.interop import official
from npbench.messages import CommandParser
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained

_DESCRIPTION = """\
Turn a checkpoint of the paper's official code into one that npbench takes.

  npbench import-official results/gp/cmanp/ckpt.tar --model cmanp --config configs/gp/cmanp.yaml
  npbench test --config configs/gp/cmanp.yaml --ckpt_path results/gp/cmanp/npbench-cmanp.ckpt

The configuration says which model it is and how large; any field of its model section can be set,
as in --model.model.num_latents 64. The number of heads leaves no trace in the weights, so that it
cannot be checked. The file is read without running code."""


def run(args: Sequence[str]) -> None:
    options, fields = _parser().parse_with_fields(args, "model")
    out = options.out or options.checkpoint.with_name(f"npbench-{options.model}.ckpt")
    if out.exists() and out.samefile(options.checkpoint):
        raise InputError(f"{out} is the official checkpoint itself; name another file by --out")
    module = instantiate(options.config, "model", MetaRegression, fields)
    official.load_weights(module.model, options.model, options.checkpoint)
    with only_writer(out):
        save_untrained(module, out)
    print(f"{out} written; evaluate it with")
    test = ["npbench", "test", "--config", options.config, *fields, "--ckpt_path", out]
    print(f"  {shlex.join(map(str, test))}")


def _parser() -> CommandParser:
    parser = CommandParser("import-official", _DESCRIPTION)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="official checkpoint")
    parser.add_argument("--model", required=True, help="its official name: cmanp, lbanpnd, …")
    parser.add_argument("--config", type=Path, required=True, help="whose model section it fits")
    parser.add_argument("--out", type=Path, help="npbench-MODEL.ckpt beside CKPT by default")
    return parser
