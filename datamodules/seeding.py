"""Randomness as a function of a key."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed torch's CPU generator by `key` inside the block, and put it back as it was after.

    Keys that differ anywhere, in length too, give independent streams.
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
    """A number in [0, 1) that the name decides: which split it belongs to, whatever others do."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
