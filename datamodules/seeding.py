"""Randomness as a function of a key."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed torch's CPU generator by `key` inside the block, and put it back as it was after.

    Keys that differ anywhere, in length too, give independent streams.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
    try:
        yield
    finally:
        generator.set_state(state)
