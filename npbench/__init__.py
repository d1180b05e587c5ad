"""npbench: train, measure and use constant-memory neural processes."""

from npbench import errors
from npbench.events import EventSequences
from npbench.task import Exact, Task

__all__ = ["EventSequences", "Exact", "Task", "errors"]
