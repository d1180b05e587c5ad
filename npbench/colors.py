"""The colours of figures: a model has the same one everywhere."""

from collections.abc import Iterable
from zlib import crc32

EXACT = "#3a9a5b"
"""Of what is known to be right: the process that made a task."""

BAYES = "#93cba7"
"""Of the best prediction that does not know the process, but its priors."""

CLASSES = ("#c8402f", "#3f6fb0", "#f0e6c8", "#4a9d5b", "#8a5cb0", "#e0a526", "#5f6b73", "#e58fb1")
"""Of classes, in their order: of an epidemic infected, recovered and susceptible sites."""

UNKNOWN = "#d9dcdf"
"""Of what is not in the context."""

_COLORS = {
    "CMANP": "#2a6fbb", "CMANPAND": "#7fb2e5",
    "LocatedCMANP": "#c8553d", "LocatedCMANPAND": "#e8a08f",
    "SecondMomentNP": "#8a5cb0", "SecondMomentJointNP": "#bf9ad9", "FourierMomentNP": "#5b2c83",
    "CNP": "#8c8c2b", "CANP": "#c9c24f", "NP": "#8f4a1e", "ANP": "#d59a6a",
    "BNP": "#c2407f", "BANP": "#eaa5cb",
    "TNPD": "#e0a526", "TNPA": "#f2d58c", "TNPND": "#a8780f",
    "TNPKR": "#7a5c00", "TNPKRND": "#fbe9b7", "ConvCNP": "#a3324a",
    "LBANP": "#0f8b8d", "LBANPND": "#74cbc7", "EQTNP": "#4d5a66",
    # Models of events are never beside the others.
    "CMHP": "#2a6fbb", "THP": "#e0a526",
}  # fmt: skip
_OTHERS = (
    "#d1495b", "#00798c", "#9a8c98", "#66a182", "#b5651d", "#5c6bc0", "#7cb518", "#3c3c3c",
)  # fmt: skip


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """The colours of models in a figure, by their names.

    A model of npbench has the colour of its class, with or without hyphens in its name. Any other
    name has one that follows from its letters, unless another name of the figure has taken it.

    Example:
        >>> colors_of(["CMANP", "TNP-D"])
        {'CMANP': '#2a6fbb', 'TNP-D': '#e0a526'}
    """
    names = list(names)
    colors = {name: _COLORS.get(name.replace("-", ""), "") for name in names}
    for name in names:
        if not colors[name]:
            start = crc32(name.encode()) % len(_OTHERS)
            order = _OTHERS[start:] + _OTHERS[:start]
            free = [color for color in order if color not in colors.values()]
            colors[name] = (free or order)[0]
    return colors
