"""Models that are trained already: those that come with npbench, and those of runs.

`load(name_or_path)` gives one that is ready; `names()` says which come with npbench, and the
README.md of each says how it was trained and how good it is. `export` makes such a folder of any
model.
"""

from npbench.pretrained.model_files import export, find, load, names

__all__ = ["export", "find", "load", "names"]
