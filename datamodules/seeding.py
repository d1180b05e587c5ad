"""Random numbers that are a function of a key."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed torch's CPU generator by `key` inside the block, and restore it afterwards.

    Keys that differ anywhere, in length too, give independent streams. A `Part` counts as its
    number.
    """
    generator = torch.default_generator
    state = generator.get_state()
    digest = hashlib.sha256(repr(tuple(map(int, key))).encode()).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little"))
    try:
        yield
    finally:
        generator.set_state(state)


def uniform_hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone.

    It says to which part of the data something belongs, whatever else is in the data.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
