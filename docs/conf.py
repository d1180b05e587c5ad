"""The documentation site: `make docs` builds it into docs/_build, and fails on any warning."""

import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from docstrings import restructured

ROOT = Path(__file__).parents[1]
_NOTEBOOKS = """\
# Notebooks

They stand here as they were run last, from the folder `notebooks/`.

```{{toctree}}
:maxdepth: 1

{listed}
```
"""

project = "npbench"
author = copyright = "The npbench authors"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
exclude_patterns = ["_build"]
# Notebooks come with the outputs that they had where they were run.
nb_execution_mode = "off"
# They call commands by `!`, which is not Python.
suppress_warnings = ["misc.highlighting_failure"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Defaults stand in signatures as they are written.
autodoc_preserve_defaults = True
# What a base class of Lightning or of scikit-learn says belongs to their own documentation.
autodoc_inherit_docstrings = False
napoleon_use_ivar = True


def copy_notebooks(app: Any) -> None:
    """Copy the notebooks below docs/, beside which Sphinx sees nothing, and list them."""
    folder = ROOT / "docs/notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    listed = []
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        # Links begin at the folder notebooks/, and there is one folder more here.
        text = notebook.read_text().replace("](../", "](../../").replace("](../../docs/", "](../")
        (folder / notebook.name).write_text(text)
        listed.append(notebook.stem)
    (folder / "index.md").write_text(_NOTEBOOKS.format(listed="\n".join(listed)))


def read_docstring(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are written in Markdown."""
    # Of a property napoleon would take what is before a colon in its first line for its type.
    lines[:] = [""] * (what == "property") + restructured(lines)


def setup(app: Any) -> None:
    app.connect("builder-inited", copy_notebooks)
    # Before napoleon, whose priority is 500, makes fields of the sections.
    app.connect("autodoc-process-docstring", read_docstring, priority=400)
