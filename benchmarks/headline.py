"""100,000 context points and 1,000,000 targets: time, memory and bytes of the state.

    python -m benchmarks.headline                                  # the paper's CMANP
    python -m benchmarks.headline --model tnpkr-deep_kernel        # or tnpkr-performer
    python -m benchmarks.headline --model tnpkr-scan --context 1e4 --targets 1e4

The size is the headline of TNP-KR (under a minute on a 24 GB GPU). Scan attention takes N²
operations to condition and N·M to query: at a smaller size it also prints what that means for the
full one.
"""

import argparse
import resource

import torch
from torch import Tensor

from benchmarks.timing import timed
from npbench.commands.arguments import add_device
from npbench.models import CMANP, TNPKR, NeuralProcess
from npbench.models.contracts.process import evaluating

_CONTEXT, _TARGETS = 1e5, 1e6
_ATTENTIONS = ("scan", "deep_kernel", "performer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["cmanp", *(f"tnpkr-{attention}" for attention in _ATTENTIONS)]
    parser.add_argument("--model", choices=names, default="cmanp")
    parser.add_argument("--context", type=float, default=_CONTEXT)
    parser.add_argument("--targets", type=float, default=_TARGETS)
    add_device(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = model_of(options.model).to(options.device)
    print(f"{options.model}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"{options.device}")  # fmt: skip

    def points(number: float) -> tuple[Tensor, Tensor]:
        x, y = torch.randn(2, 1, int(number), 1, device=options.device)
        return x, y

    with evaluating(model):
        context, (xt, _) = points(options.context), points(options.targets)
        model.query(model.condition(*points(2000)), xt[:, :2000])  # warm up
        state, condition = timed(lambda: model.condition(*context))
        _, query = timed(lambda: model.query(state, xt))
        num_context, num_targets = context[0].shape[1], xt.shape[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{num_context:,} context points, {num_targets:,} targets: {condition:.2f} s + "
            f"{query:.2f} s = {condition + query:.2f} s; a state of {state.nbytes:,} bytes; the "
            f"whole process at most {peak:.2f} GiB"
        )
    if isinstance(model, TNPKR) and model.attention != "scan":
        print(f"without its points the state has {model.without_points(state).nbytes:,} bytes")
    elif isinstance(model, TNPKR) and (num_context, num_targets) != (_CONTEXT, _TARGETS):
        by_pairs = (_CONTEXT / num_context) ** 2
        by_targets = _CONTEXT * _TARGETS / (num_context * num_targets)
        print(
            f"extrapolated by N² and N·M to {_CONTEXT:,.0f} and {_TARGETS:,.0f}: "
            f"{condition * by_pairs:,.0f} s + {query * by_targets:,.0f} s"
        )


def model_of(name: str) -> NeuralProcess:
    family, _, attention = name.partition("-")
    return CMANP(dim_x=1, dim_y=1) if family == "cmanp" else TNPKR(1, 1, attention=attention)


if __name__ == "__main__":
    main()
