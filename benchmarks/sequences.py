"""Time and peak memory of classifiers of sequences, as sequences grow.

    python -m benchmarks.sequences            # 3 minutes on one core

Every model has the same sizes: width 128, 4 layers, 4 heads, feed-forward 512, and 16 memory
vectors. A row is one sequence: its logits, without gradients (query), and the gradients of its loss
(train). It prints a table in Markdown.
"""

import argparse
from collections.abc import Callable

import torch

from npbench.models import (
    RMT,
    CausalLuna,
    ConvLuna,
    Luna,
    MemoryTransformer,
    SequenceClassifier,
    Transformer,
)
from npbench.profiling import profile

_SIZES = {"dim_model": 128, "num_layers": 4, "num_heads": 4, "dim_feedforward": 512}
_MEMORY = _SIZES | {"num_memory": 16}
_LUNA = _MEMORY | {"dim_classifier": 512}
# By the number of learned positions, where there are any.
_MODELS: dict[str, Callable[[int], SequenceClassifier]] = {
    "Transformer": lambda _: Transformer(17, 10, **_SIZES),
    "Memory Transformer": lambda _: MemoryTransformer(17, 10, max_length=None, **_MEMORY),
    "the same, bottleneck": lambda _: MemoryTransformer(
        17, 10, max_length=None, variant="bottleneck", **_MEMORY
    ),
    "Luna": lambda most: Luna(17, 10, max_length=most, **_LUNA),
    "ConvLuna": lambda most: ConvLuna(17, 10, max_length=most, **_MEMORY),
    "causal Luna": lambda _: CausalLuna(17, 10, **_MEMORY),
    "RMT": lambda _: RMT(17, 10, segment_length=500, num_gradient_segments=4, **_MEMORY),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000])
    parser.add_argument("--models", nargs="+", choices=list(_MODELS), default=list(_MODELS))
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds of one call")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}\n")
    print("| | tokens | query | train |\n|---|---|---|---|")
    for name in options.models:
        torch.manual_seed(0)
        model = _MODELS[name](max(options.lengths)).to(options.device)
        rows = profile(
            model, options.lengths, phases=("query", "train"), device=options.device,
            time_limit=options.time_limit,
        )  # fmt: skip
        cells: dict[int, dict[str, str]] = {length: {} for length in options.lengths}
        for row in rows:
            memory = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.1f} MiB"
            time = "–" if row["seconds"] is None else f"{row['seconds']:.3g} s"
            cells[row["num_context"]][row["phase"]] = f"{memory}, {time}"
        for length, cell in cells.items():
            shown = name if length == options.lengths[0] else ""
            texts = [cell.get(phase, "–") for phase in ("query", "train")]
            print(f"| {shown} | {length:,} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
