"""The classes that checkpoints name."""

import sys


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
