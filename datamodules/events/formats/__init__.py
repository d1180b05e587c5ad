"""The file formats of event sequences. Each has its module; `detect` finds out which one it is."""

from datamodules.events.formats.detect import EventFormat, load_events
from datamodules.events.formats.event_table import (
    EventTable,
    OnDisorder,
    OnDuplicates,
    UnknownMarks,
    Vocabulary,
)

__all__ = [
    "EventFormat",
    "EventTable",
    "OnDisorder",
    "OnDuplicates",
    "UnknownMarks",
    "Vocabulary",
    "load_events",
]
