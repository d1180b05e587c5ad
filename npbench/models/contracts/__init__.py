"""What every model must be: the verbs, the states, and what they share.

`process` is the contract of neural processes and `events` that of event models; `joint`, `mixture`
and `stored_context` are bases of families; `inputs` checks what comes in, as sets of `points`;
`state_files` keeps states in files.
"""

from npbench.models.contracts.events import EventEvaluation, EventModel, EventState
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import (
    Evaluation,
    Marginals,
    NeuralProcess,
    State,
    merge_all,
    records_arguments,
)

__all__ = [
    "Evaluation",
    "EventEvaluation",
    "EventModel",
    "EventState",
    "Marginals",
    "NeuralProcess",
    "Points",
    "State",
    "merge_all",
    "records_arguments",
]
