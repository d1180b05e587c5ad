"""A section of a configuration file, made into the object that it describes."""

import argparse
import json
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from npbench.errors import InputError
from npbench.messages import explain
from npbench.training.class_paths import class_at

Section = TypeVar("Section")


def instantiate(
    config: Path, name: str, base: type[Section], options: Sequence[str] = ()
) -> Section:
    """The object of a configuration's section.

    Args:
        config: the file, such as `configs/gp/cmanp.yaml` or `RUN/config.yaml`.
        name: the section, "model" or "data".
        base: a class of which the object is one.
        options: fields to set, as on the command line: "--data.batch_size", "8".

    Raises:
        InputError: if there is no such file or section, or it says what cannot be.
    """
    if not config.is_file():
        raise InputError(f"there is no {config}; name a file with a {name} section by --config")
    try:
        sections = yaml.safe_load(config.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is no YAML file: {error}") from error
    except RecursionError as error:
        raise InputError(f"{config} is nested too deeply for a configuration") from error
    section = sections.get(name) if isinstance(sections, dict) else None
    if section is None:
        raise InputError(f"{config} has no {name} section")
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(base, name, subclass_mode=True, required=True)
    fields = []
    try:
        with chdir(config.parent):  # to which the files that it names are relative
            parsed = parser.parse_object({name: section})
        section = json.loads(parser.dump(parsed, format="json"))[name]
        fields = _fields(section)
        parsed = parser.parse_args([f"--{name}={json.dumps(section)}", *options])
    except argparse.ArgumentError as error:
        raise InputError(explain(str(error), fields)) from error
    check_values(parsed[name], name)
    try:
        return parser.instantiate_classes(parsed)[name]
    except ValueError as error:
        raise InputError(str(error)) from error


def check_values(section: Any, name: str) -> None:
    """Refuse null for fields that are numbers, texts or flags, which the parser lets pass.

    Args:
        section: the parsed section of a configuration.
        name: what the command line calls it.

    Raises:
        InputError: if there is one; names it.
    """
    if not isinstance(section, Namespace) or not section.get("init_args"):
        return
    kind = class_at(section["class_path"])
    expected = {} if kind is None else get_type_hints(kind.__init__)
    for field, value in vars(section["init_args"]).items():
        if value is None and expected.get(field) in (int, float, str, bool):
            raise InputError(
                f"{name}.{field} is null, and takes a value of type {expected[field].__name__}; "
                f"leave it out for its default"
            )
        check_values(value, f"{name}.{field}")


def _fields(section: dict[str, Any]) -> list[str]:
    """The names of all fields of a class, and of the classes within it."""
    arguments = section.get("init_args", {})
    inner = [value for value in arguments.values() if isinstance(value, dict)]
    return [*arguments, *(field for value in inner for field in _fields(value))]
