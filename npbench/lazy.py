"""Public names of a package that are imported when they are first asked for."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names are imported when asked for.

    The command line needs few modules, and some of the others take seconds to import. The package
    also imports the names under `typing.TYPE_CHECKING`, for type checkers and editors.

    Args:
        package: its `__name__`.
        modules: the names by the module that defines them; a submodule by that of the package.

    Example:
        >>> __getattr__, __dir__ = lazy_names("npbench", {"npbench.task": ["Task"]})
        >>> __getattr__("Task")
        <class 'npbench.task.Task'>
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = module_of[name]
        if module == package:
            return import_module(f"{package}.{name}")
        value = getattr(import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return __getattr__, __dir__
