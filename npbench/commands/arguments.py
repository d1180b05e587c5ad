"""Types of arguments that several commands take."""

from argparse import ArgumentTypeError
from math import nan

import torch


def size(text: str) -> int:
    """A number of points, such as 1000 or 1e3."""
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not (number >= 1 and number.is_integer()):
        raise ArgumentTypeError(f"{text} is no number of points")
    return int(number)


def device(text: str) -> torch.device:
    """A device that is there."""
    try:
        torch.zeros(1, device=text)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentTypeError(f"there is no device {text}") from error
    return torch.device(text)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
