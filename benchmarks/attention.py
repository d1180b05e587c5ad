"""The fused (lse, out) kernel against its public fallback: time of a chunk, forward and backward.

python -m benchmarks.attention
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import median_seconds
from npbench.attention import attention_with_lse
from npbench.attention.backward import fused_attention_with_lse

Attend = Callable[..., tuple[Tensor, Tensor]]


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; 4 heads of 16, float32")
    print(f"{'batch x queries x points':<32}{'fused':>10}{'fallback':>12}{'ratio':>9}")
    for batch, queries, points in ((16, 128, 46), (1, 128, 1000), (1, 128, 10_000)):
        q, k, v = (
            torch.randn(batch, 4, size, 16, requires_grad=True)
            for size in (queries, points, points)
        )

        for name, backward in (("forward", False), ("and backward", True)):

            def measure(
                attend: Attend, backward: bool = backward, inputs: tuple = (q, k, v)
            ) -> float:
                return median_seconds(lambda: run(attend, *inputs, backward=backward))

            fused, fallback = measure(fused_attention_with_lse), measure(attention_with_lse)
            shape = f"{batch} x {queries} x {points} {name}"
            print(f"{shape:<32}{fused:>8.2e} s{fallback:>10.2e} s{fallback / fused:>8.1f}x")


def run(attend: Attend, q: Tensor, k: Tensor, v: Tensor, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        lse, out = attend(q, k, v, None)
    if backward:
        (lse.sum() + out.sum()).backward()


if __name__ == "__main__":
    main()
