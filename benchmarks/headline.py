"""100,000 context points and 1,000,000 targets with the paper's CMANP: time and memory.

    python -m benchmarks.headline

The size is the headline of TNP-KR (under a minute on a 24 GB GPU).
"""

import argparse
import resource

import torch
from torch import Tensor

from benchmarks.timing import timed
from npbench.commands.arguments import add_device
from npbench.models import CMANP
from npbench.models.contracts.process import evaluating


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=float, default=1e5)
    parser.add_argument("--targets", type=float, default=1e6)
    add_device(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = CMANP(dim_x=1, dim_y=1).to(options.device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}")

    def points(number: float) -> tuple[Tensor, Tensor]:
        x, y = torch.randn(2, 1, int(number), 1, device=options.device)
        return x, y

    with evaluating(model):
        context, (xt, _) = points(options.context), points(options.targets)
        model.query(model.condition(*points(2000)), xt[:, :2000])  # warm up
        state, condition = timed(lambda: model.condition(*context))
        _, query = timed(lambda: model.query(state, xt))
        print(
            f"{context[0].shape[1]:,} context points, {xt.shape[1]:,} targets: {condition:.2f} s + "
            f"{query:.2f} s = {condition + query:.2f} s; the whole process at most "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
        )


if __name__ == "__main__":
    main()
