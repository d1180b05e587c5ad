"""A section of a configuration file, made into the object that it describes."""

import argparse
import json
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import TypeVar

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from npbench.messages import explain

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
        ValueError: if there is no such file or section, or it says what cannot be.
    """
    if not config.is_file():
        raise ValueError(f"there is no {config}; name a file with a {name} section by --config")
    section = yaml.safe_load(config.read_text()).get(name)
    if section is None:
        raise ValueError(f"{config} has no {name} section")
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(base, name, subclass_mode=True, required=True)
    fields = []
    try:
        with chdir(config.parent):  # to which the files that it names are relative
            parsed = parser.parse_object({name: section})
        section = json.loads(parser.dump(parsed, format="json"))[name]
        fields = list(section["init_args"])
        parsed = parser.parse_args([f"--{name}={json.dumps(section)}", *options])
    except argparse.ArgumentError as error:
        raise ValueError(explain(str(error), fields)) from error
    return parser.instantiate_classes(parsed)[name]
