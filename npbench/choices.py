"""Descriptions of which there are several kinds under one contract, as checkpoints keep them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from npbench.errors import InputError

Kind = TypeVar("Kind", bound="Choice")


class Choice:
    """The base of contracts whose kinds are frozen dataclasses, as `npbench.blocks.PointFilter` is.

    An argument of a model that is a choice is kept in its `hparams` as a configuration names it: by
    the path of its class, and its fields. A dictionary like that makes the same object again; it
    chooses among classes that are imported already, and imports nothing.

    Example:
        >>> from npbench.blocks import Bottleneck, PointFilter
        >>> Bottleneck(rank=2).described()
        {'class_path': 'npbench.blocks.Bottleneck', 'init_args': {'rank': 2}}
        >>> PointFilter.of(Bottleneck(rank=2).described())
        Bottleneck(rank=2)
    """

    def described(self) -> dict[str, Any]:
        """The class path and the fields."""
        return {"class_path": self.path(), "init_args": asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def path(cls) -> str:
        """The class path: of npbench's own kinds that of the package which shows them."""
        module = cls.__module__
        package = module.rpartition(".")[0] if module.startswith("npbench.") else module
        return f"{package}.{cls.__qualname__}"

    @classmethod
    def of(cls: type[Kind], value: Any) -> Any:
        """The object that a dictionary as of `described` is about; anything else as it is.

        Raises:
            InputError: if the dictionary names no kind of this contract, or fields it has not.
        """
        if not isinstance(value, dict):
            return value
        kinds = {kind.path(): kind for kind in cls._kinds()}
        named = value.get("class_path")
        if named not in kinds:
            raise InputError(
                f"{named!r} is no {cls.__name__}; known: {', '.join(sorted(kinds))}, and what is "
                f"imported of others"
            )
        try:
            return kinds[named](**value.get("init_args", {}))
        except TypeError as error:
            raise InputError(f"{named} cannot be made as it is described: {error}") from error

    @classmethod
    def _kinds(cls: type[Kind]) -> Iterator[type[Kind]]:
        """All subclasses."""
        for kind in cls.__subclasses__():
            yield kind
            yield from kind._kinds()
