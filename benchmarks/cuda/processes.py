"""Two processes on one device."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from benchmarks.cuda.correctness import difference
from benchmarks.located import function
from npbench.models import CMANP, LocatedCMANP, SecondMomentNP
from npbench.models.contracts.process import evaluating


def processes(device: torch.device, points: int) -> Iterator[dict[str, Any]]:
    """Two processes on one device: the merged state predicts as that of one process."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in (CMANP, LocatedCMANP, SecondMomentNP):
            result = Path(folder) / kind.__name__
            store = Path(folder) / f"{kind.__name__}.store"
            multiprocessing.spawn(_condition_half, (kind, device, points, store, result), 2)
            yield {"model": kind.__name__, **json.loads(result.read_text())}


def _condition_half(
    rank: int, kind: type, device: torch.device, points: int, store: Path, result: Path
) -> None:
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(store), 2), rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = kind(1, 1).to(device)
    x, y = (z.to(device) for z in function(points))
    xt = torch.linspace(-2, 2, 100, device=device)[None, :, None]
    half = slice(rank * points // 2, (rank + 1) * points // 2)
    with evaluating(model):
        whole = torch.stack(model.marginals(model.condition(x, y), xt))
        distributed.barrier()
        start = time.perf_counter()
        merged = model.all_merge(model.condition(x[:, half], y[:, half]))
        apart = torch.stack(model.marginals(merged, xt))
        float(apart.sum())  # waits for the device
    seconds = time.perf_counter() - start
    if rank == 0:
        row = {"points": points, "seconds": seconds, "difference": difference(apart, whole.cpu())}
        result.write_text(json.dumps(row))
    distributed.destroy_process_group()
