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
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little"))
    try:
        yield
    finally:
        generator.set_state(state)
