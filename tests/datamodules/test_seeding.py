import numpy as np
import pytest
import torch

from datamodules.loading import Part
from datamodules.seeding import seeded


def drawn(*key: int) -> list[float]:
    with seeded(*key):
        return torch.rand(4).tolist()


def test_the_same_key_gives_the_same_numbers() -> None:
    assert drawn(1, 2, 3) == drawn(1, 2, 3)


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ((0,), (1,)),
        ((1, 2), (2, 1)),
        ((0, 0, 0, 5), (0, 0, 0, 6)),
        ((0, 0, 0, 5), (0, 0, 0, 5, 1)),
        ((1,), (1, 1)),
        ((1,), (0, 1)),
        ((1,), (1, 0)),
        ((0, 0, 3), (0, 0, 3, 0)),
        ((2**32,), (0, 1)),
    ],
)
def test_keys_that_differ_anywhere_give_other_numbers(
    key: tuple[int, ...], other: tuple[int, ...]
) -> None:
    """In length too."""
    assert drawn(*key) != drawn(*other)


def test_a_part_is_its_number() -> None:
    """Another number for a part would draw other tasks than release 0.1.0 does."""
    assert [part.name for part in sorted(Part)] == [
        "TRAIN", "VALIDATE", "TEST", "PREDICT", "FIGURES", "TEST_UNSEEN",
    ]  # fmt: skip
    for number, part in enumerate(sorted(Part)):
        assert part == number
        assert drawn(part, 7) == drawn(number, 7)


def test_the_numbers_of_a_key_are_those_of_release_0_1_0() -> None:
    with seeded(1, 0, 5):
        assert torch.randint(2**62, [2]).tolist() == [3077981955594580565, 2096286202252083113]


@pytest.mark.parametrize("fails", [False, True])
def test_the_state_is_put_back_as_it_was(fails: bool) -> None:
    torch.rand(3)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()
    try:
        with seeded(4):
            torch.randn(10)
            assert not torch.equal(torch.get_rng_state(), before)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_the_numbers_do_not_depend_on_what_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = drawn(7)
    torch.manual_seed(2)
    torch.rand(5)
    assert drawn(7) == first


def test_blocks_nest() -> None:
    with seeded(1):
        torch.rand(2)
        expected = torch.rand(2)
    with seeded(1):
        torch.rand(2)
        drawn(2)
        assert torch.equal(torch.rand(2), expected)
