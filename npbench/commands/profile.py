"""`npbench profile`: peak memory and time of models as the context grows."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console, Group

from npbench.commands.arguments import add_device, size
from npbench.commands.progress import progress_bar
from npbench.commands.sections import instantiate
from npbench.commands.tables import table_of
from npbench.files import only_writer, output_file
from npbench.messages import CommandParser
from npbench.profiling import PHASES, profile, profile_figure
from npbench.training.base import TrainingModule

_DESCRIPTION = """\
Measure what conditioning, querying, updating and a training step take as the context grows.

  npbench profile --config configs/gp/cmanp.yaml --context-sizes 1e3,1e4,1e5
  npbench profile --config configs/gp/cmanp.yaml configs/gp/lbanp.yaml configs/gp/tnpd.yaml

The context of an event model is its history, and the query is for the next event; that of a
classifier is a sequence of tokens, and it has the phases query and train. The models are those of
the configurations, untrained; fields of all can be set by --model.FIELD, as in
--model.model.context_chunk_size 1000, for training steps of constant memory."""


def run(args: Sequence[str]) -> None:
    options, fields = _parser().parse_with_fields(args, "model")
    modules = {
        path.stem: instantiate(path, "model", TrainingModule, fields) for path in options.config
    }
    with only_writer(options.out):
        _profile(options, modules)


def _profile(options: Namespace, modules: Mapping[str, TrainingModule]) -> None:
    profiles = {}
    with progress_bar() as progress:
        total = len(options.context_sizes) * len(options.phases)
        for name, module in modules.items():
            rows = profile(
                module.model.to(options.device), options.context_sizes, options.num_targets,
                options.phases, options.device, options.time_limit,
            )  # fmt: skip
            profiles[name] = pd.DataFrame(progress.track(rows, total=total, description=name))
            module.model.cpu()
    Console().print(render(profiles, options.context_sizes, options.phases))
    rows = pd.concat(profiles, names=["model"]).reset_index("model")
    with output_file(options.out / "profile.csv") as file:
        rows.to_csv(file, index=False)
    with output_file(options.out / "profile.png") as file:
        profile_figure(profiles).savefig(file, format="png")
    print(f"profile.csv and profile.png written to {options.out}")


def _parser() -> CommandParser:
    parser = CommandParser("profile", _DESCRIPTION)
    parser.add_argument("--config", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--context-sizes", type=_sizes, default=[1000, 10_000, 100_000], metavar="N,N,…",
        help="numbers of context points, or of events (default: 1e3,1e4,1e5)",
    )  # fmt: skip
    parser.add_argument(
        "--num-targets", type=size, default=1000, metavar="M",
        help="in query and train; event models have none (default: 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--phases", type=lambda text: text.split(","), default=list(PHASES), metavar="PHASE,…",
        help=f"of {','.join(PHASES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--time-limit", type=float, default=60.0, metavar="SECONDS",
        help="leave out sizes that would take longer in one call (default: 60)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("profile"), help="folder to write to")
    add_device(parser)
    return parser


def _sizes(text: str) -> list[int]:
    return sorted(size(part) for part in text.split(","))


def render(
    profiles: dict[str, pd.DataFrame], context_sizes: Sequence[int], phases: Sequence[str]
) -> Group:
    """A table of memory and one of time: a row a model and size, a column a phase."""
    columns = ["model", "context", *phases]
    memory = table_of(columns, "Peak memory of one task beyond its inputs. OOM: out of memory.")
    time = table_of(columns, "Time. –: left out, as it would take longer than --time-limit.")
    for name, rows in profiles.items():
        by_place = rows.set_index(["num_context", "phase"]).to_dict("index")
        for number in context_sizes:
            cells = [_cells(by_place.get((number, phase))) for phase in phases]
            for table, column in zip((memory, time), zip(*cells), strict=True):
                table.add_row(name, f"{number:,}", *column)
    return Group(memory, time)


def _cells(row: dict[str, float] | None) -> tuple[str, str]:
    if row is None:
        return "–", "–"
    seconds = row["seconds"]
    if pd.isna(seconds):
        return "OOM", "OOM"
    time = f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
    kibibytes = row["peak_bytes"] / 2**10
    small = kibibytes < 100
    return f"{kibibytes:.1f} KiB" if small else f"{kibibytes / 2**10:,.1f} MiB", time
