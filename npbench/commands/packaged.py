"""Configurations that are installed with npbench, by names such as npbench:gp/cmanp-small."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from npbench.errors import InputError

_NAMED = re.compile(r"(--[\w.]+=)?npbench:(.+)")


def with_packaged(args: Sequence[str]) -> list[str]:
    """Arguments in which files stand for names such as npbench:gp/cmanp-small.

    Raises:
        InputError: if there is no such configuration; says which are alike.

    Example:
        >>> [Path(word).name for word in with_packaged(["--config", "npbench:gp/cmanp-small"])]
        ['--config', 'cmanp-small.yaml']
    """
    named = [(word, _NAMED.fullmatch(word)) for word in args]
    return [f"{name[1] or ''}{packaged(name[2])}" if name else word for word, name in named]


def packaged(name: str) -> Path:
    """The file of a configuration.

    Raises:
        InputError: as `with_packaged`.
    """
    folder = _folder()
    file = folder / f"{name.removesuffix('.yaml')}.yaml"
    if not file.is_file():
        known = sorted(
            str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")
        )
        alike = get_close_matches(name, known) or sorted({each.split("/")[0] for each in known})
        raise InputError(f"there is no configuration npbench:{name}; alike are {', '.join(alike)}")
    return file


def _folder() -> Path:
    """That of the installed configurations, or of the checkout's."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
