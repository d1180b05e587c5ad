"""npbench: train, measure and use constant-memory neural processes."""

from npbench.task import Exact, Task

__all__ = ["Exact", "Task"]
