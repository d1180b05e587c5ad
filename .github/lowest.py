"""Print pip constraints that hold each dependency of pyproject.toml at its lowest versions: at the
newest patch of the series that its lower bound names.

    python .github/lowest.py > lowest.txt && PIP_CONSTRAINT=lowest.txt make test
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LOWER = re.compile(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)")


def lowest(project: dict[str, Any]) -> Iterator[str]:
    """A constraint for each dependency of a project and of its extras.

    Args:
        project: the table of pyproject.toml.

    Example:
        >>> list(lowest({"dependencies": ["torch>=2.11", "lightning>=2.6.6,<2.7", "a[b]>=1"]}))
        ['torch==2.11.*', 'lightning==2.6.6.*', 'a==1.*']
    """
    extras = project.get("optional-dependencies", {}).values()
    for dependency in [*project["dependencies"], *(each for extra in extras for each in extra)]:
        if dependency.startswith(f"{project.get('name')}["):
            continue
        match = _LOWER.match(dependency)
        if match is None:
            raise SystemExit(f"{dependency} has no lower bound")
        yield f"{match[1]}=={match[2]}.*"


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    print("\n".join(dict.fromkeys(lowest(project))))
