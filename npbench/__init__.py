"""npbench: train, measure and use constant-memory neural processes."""

from npbench import errors
from npbench.events import EventSequences
from npbench.task import Bayes, Exact, Task

__all__ = ["Bayes", "EventSequences", "Exact", "Task", "errors"]
