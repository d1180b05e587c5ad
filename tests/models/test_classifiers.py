"""What the classifiers of sequences have in common, and what sets some apart."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from helpers import assert_close, assert_mixed_precision_is_near, few_examples, random_slices
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npbench import TokenSequences
from npbench.blocks.convluna import SequenceFilter
from npbench.errors import InputError
from npbench.models import (
    RMT,
    CausalLuna,
    ConvLuna,
    Luna,
    Memformer,
    MemoryTransformer,
    SequenceClassifier,
    Transformer,
)
from npbench.models.contracts.memory import MemoryView
from npbench.profiling import LiveTensors

SIZES = {"dim_model": 16, "num_layers": 2, "num_heads": 2, "dim_feedforward": 24}
SEGMENTS = SIZES | {"num_memory": 3, "segment_length": 4}
CHANGING = SequenceFilter(kernel=3, stride=2)
MODELS: dict[str, Callable[[], SequenceClassifier]] = {
    "Transformer": lambda: Transformer(12, 5, **SIZES),
    "Transformer-mean": lambda: Transformer(
        12, 5, max_length=40, pre_norm=False, readout="mean", **SIZES
    ),
    "MemoryTransformer": lambda: MemoryTransformer(12, 5, num_memory=3, **SIZES),
    "MemoryTransformer-bottleneck": lambda: MemoryTransformer(
        12, 5, num_memory=3, variant="bottleneck", readout="memory", **SIZES
    ),
    "Luna": lambda: Luna(12, 5, num_memory=3, dim_classifier=8, **SIZES),
    "Luna-bert": lambda: Luna(
        12, 5, num_memory=20, tied=True, pre_norm=True, tie_layers=True, readout="memory",
        initialisation="bert", **SIZES,
    ),
    "ConvLuna": lambda: ConvLuna(12, 5, num_memory=3, **SIZES),
    "ConvLuna-stride": lambda: ConvLuna(
        12, 5, num_memory=1, filter=CHANGING, share=False, readout="mean", **SIZES
    ),
    "CausalLuna": lambda: CausalLuna(12, 5, num_memory=3, **SIZES),
    "RMT": lambda: RMT(12, 5, **SEGMENTS),
    "Memformer": lambda: Memformer(12, 5, **SEGMENTS),
}  # fmt: skip
every_model = pytest.mark.parametrize("name", MODELS)


def small(name: str) -> SequenceClassifier:
    """In float64, with weights large enough for tokens to matter."""
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model


def views(model: SequenceClassifier, tokens: Tensor) -> list[MemoryView]:
    with torch.no_grad():
        return model.memory_layers(TokenSequences(tokens, mask=tokens != 0))


def tokens_of(batch: int, length: int) -> Tensor:
    return torch.randint(1, 12, (batch, length))


@every_model
def test_a_sequence_gets_finite_logits_and_every_weight_a_gradient(name: str) -> None:
    model = small(name)
    sequences = TokenSequences(tokens_of(3, 17), torch.tensor([0, 4, 2]))
    assert model(sequences.tokens).shape == (3, 5)
    model.loss(sequences).backward()
    without = {
        name for name, weight in model.named_parameters()
        if weight.grad is None or not weight.grad.isfinite().all()
    }  # fmt: skip
    # The last layer's memory, or its tokens, may not be read.
    last = f"layers.{len(model.layers) - 1}."
    unread = (last, "norm_last", *(["memory"] if model.__class__ in (RMT, Memformer) else []))
    assert all(name.startswith(unread) for name in without), without


@every_model
def test_the_loss_is_the_cross_entropy_of_the_logits(name: str) -> None:
    model, labels = small(name), torch.tensor([1, 3])
    tokens = tokens_of(2, 9)
    expected = -model(tokens).log_softmax(dim=-1)[torch.arange(2), labels].mean()
    assert_close(model.loss(TokenSequences(tokens, labels)).detach(), expected.detach())


@every_model
def test_padding_changes_no_logits(name: str) -> None:
    model, tokens = small(name), tokens_of(2, 9)
    alone = torch.cat([model(tokens[:1, :6]), model(tokens[1:])])
    padded = tokens.clone()
    padded[0, 6:] = 0
    together = torch.cat([padded, torch.zeros_like(padded)], dim=1)
    assert_close(model(together).detach(), alone.detach())
    # What stands at padding does not matter where a mask says that it is padding.
    assert_close(
        model(together + 7 * (together == 0), together != 0).detach(), alone.detach()
    )  # fmt: skip


@every_model
def test_an_empty_sequence_is_legal(name: str) -> None:
    model = small(name)
    assert model(torch.zeros(2, 6, dtype=torch.long)).isfinite().all()
    assert model(torch.zeros(2, 0, dtype=torch.long)).isfinite().all()


@every_model
def test_there_is_a_memory_in_each_layer_and_its_attention_adds_up_to_one(name: str) -> None:
    layers = views(small(name), tokens_of(2, 11))
    assert len(layers) == {"Transformer": 0, "Transformer-mean": 0, "Memformer": 1}.get(name, 2)
    for view in layers:
        assert view.packed.shape == view.latents.shape
        assert view.log_weights.shape[::2] == view.latents.shape[:2]
        total = view.log_weights.exp().sum(dim=-1)
        assert_close(total, torch.ones_like(total))


@pytest.mark.usefixtures("as_a_user")
@every_model
def test_bad_input_is_refused_in_one_sentence(name: str) -> None:
    model = small(name)
    for tokens, mask, message in [
        (torch.tensor([[3, 12]]), None, "tokens go from 3 to 12, the model's from 0 to 11"),
        (torch.tensor([3, 2]), None, r"tokens have shape \[2\]"),
        (torch.tensor([[3, 2]]), torch.tensor([[1, 1]]), r"the mask has shape \[1, 2\] and type"),
    ]:
        with pytest.raises(InputError, match=message):
            model(tokens, mask)
    with pytest.raises(InputError, match="labels go from 0 to 5, the model's classes from 0 to 4"):
        model.loss(TokenSequences(tokens_of(2, 3), torch.tensor([0, 5])))
    with pytest.raises(InputError, match="have no labels"):
        model.loss(TokenSequences(tokens_of(2, 3)))


def test_a_sequence_beyond_the_learned_positions_is_refused() -> None:
    with pytest.raises(InputError, match="41 tokens is longer than max_length=40"):
        small("Transformer-mean")(tokens_of(1, 41))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Luna(12, 5, dim_model=10, num_heads=4), "dim_model=10 does not split into num_he"),
        (lambda: Luna(12, 5, readout="last"), "readout='last' must be one of cls, first, mean"),
        (lambda: Transformer(12, 5, readout="memory"), "takes a model with a memory"),
        (lambda: ConvLuna(12, 5, filter=SequenceFilter(kernel=0)), "kernel=0 and stride=1"),
        (lambda: ConvLuna(12, 5, temperature_pack="two"), 'must be "unit", "sqrt" or "learn"'),
        (lambda: MemoryTransformer(12, 5, variant="ctrl"), 'must be "mem" or "bottleneck"'),
        (lambda: RMT(12, 5, segment_length=0), "segment_length=0 and num_gradient_segments=4"),
        (lambda: CausalLuna(12, 5, padding_idx=12), "padding_idx=12 must be a token, 0 to 11"),
    ],
)
def test_arguments_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@few_examples
@given(random=st.randoms(use_true_random=False), length=st.integers(0, 150))
def test_a_stream_in_pieces_is_the_whole_stream(random: Random, length: int) -> None:
    model, tokens = small("CausalLuna"), tokens_of(2, length)
    whole = model.condition(tokens)
    state = model.condition(tokens[:, :0])
    for piece in random_slices(length, random):
        state = model.update(state, tokens[:, piece])
    assert_close(state.sums.keys, whole.sums.keys)
    assert_close(state.sums.values, whole.sums.values)
    assert_close(model.query(state).logits, model.query(whole).logits)
    assert_close(model(tokens).log_softmax(dim=-1), model.query(whole).logits)


def test_token_by_token_is_the_whole_stream() -> None:
    model, tokens = small("CausalLuna"), tokens_of(2, 70)
    state = model.condition(tokens[:, :0])
    for token in tokens.split(1, dim=1):
        state = model.update(state, token)
    assert_close(model.query(state).logits, model.query(model.condition(tokens)).logits)
    assert state.nbytes == model.condition(tokens[:, :1]).nbytes


def test_a_causal_output_does_not_depend_on_later_tokens() -> None:
    attention = small("CausalLuna").layers[0].attention
    x, memory = torch.randn(2, 90, 16).double(), torch.randn(3, 16).double()
    changed = torch.cat([x[:, :50], torch.randn(2, 40, 16).double()], dim=1)
    assert_close(attention(changed, memory)[0][:, :50], attention(x, memory)[0][:, :50])


@few_examples
@given(random=st.randoms(use_true_random=False), length=st.integers(1, 90))
def test_states_of_one_layer_merge_exactly(random: Random, length: int) -> None:
    model = CausalLuna(12, 5, **SIZES | {"num_layers": 1}).double().eval()
    tokens = tokens_of(2, length)
    states = [
        model.condition(tokens[:, piece], start=piece.start)
        for piece in random_slices(length, random)
    ]
    whole = model.condition(tokens)
    assert_close(model.query(model.merge(*states)).logits, model.query(whole).logits)


def test_the_first_layer_of_several_merges_and_the_others_do_not() -> None:
    model, tokens = small("CausalLuna"), tokens_of(2, 40)
    first, second = model.condition(tokens[:, :25]), model.condition(tokens[:, 25:], start=25)
    whole = list(model.condition(tokens).of_layers())
    merged = [a + b for a, b in zip(first.of_layers(), second.of_layers())]
    assert_close(merged[0].keys, whole[0].keys)
    assert (merged[1].keys - whole[1].keys).abs().max() > 1e-3
    with pytest.raises(InputError, match="a CausalLuna of 2 layers do not merge"):
        model.merge(first, second)


def test_segments_that_do_not_follow_each_other_do_not_merge() -> None:
    model, tokens = CausalLuna(12, 5, **SIZES | {"num_layers": 1}).eval(), tokens_of(1, 8)
    first, second = model.condition(tokens[:, :5]), model.condition(tokens[:, 5:])
    with pytest.raises(InputError, match=r"starts at \[0\], and the one ahead of it ends at \[5\]"):
        model.merge(first, second)
    with pytest.raises(InputError, match="tokens of 2 streams, and the state is of 1"):
        model.update(first, tokens.expand(2, -1))


@pytest.mark.parametrize("kind", [RMT, Memformer])
def test_training_memory_is_that_of_the_segments_that_gradients_pass(
    kind: type[SequenceClassifier],
) -> None:
    def peak(length: int, number: int) -> int:
        model = kind(12, 5, num_gradient_segments=number, **SEGMENTS | {"segment_length": 32})
        sequences = TokenSequences(tokens_of(4, length), torch.zeros(4, dtype=torch.long))
        with LiveTensors() as live:
            model.loss(sequences).backward()
        return live.peak_bytes

    assert peak(512, 2) < 1.1 * peak(128, 2)
    assert peak(512, 8) > 3 * peak(512, 2)


@pytest.mark.parametrize("kind", [RMT, Memformer])
def test_the_memory_carries_the_first_segment_to_the_last(kind: type[SequenceClassifier]) -> None:
    model, tokens = small(kind.__name__), tokens_of(1, 16)
    changed = tokens.clone()
    changed[0, 0] = 12 - tokens[0, 0]
    changed[0, 1] = 12 - tokens[0, 1]
    assert (model(changed) - model(tokens)).abs().max() > 1e-6


def test_the_slots_of_memformer_do_not_mix() -> None:
    model, tokens = small("Memformer"), tokens_of(1, 4)
    with torch.no_grad():
        # Nor through the tokens, which see no other memory here.
        for layer in model.layers:
            layer.layer.attention.to_out.weight.zero_()
        (before,) = views(model, tokens)
        model.memory[0] += 1.0
    (after,) = views(model, tokens)
    assert_close(after.latents[:, 1:], before.latents[:, 1:])
    assert (after.latents[:, 0] - before.latents[:, 0]).abs().max() > 1e-3


def test_padding_behind_a_filter_is_hidden_from_the_memory() -> None:
    model = small("ConvLuna-stride")
    tokens = torch.cat([tokens_of(1, 9), torch.zeros(1, 20, dtype=torch.long)], dim=1)
    weights = views(model, tokens)[0].log_weights.exp()
    # Windows of 3 at 0, 2, 4 and 6 hold real tokens alone.
    assert_close(weights[..., :4].sum(dim=-1), torch.ones_like(weights[..., 0]))


@every_model
def test_a_step_in_mixed_precision_is_near_that_of_float32(name: str) -> None:
    tokens = torch.randint(1, 12, (4, 11))
    batch = TokenSequences(tokens, torch.arange(4), torch.ones_like(tokens, dtype=torch.bool))
    assert_mixed_precision_is_near(MODELS[name]().train(), batch)
