"""Conditioning on millions of points: time beside the official way, memory, and one more point.

    python -m benchmarks.streaming            # 2 minutes on two cores

1. One million points become a state; in the same run also the way of the paper's official code:
   all points embedded at once, then block after block 1,000 points at a time through plain
   attention (scores, softmax, product). Both start from the same weights and end in the same state.
2. The most memory that a whole process takes to condition on points which a generator makes: a
   hundred thousand of them, and ten million.
3. `update` by one point, from states of 100 and of a million points.
4. The most memory of tensors that `update` takes beyond the points themselves: for ten thousand new
   points, and for a million.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import seconds
from npbench.attention import AttentionState
from npbench.models import CMANP
from npbench.models.contracts.process import evaluating
from npbench.profiling import measure

_BLOCK = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=float, default=1e6, help="of the first part")
    parser.add_argument("--streamed", type=float, nargs=2, default=(1e5, 1e7), help="of the second")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-stream", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = CMANP(dim_x=1, dim_y=1)
    with evaluating(model):
        if options.only_stream:
            model.condition(generated(int(options.only_stream)))
            return print(peak_kilobytes())
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, the paper's CMANP")
        compare_speed(model, int(options.points), options.repeats)
        compare_memory([int(number) for number in options.streamed])
        compare_updates(model)
        compare_memory_of_updates(model)


def compare_speed(model: CMANP, number: int, repeats: int) -> None:
    x, y = torch.randn(2, 1, number, 1)
    ways = {"npbench": lambda: model.condition(x, y), "official way": lambda: plainly(model, x, y)}
    states = {name: way() for name, way in ways.items()}
    error = (states["npbench"].attention.out - states["official way"].out).abs().max()
    # In turn, so that both meet the machine in all its moods.
    times = [{name: seconds(way) for name, way in ways.items()} for _ in range(repeats)]
    for name in ways:
        print(f"{number:,} points, {name:<14}{statistics.median(t[name] for t in times):8.2f} s")
    ratios = [t["official way"] / t["npbench"] for t in times]
    print(f"ratio {statistics.median(ratios):.2f}, states differ by at most {error:.0e}")


def plainly(model: CMANP, x: Tensor, y: Tensor) -> AttentionState:
    """The blocks' states as the official code arrives at them."""
    embedding = model.embed_points(torch.cat([x, y], dim=-1))
    states = []
    for block in model.blocks:
        layer, state = block.attend_points, None
        q = layer.attention.queries(layer.norm(block.latents[None]))
        for points in embedding.split(_BLOCK, dim=1):
            k, v = layer.attention.keys_values(layer.norm_context(points))
            scores = q @ k.mT * q.shape[-1] ** -0.5
            more = AttentionState(scores.logsumexp(dim=-1), scores.softmax(dim=-1) @ v)
            state = more if state is None else state.merge(more)
        states.append(state)
    return AttentionState.stack(states)


def compare_memory(numbers: list[int]) -> None:
    """Each in a process of its own, as the operating system keeps its most."""
    peaks = []
    for number in numbers:
        command = [sys.executable, "-m", "benchmarks.streaming", "--only-stream", str(number)]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout) / 1024)
        print(
            f"{number:>12,} generated points: the process takes {peaks[-1]:7.1f} MiB at most, "
            f"{time.perf_counter() - start:6.1f} s"
        )
    print(f"difference {peaks[-1] - peaks[0]:.1f} MiB")


def compare_updates(model: CMANP) -> None:
    point = torch.randn(2, 1, 1, 1)
    states = {number: model.condition(generated(number)) for number in (100, 1_000_000)}
    for number, state in states.items():
        times = [seconds(lambda: model.update(state, *point)) for _ in range(50)]  # noqa: B023
        median = statistics.median(times)
        print(f"update by one point after {number:>9,} points: {1e3 * median:.2f} ms")


def compare_memory_of_updates(model: CMANP) -> None:
    state = model.condition(generated(100))
    for number in (10_000, 1_000_000):
        points = torch.randn(2, 1, number, 1)
        measured = measure(lambda: model.update(state, *points), repeats=1)  # noqa: B023
        print(
            f"update by {number:>9,} new points takes {measured.peak_bytes / 2**20:.2f} MiB, "
            f"{measured.seconds:.2f} s"
        )


def generated(number: int, size: int = 10_000) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for start in range(0, number, size):
        yield torch.randn(2, 1, min(size, number - start), 1, generator=generator).unbind()


def peak_kilobytes() -> int:
    """The most that this process has taken; `ru_maxrss` counts in what the one that started it took
    before, where the system keeps no better count."""
    try:
        (line,) = (
            x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
        )
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(line.split()[1])


if __name__ == "__main__":
    main()
