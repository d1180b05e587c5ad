"""What every model must be: the verbs, the states, and what they share.

`process` is the contract of neural processes, `events` that of event models, and `classifier` that
of classifiers of sequences; `joint`, `mixture`
and `stored_context` are bases of families, and `merging` that of models whose states merge;
`inputs` checks what comes in, as sets of `points`, and `ranges` whether it is far from what was
trained on; `state_files` keeps states in files, and a `ledger` which points they have absorbed;
`memory` is what can be seen of a model's latents.
"""

from npbench.models.contracts.classifier import SequenceClassifier
from npbench.models.contracts.events import EventEvaluation, EventModel, EventState
from npbench.models.contracts.memory import HasMemory, MemoryView
from npbench.models.contracts.merging import ForgettingProcess, MergingProcess
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import (
    Evaluation,
    Marginals,
    NeuralProcess,
    State,
    merge_all,
    records_arguments,
)
from npbench.models.contracts.saved_state import SavedState

__all__ = [
    "Evaluation",
    "EventEvaluation",
    "EventModel",
    "EventState",
    "ForgettingProcess",
    "HasMemory",
    "Marginals",
    "MemoryView",
    "MergingProcess",
    "NeuralProcess",
    "Points",
    "SavedState",
    "SequenceClassifier",
    "State",
    "merge_all",
    "records_arguments",
]
