from random import Random

import pytest
import torch
from helpers import assert_close, few_examples, random_slices
from helpers.blocks import randomised
from hypothesis import given
from hypothesis import strategies as st

from npbench.blocks import CausalConvolution


def test_the_convolution_is_its_formula() -> None:
    layer = randomised(CausalConvolution(num_taps=3).build(num_heads=2, dim_model=8))
    inputs = torch.randn(2, 6, 8).double()
    found = layer(inputs, layer.nothing(inputs))
    for j in range(6):
        for d in range(8):
            taps = [layer.kernel[d // 4, i] * inputs[:, j - i, d] for i in range(min(3, j + 1))]
            assert_close(found[:, j, d], torch.stack(taps).sum(dim=0))


@given(seed=st.integers(0, 10**6), taps=st.integers(1, 5), events=st.integers(1, 9))
@few_examples
def test_a_stream_goes_on_from_its_last_inputs(seed: int, taps: int, events: int) -> None:
    torch.manual_seed(seed)
    layer = randomised(CausalConvolution(taps).build(num_heads=2, dim_model=4))
    inputs = torch.randn(2, events, 4).double()
    whole = layer(inputs, layer.nothing(inputs))
    before, parts = layer.nothing(inputs), []
    for window in random_slices(events, Random(seed)):
        part = inputs[:, window]
        parts.append(layer(part, before))
        before = layer.after(part, before, torch.ones(part.shape[:2], dtype=torch.bool))
    assert_close(torch.cat(parts, dim=1), whole)


def test_padding_behind_is_no_input() -> None:
    layer = CausalConvolution(3).build(num_heads=1, dim_model=2).double()
    inputs, before = torch.randn(3, 4, 2).double(), torch.randn(3, 2, 2).double()
    mask = torch.arange(4) < torch.tensor([[0], [1], [4]])
    after = layer.after(inputs.masked_fill(~mask[..., None], torch.nan), before, mask)
    for row, number in enumerate((0, 1, 4)):
        known = torch.cat([before[row], inputs[row, :number]])
        assert torch.equal(after[row], known[-2:])


def test_a_convolution_without_taps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"convolution.num_taps=0 must be 1 or more"):
        CausalConvolution(num_taps=0).build(num_heads=1, dim_model=2)
