"""How long commands take to start, and what they import.

    python -m benchmarks.startup            # a minute on one core

Each command runs in a process of its own, several times; its least time is shown, and how much of
it is beyond that of `import torch`. `condition` and `query` do their work with the paper's CMANP
on a table of 1,000 rows. Below are the packages that each imports, with the seconds they take.
It ends with exit code 1 if `npbench --help` takes a second or more, or help or work of `condition`
and `query` a second more than torch.
"""

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

_LIMITED = [
    "npbench --help", "npbench condition --help", "npbench query --help", "npbench condition",
    "npbench query",
]  # fmt: skip
# Packages that take less are summed up.
_SHOWN = 0.01
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with TemporaryDirectory() as folder:
        processes = {
            "import torch": ["-c", "import torch"],
            "import npbench.training": ["-c", "import npbench.training"],
        }
        for name, arguments in commands_in(folder).items():
            processes[f"npbench {name}"] = ["-m", "npbench", *arguments]
        times = least_seconds(processes, repeats)
        imported = {name: imports(arguments) for name, arguments in processes.items()}
    torch_seconds = times["import torch"]
    for name, seconds in times.items():
        print(f"{name:26}{seconds:6.2f} s  {seconds - torch_seconds:+.2f} s beyond torch")
    for name, packages in imported.items():
        print(f"\n{name} imports {listed(packages)}")
    slow = [
        name for name in _LIMITED
        if times[name] >= 1 + (0 if name == "npbench --help" else torch_seconds)
    ]  # fmt: skip
    if slow:
        raise SystemExit(f"too slow: {', '.join(slow)}")


def commands_in(folder: str) -> dict[str, list[str]]:
    """The arguments of each command; what they need is made in a folder."""
    import pandas as pd

    from npbench.models import CMANP
    from npbench.training import MetaRegression
    from npbench.training.lightning_parts import save_untrained

    ckpt, points, state, out = (
        str(Path(folder) / name) for name in ("cmanp.ckpt", "points.csv", "state", "out.csv")
    )
    save_untrained(MetaRegression(CMANP(dim_x=2, dim_y=1)), Path(ckpt))
    values = np.random.default_rng(0).standard_normal((1000, 3))
    pd.DataFrame(values, columns=["lat", "lon", "t"]).to_csv(points, index=False)
    return {
        "--help": ["--help"],
        "condition --help": ["condition", "--help"],
        "query --help": ["query", "--help"],
        "condition": [
            "condition", "--ckpt", ckpt, "--data", points, "--x", "lat,lon", "--y", "t",
            "--out", state,
        ],
        "query": ["query", "--state", state, "--targets", points, "--out", out],
        "fit --help": ["fit", "--help"],
    }  # fmt: skip


def least_seconds(processes: Mapping[str, Sequence[str]], repeats: int) -> dict[str, float]:
    """The least time of each Python process; they take turns."""
    times = dict.fromkeys(processes, inf)
    for _ in range(repeats):
        for name, arguments in processes.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def imports(arguments: Sequence[str]) -> Counter[str]:
    """The seconds that the modules of each package take to import, within a Python process."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], check=True, capture_output=True, text=True
    )
    packages: Counter[str] = Counter()
    for microseconds, module in _LINE.findall(result.stderr):
        packages[module.partition(".")[0]] += int(microseconds) / 1e6
    return packages


def listed(packages: Counter[str]) -> str:
    """The packages that are not Python's own, the slowest first."""
    own = {*sys.stdlib_module_names, "site", "_distutils_hack"}
    foreign = [(name, seconds) for name, seconds in packages.most_common() if name not in own]
    shown = [f"{name} {seconds:.2f} s" for name, seconds in foreign if seconds >= _SHOWN]
    rest = [name for name, seconds in foreign if seconds < _SHOWN]
    return ", ".join([*shown, *([f"{len(rest)} small ones ({', '.join(rest)})"] if rest else [])])


if __name__ == "__main__":
    main()
