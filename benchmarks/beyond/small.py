"""Small contexts: where the gap to the best possible predictor is, and tries to lower it.

python -m benchmarks.beyond.small runs/gp/second-moment/version_0 runs/gp/located/version_0
"""

import argparse
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.beyond.recipe import Experiment
from datamodules import GPDataModule
from datamodules.loading import Part
from datamodules.sampling import TaskSizes
from npbench.commands.checkpoints import find, load
from npbench.likelihoods import NormalMixture
from npbench.models import SecondMomentNP
from npbench.models.contracts.process import evaluating
from npbench.models.contracts.second_moment import SecondMomentState

_SIZES = (3, 4, 5, 6, 7, 8, 12, 17, 25, 47)
_TOGETHER = 16


class SmallerSizes(TaskSizes):
    """Half of the tasks have 3 to 9 context points."""

    def _draw_one(self) -> tuple[int, int]:
        num_context, num_targets = super()._draw_one()
        if torch.rand(()) < 0.5:
            num_context = int(torch.randint(self.min, 10, ()))
        return num_context, num_targets


class SmallerContexts(GPDataModule):
    """Training tasks are those of `SmallerSizes`; evaluation tasks are as ever."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        sizes = self.sizes
        self.sizes = SmallerSizes(sizes.min, sizes.max, None, sizes.num_targets, sizes.vary)


class EvidenceByNumber(SecondMomentNP):
    r"""`SecondMomentNP` whose evidence has another power for another number of context points:
    $\log \tau(n) = \log \tau + \theta (\log (n + 1) - 3)$, with θ = 0 at first."""

    def __init__(self) -> None:
        super().__init__(1, 1, rate=30.0)
        self.slope = nn.Parameter(torch.zeros(()))

    def _predict(self, state: SecondMomentState, xt: Tensor) -> NormalMixture:
        posterior, count = state.posterior, state.moments.count
        slope = self.heads.log_temperature.rate * self.slope * ((count + 1).log() - 3)
        evidence = posterior.log_evidence * slope.exp()[:, None]
        mean, std = self.heads.predict(posterior, xt)
        scores = self.heads.logit() + self.heads.log_temperature().exp() * evidence
        log_weight = scores.log_softmax(dim=-1).to(mean.dtype)[:, None].expand(mean.shape[:3])
        mixture = NormalMixture(log_weight, mean, std[..., None].expand_as(mean))
        return self.correct(mixture, count, posterior.log_evidence.amax(dim=-1))


EXPERIMENTS = {
    "small-sampled": Experiment(
        "half of the tasks with 3 to 9 points",
        partial(SecondMomentNP, 1, 1, rate=30.0),
        tasks_class=SmallerContexts,
    ),
    "small-evidence": Experiment("a power of the evidence by number of points", EvidenceByNumber),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="checkpoints, or the folders of runs")
    parser.add_argument(
        "--tasks", type=int, default=1600, help="of which those of 8 points or more"
    )
    parser.add_argument("--small", type=int, default=4800, help="of fewer points")
    parser.add_argument("--draws", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = GPDataModule(bayes_grid=options.draws)
    sizes = context_sizes(options.small)
    chosen = [i for i, n in enumerate(sizes) if n < 8 or i < options.tasks]
    models = {str(run): load(find(run)) for run in options.runs}
    scores = {name: [] for name in ("exact", "Bayes", "its Gaussian", *models)}
    for start in range(0, len(chosen), _TOGETHER):
        task = data.evaluation_batch(chosen[start : start + _TOGETHER], Part.TEST)
        scores["exact"].append(task.exact.log_likelihood)
        scores["Bayes"].append(task.bayes.log_likelihood)
        scores["its Gaussian"].append(task.bayes.gaussian_log_likelihood)
        for name, model in models.items():
            with evaluating(model):
                scores[name].append(model.log_likelihood(task))
    values = {name: torch.cat(parts) for name, parts in scores.items()}
    number = torch.tensor([sizes[i] for i in chosen])
    print(f"{'N':<8}{'tasks':>6}" + "".join(f"{name[-24:]:>26}" for name in values))
    for low, high in pairwise(_SIZES):
        inside = (number >= low) & (number < high)
        row = "".join(
            f"{gap(values[name][inside], values['Bayes'][inside]):>26}" for name in values
        )
        name = f"{low}" if high == low + 1 else f"{low}–{high - 1}"
        print(f"{name:<8}{int(inside.sum()):>6}{row}", flush=True)


def context_sizes(number: int) -> list[int]:
    """N of the first test tasks."""
    data, sizes = GPDataModule(), []
    for start in range(0, number, 64):
        task = data.evaluation_batch(range(start, min(start + 64, number)), Part.TEST)
        real = torch.ones(task.xc.shape[:2]) if task.context_mask is None else task.context_mask
        sizes += real.sum(dim=-1).long().tolist()
    return sizes


def gap(values: Float[Tensor, "tasks"], ceiling: Float[Tensor, "tasks"]) -> str:
    """The mean, and what it is below the ceiling, with the standard error of that."""
    below = ceiling - values
    return f"{values.mean():.3f} ({below.mean():+.3f} ± {below.std() / len(below) ** 0.5:.3f})"


if __name__ == "__main__":
    main()
