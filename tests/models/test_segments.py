"""Segments of a history, absorbed by themselves, are the whole when they are joined."""

from random import Random

import pytest
import torch
from helpers import assert_close, few_examples, random_slices
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npbench.blocks import CausalConvolution, PointGate
from npbench.models import CMHP
from npbench.models.segments import Segment
from npbench.structure import TensorRecord

SIZES = {"dim_model": 8, "num_heads": 2, "num_latents": 3, "num_block_latents": 3,
         "dim_feedforward": 8, "num_components": 3}  # fmt: skip


def model_with(taps: int | None, **arguments: object) -> CMHP:
    torch.manual_seed(3)
    convolution = None if taps is None else CausalConvolution(taps)
    model = CMHP(2, convolution=convolution, **(SIZES | arguments)).double().eval()
    if taps is not None:
        torch.nn.init.normal_(model.convolve.kernel)
    model.set_time_scale(mean=0.4, log_mean=-1.0, log_std=1.5)
    return model


def histories(batch: int, events: int) -> tuple[Tensor, Tensor]:
    times = torch.rand(batch, events, dtype=torch.float64).cumsum(-1) + 100
    return times, torch.randint(2, (batch, events))


def assert_same(mine: TensorRecord, theirs: TensorRecord) -> None:
    for one, other in zip(mine.tensors(), theirs.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


@given(seed=st.integers(0, 10**6), taps=st.sampled_from([None, 1, 2, 4]), events=st.integers(1, 12))
@few_examples
def test_segments_merged_equal_the_whole_and_go_on_as_it_does(
    seed: int, taps: int | None, events: int
) -> None:
    """In any tree; segments may be shorter than the convolution, and empty."""
    torch.manual_seed(seed)
    model, random = model_with(taps), Random(seed)
    times, marks = histories(2, events)
    whole = model.condition(times, marks)
    segments = [
        model.segment(times[:, w], marks[:, w], origin=times[:, 0])
        for w in random_slices(events, random)
    ]
    assert_same(model.merge(*segments), whole)
    while len(segments) > 1:  # neighbours may be joined in any order
        i = random.randrange(len(segments) - 1)
        segments[i : i + 2] = [model.join(segments[i], segments[i + 1])]
    assert_same(model.merge(segments[0]), whole)
    later = [model.update(state, 200.0, 1) for state in (model.merge(segments[0]), whole)]
    assert_same(*later)


def test_sequences_of_a_batch_have_lengths_of_their_own() -> None:
    model = model_with(3, filter=PointGate(open=0.5))
    times, marks = histories(3, 8)
    first = torch.arange(4) < torch.tensor([[4], [1], [2]])
    second = torch.arange(4) < torch.tensor([[1], [4], [0]])
    origin = times[:, 0]
    merged = model.merge(
        model.segment(times[:, :4], marks[:, :4], first),
        model.segment(times[:, 4:], marks[:, 4:], second, origin),
    )
    for row in range(3):
        real = torch.cat([first[row], second[row]])
        alone = model.condition(times[row, real], marks[row, real])
        assert_same(merged.map(lambda z, row=row: z[row : row + 1]), alone)


def test_a_segment_holds_back_what_depends_on_the_events_ahead() -> None:
    """Its attention has not absorbed the first k − 1 events, and knows the k-th."""
    model, (times, marks) = model_with(3), histories(1, 3)
    for events in (1, 2):
        held = model.segment(times[:, :events], marks[:, :events])
        assert held.attention.lse.isneginf().all()
        assert held.earliest[:, :events].any()
    assert model.segment(times, marks).attention.lse.isfinite().all()


def test_a_long_segment_is_of_one_size_and_has_gradients() -> None:
    model, (times, marks) = model_with(2), histories(1, 600)
    segment = model.segment(times, marks)
    assert segment.nbytes == model.segment(times[:, :5], marks[:, :5]).nbytes
    assert_close(
        model.query(model.merge(segment)).median, model.query(model.condition(times, marks)).median
    )
    short = model.merge(
        model.segment(times[:, :3], marks[:, :3]),
        model.segment(times[:, 3:6], marks[:, 3:6], origin=times[:, 0]),
    )
    kernel = model.convolve.kernel
    (mine,) = torch.autograd.grad(short.attention.out.square().sum(), kernel)
    whole = model.condition(times[:, :6], marks[:, :6])
    (theirs,) = torch.autograd.grad(whole.attention.out.square().sum(), kernel)
    assert_close(mine, theirs)


@pytest.mark.usefixtures("as_a_user")
def test_segments_that_do_not_fit_are_refused() -> None:
    model, (times, marks) = model_with(2), histories(1, 6)
    first = model.segment(times[:, :3], marks[:, :3])
    second = model.segment(times[:, 3:], marks[:, 3:], origin=times[:, 0])

    def refused(message: str, *segments: Segment) -> None:
        with pytest.raises(ValueError, match=message):
            model.merge(*segments)

    refused("join them in the order of their times", second, first)
    refused("count from different origins", first, model.segment(times[:, 3:], marks[:, 3:]))
    refused(r"sequence 0 begins at .* give them the time of the first event", second)
    refused("segments of 1 and of 2 sequences do not join", first, second.repeat(2))
    with pytest.raises(ValueError, match="needs the origin of its history"):
        model.segment(times[:, :0], marks[:, :0])
