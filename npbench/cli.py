"""The `npbench` command. It imports no more than the command that is called needs."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from npbench.commands import COMMANDS
from npbench.errors import InputError
from npbench.messages import explain, quieten, refuse

_HELP = """\
usage: npbench COMMAND [--help] [options]

Train, measure and use constant-memory neural processes.

  npbench fit --config configs/gp/cmanp-small.yaml
  npbench fit --config npbench:gp/cmanp-small --trainer.max_steps 500   (where there is no checkout)
  npbench test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  npbench predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  npbench compare RUN RUN
  npbench condition --ckpt RUN --data points.parquet --x lat,lon --y temperature --out STATE
  npbench query --state STATE --targets grid.parquet --out predictions.parquet

Models of event sequences are trained, tested and asked for predictions by the same commands:
  npbench fit --config configs/events/stackoverflow/cmhp.yaml

Each run writes to a new folder RUN below trainer.default_root_dir: its configuration, metrics (CSV
and TensorBoard), figures and checkpoints. A run that was cut off goes on exactly where it was with
  npbench fit --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
and another one, on other data or with another optimiser, begins with its weights by
  npbench fit --config CONFIG --init_from RUN

commands (npbench COMMAND --help says more):
{commands}
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; an error that a user can mend ends in one sentence and exit code 1."""
    quieten()
    # Class paths may name modules of the working folder; those that are installed come first.
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
    command, *rest = (sys.argv[1:] if args is None else args) or [""]
    if command in ("-h", "--help"):
        listed = (f"  {name:17}{command.summary}" for name, command in COMMANDS.items())
        print(_HELP.format(commands="\n".join(listed)), end="")
        raise SystemExit(0)
    try:
        if any("npbench:" in word for word in rest):
            rest = import_module("npbench.commands.packaged").with_packaged(rest)
            if args is None:  # Lightning reads them itself
                sys.argv[2:] = rest
            else:
                args = [command, *rest]
        if command in COMMANDS:
            run = import_module(f"npbench.commands.{COMMANDS[command].module}").run
            # Lightning takes the arguments with the command before them.
            run(args if COMMANDS[command].module == "trainer" else rest)
        elif command.startswith("-"):
            import_module("npbench.commands.trainer").run(args)
        else:
            given = f"there is no command '{command}'" if command else "a command is missing"
            refuse(f"{given}; choose from {', '.join(COMMANDS)}", list(COMMANDS), "npbench")
    except (InputError, OSError) as error:
        if os.environ.get("NPBENCH_TRACEBACK"):
            raise
        print(f"npbench: error: {explain(str(error))}", file=sys.stderr)
        print("(NPBENCH_TRACEBACK=1 shows where it arose)", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as interrupt:
        print(f"npbench: interrupted{interrupt}", file=sys.stderr)
        raise SystemExit(130) from None
