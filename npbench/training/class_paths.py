"""The classes that checkpoints name."""

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from npbench.errors import InputError

# Packages whose classes a checkpoint may name; none but npbench's is imported for it.
_TRUSTED = "npbench", "datamodules", "torch.optim", "lightning"
# A parser takes such a text for the path of something to import.
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# No hyper-parameters are as many values, nor as deep.
_MOST_VALUES, _MOST_LEVELS = 10_000, 50


def public_path(cls: type) -> str:
    """The path by which a checkpoint names a class, such as `npbench.models.CMANP`.

    For a class of npbench or of its data modules it is the shortest package that has the class
    under its name, so that modules may be split and renamed; for any other class it is the module
    that defines it.

    Example:
        >>> from npbench.models.cmanp import CMANP
        >>> public_path(CMANP)
        'npbench.models.CMANP'
    """
    path = f"{cls.__module__}.{cls.__qualname__}"
    package, *inner = cls.__module__.split(".")
    if package not in ("npbench", "datamodules"):
        return path
    packages = (".".join([package, *inner[:depth]]) for depth in range(len(inner)))
    public = (f"{name}.{cls.__qualname__}" for name in packages)
    return next((name for name in public if class_at(name) is cls), path)


def class_at(path: str) -> type | None:
    """The class at a path, or None where there is no such class among the imported modules.

    Nothing is imported: a checkpoint must not choose what code is run.

    Example:
        >>> class_at("npbench.models.CMANP") is class_at("npbench.models.cmanp.CMANP")
        True
    """
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def check_class_paths(
    hyper_parameters: Any, bases: tuple[type, ...] = (), source: str = "the checkpoint"
) -> None:
    """Refuse hyper-parameters by which a file chooses what code is imported or run.

    Every text that is the path of something that could be imported must be that of a class which is
    imported already, and is of npbench, datamodules, torch.optim or lightning, or a subclass of
    one of `bases`.

    Args:
        hyper_parameters: of a checkpoint, before anything is made of them.
        bases: contracts whose subclasses outside these packages may be named, once whoever loads
            the file has imported them.
        source: the file, for the message.

    Raises:
        InputError: on another path, and on values that are nested too deeply or are too many.

    Example:
        >>> check_class_paths({"model": {"class_path": "torch.optim.Adam"}})
        >>> try:
        ...     check_class_paths({"model": {"class_path": "antigravity.geohash"}})
        ... except InputError as error:
        ...     print(str(error)[:70])
        the checkpoint names antigravity.geohash, which is no class that it ma
    """
    waiting, seen = [(hyper_parameters, 0)], 0
    while waiting:
        value, level = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES or level > _MOST_LEVELS:
            raise InputError(f"{source} has hyper-parameters that are nested too deeply")
        if isinstance(value, Mapping):
            waiting += [(part, level + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(part, level + 1) for part in value]
        elif isinstance(value, str) and _is_path(value.strip()):
            _check_path(value.strip(), bases, source)


def _is_path(text: str) -> bool:
    """Whether a text names something in a module that there is; `words.txt` hardly does."""
    if not _PATH.fullmatch(text):
        return False
    package = text.partition(".")[0]
    try:
        return package in sys.modules or find_spec(package) is not None
    except ValueError:  # it is imported in an unusual way
        return True


def _check_path(path: str, bases: tuple[type, ...], source: str) -> None:
    module, _, _ = path.rpartition(".")
    if path.startswith("npbench.") and not any(part.startswith("_") for part in path.split(".")):
        with suppress(ImportError):  # this package's own modules only
            import_module(module)
    found = class_at(path)
    trusted = any(f"{path}.".startswith(f"{package}.") for package in _TRUSTED)
    if trusted and found is None:
        raise InputError(f"{source} names {path}, which this npbench does not have")
    if not trusted and not (found and issubclass(found, bases)):
        raise InputError(
            f"{source} names {path}, which is no class that it may choose: import it by name first "
            f"(--allow {path}) if you trust its code"
        )
