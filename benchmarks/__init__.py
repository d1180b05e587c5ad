"""Measurements that anyone can run: `python -m benchmarks.NAME`."""

from npbench.messages import quieten

# Before any of them imports GPyTorch, which warns.
quieten()
