"""npbench: train, measure and use constant-memory neural processes."""

from typing import TYPE_CHECKING

from npbench.lazy import lazy_names

if TYPE_CHECKING:
    from npbench import errors
    from npbench.events import EventSequences
    from npbench.interop.sklearn import NeuralProcessRegressor
    from npbench.pretrained import load
    from npbench.sequences import TokenSequences
    from npbench.task import Bayes, Exact, Task

# That of pyproject.toml, which a test compares.
__version__ = "0.2.0"

__all__ = [
    "Bayes",
    "EventSequences",
    "Exact",
    "NeuralProcessRegressor",
    "Task",
    "TokenSequences",
    "__version__",
    "errors",
    "load",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "npbench": ["errors"],
        "npbench.events": ["EventSequences"],
        "npbench.interop.sklearn": ["NeuralProcessRegressor"],
        "npbench.pretrained": ["load"],
        "npbench.sequences": ["TokenSequences"],
        "npbench.task": ["Bayes", "Exact", "Task"],
    },
)
