"""Luna, ConvLuna and the Memory Transformer compute what the golden files say, at padding too."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers import GOLDEN, Golden, assert_close, golden
from torch import Tensor

from npbench.blocks.causal_luna import CausalLunaAttention
from npbench.blocks.convluna import ConvLunaLayer
from npbench.blocks.tokens import Encoded
from npbench.errors import InputError
from npbench.interop import luna
from npbench.models import ConvLuna, SequenceClassifier

# Of golden/README.md: absolute or relative, whichever is larger.
TOLERANCE = 2e-5
NAMES = sorted(path.stem for path in (GOLDEN / "memory").glob("*.npz"))


def values_of(name: str) -> Golden:
    return golden(f"memory/{name}")


def model_of(values: Golden, **hparams: object) -> SequenceClassifier:
    return luna.load(values.hparams | hparams, values.weights)


def assert_golden(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual.detach(), expected, TOLERANCE)


def layer_inputs(values: Golden) -> Encoded:
    return Encoded(values.inputs["x"], ~values.inputs["x_mask"], values.inputs["p"])


@pytest.mark.parametrize("name", ["luna", "luna_tied"])
def test_the_attention_of_luna_is_theirs(name: str) -> None:
    values = values_of(name)
    x, mask, memory, _ = layer_inputs(values)
    attention = model_of(values).layers[0].attention
    unpacked, packed = attention(x, memory, mask)
    assert_golden(packed, values.outputs["packed"])
    assert_golden(unpacked, values.outputs["unpacked"])
    assert_golden(attention.unpack_weights(x, packed), values.outputs["unpack_weights"])


@pytest.mark.parametrize("name", ["luna", "luna_tied"])
def test_a_layer_of_luna_is_theirs_with_a_mask_on_the_memory_too(name: str) -> None:
    values = values_of(name)
    layer, encoded = model_of(values).layers[0], layer_inputs(values)
    masked = encoded._replace(memory_mask=~values.inputs["p_mask"])
    for given, kind in ((encoded, "layer"), (masked, "layer_pmask")):
        after = layer(given)
        assert_golden(after.x, values.outputs[f"{kind}_x"])
        assert_golden(after.memory, values.outputs[f"{kind}_p"])


@pytest.mark.parametrize("name", ["luna", "luna_tied"])
def test_the_encoder_of_luna_is_theirs(name: str) -> None:
    values = values_of(name)
    model, tokens = model_of(values), values.inputs["tokens"]
    embedded = model.embedded(tokens, tokens != model.padding_idx)
    steps = {
        "embed": embedded,
        "encoder_layer1": model.layers[0](embedded),
        "encoder": model.encode(tokens),
    }
    for kind, encoded in steps.items():
        assert_golden(encoded.x, values.outputs[f"{kind}_x"])
        assert_golden(encoded.memory, values.outputs[f"{kind}_p"])


def test_the_classifier_of_luna_is_theirs_with_every_read_out() -> None:
    values = values_of("luna")
    tokens, outputs = values.inputs["tokens"], values.outputs
    assert_golden(model_of(values)(tokens), outputs["logits"])
    assert_golden(model_of(values, sen_rep_type="mp")(tokens), outputs["logits_mean"])
    assert_golden(model_of(values, use_p=True)(tokens[:, 1:]), outputs["logits_memory"])
    tied = model_of(values, tie_layer_weights=True)
    assert len(tied.layers) == 1
    assert_golden(tied(tokens), outputs["tied_layers_logits"])


def test_a_luna_without_a_classifier_gives_the_vector_that_it_reads_out() -> None:
    values = values_of("luna_tied")
    assert_golden(model_of(values)(values.inputs["tokens"]), values.outputs["sentence_rep"])


def test_short_sequences_get_as_many_memory_vectors_as_they_have_tokens() -> None:
    values = values_of("luna")
    model, tokens, outputs = model_of(values), values.inputs["short_tokens"], values.outputs
    embedded, encoded = model.embedded(tokens, tokens != 1), model.encode(tokens)
    assert_golden(embedded.memory, outputs["short_embed_p"])
    assert_golden(encoded.x, outputs["short_encoder_x"])
    assert_golden(encoded.memory, outputs["short_encoder_p"])
    assert_golden(model(tokens), outputs["short_logits"])


def test_causal_luna_is_theirs_at_once_and_token_by_token() -> None:
    values = values_of("luna_causal")
    attention = luna.load(values.hparams, values.weights)
    assert isinstance(attention, CausalLunaAttention)
    x, memory = values.inputs["x"], values.inputs["p"]
    at_once, sums = attention(x, memory)
    parts, past = [], None
    for token in x.split(1, dim=1):
        part, past = attention(token, memory, past=past)
        parts.append(part)
    for out, state in ((at_once, sums), (torch.cat(parts, dim=1), past)):
        assert_golden(out, values.outputs["attn"])
        assert_golden(state.keys, values.outputs["state_key"])
        assert_golden(state.values, values.outputs["state_value"])
        assert_golden(state.count, values.outputs["state_steps"][:, 0])
    assert_golden(attention.unpack_weights(x, memory), values.outputs["unpack_weights"])


@pytest.mark.parametrize("name", ["memory_transformer", "memory_bottleneck"])
def test_the_memory_transformer_is_the_reference(name: str) -> None:
    values = values_of(name)
    model, tokens, outputs = model_of(values), values.inputs["tokens"], values.outputs
    first = model.layers[0](model.embedded(tokens, tokens != 0))
    last = model.encode(tokens)
    for encoded, kind in ((first, "layer1"), (last, "encoder")):
        assert_golden(encoded.memory, outputs[f"{kind}_mem"])
        assert_golden(encoded.x, outputs[f"{kind}_x"])
    assert_golden(model(tokens), outputs["logits"])
    model.readout = "memory"
    assert_golden(model(tokens), outputs["logits_memory"])


def block_outputs(layer: ConvLunaLayer, encoded: Encoded) -> Iterator[tuple[str, Tensor]]:
    packed, after = layer.pack(encoded), layer(encoded)
    unpacked = layer.unpack(encoded.x, packed)
    yield "packed", packed
    yield "pack_scores", layer.pack_scores(encoded)
    yield "unpacked", unpacked.masked_fill(~encoded.mask[..., None], 0.0)
    yield "x", after.x
    yield "mem", after.memory


def assert_golden_block(model: ConvLuna, values: Golden, kind: str) -> None:
    x, memory = values.inputs["x"], values.inputs["mem"].expand(3, -1, -1)
    mask = values.inputs["mask"].bool() if "masked" in kind else torch.ones(x.shape[:2]).bool()
    for name, actual in block_outputs(model.layers[0], Encoded(x, mask, memory)):
        assert_golden(actual, values.outputs[f"{kind}_{name}"])


@pytest.mark.parametrize("name", ["convluna", "convluna_full"])
def test_convluna_is_theirs_with_and_without_a_mask(name: str) -> None:
    values = values_of(name)
    model, tokens = model_of(values), values.inputs["tokens"]
    # The authors' call drops the mask: padding counts as real.
    assert_golden(model(tokens, torch.ones_like(tokens).bool()), values.outputs["logits"])
    assert_golden(model(tokens), values.outputs["logits_masked"])
    assert_golden_block(model, values, "block")
    assert_golden_block(model, values, "block_masked")


@pytest.mark.parametrize(
    ("kind", "hparams"),
    [
        ("stride2_masked", {"stride": 2}),
        ("pool3s2_masked", {"kernel": 3, "stride": 2, "pool": True}),
        ("kernel1_masked", {"kernel": 1}),
    ],
)
def test_every_filter_of_convluna_is_theirs(kind: str, hparams: dict[str, object]) -> None:
    values = values_of("convluna")
    assert_golden_block(model_of(values, **hparams), values, kind)


def test_convluna_classifies_the_mean_of_its_memory_as_theirs_does() -> None:
    values = values_of("convluna")
    model, tokens = model_of(values, use_mem_repr=True), values.inputs["tokens"]
    assert_golden(model(tokens, torch.ones_like(tokens).bool()), values.outputs["logits_memory"])


def without_filter(temperature: str) -> ConvLuna:
    """ConvLuna with kernel 1, all projections shared, and the weights of the golden file."""
    shared = model_of(values_of("convluna_full"))
    arguments = shared.hparams | {
        "filter": shared.hparams["filter"] | {"kernel": 1},
        "temperature_pack": temperature,
        "temperature_unpack": temperature,
    }
    model = ConvLuna(**arguments).eval()
    model.load_state_dict({name: shared.state_dict()[name] for name in model.state_dict()})
    return model


def test_convluna_without_a_filter_at_the_root_of_d_is_the_authors_luna() -> None:
    values, model = values_of("convluna_full"), without_filter("sqrt")
    tokens = values.inputs["tokens"]
    assert_golden(model(tokens, torch.ones_like(tokens).bool()), values.outputs["luna_logits"])
    assert_golden(model(tokens), values.outputs["luna_logits_masked"])
    assert_golden_block(model, values, "luna_block_masked")


def test_convluna_without_a_filter_at_unit_temperature_is_not() -> None:
    values, model = values_of("convluna_full"), without_filter("unit")
    difference = model(values.inputs["tokens"]) - values.outputs["luna_logits_masked"]
    assert difference.abs().max() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_copied_golden_file_is_the_shared_one(name: str, shared: object) -> None:
    theirs = shared / "golden" / "memory" / f"{name}.npz"
    with np.load(theirs) as expected, np.load(GOLDEN / f"memory/{name}.npz") as copied:
        assert all((copied[key] == expected[key]).all() for key in expected.files)


def test_other_models_and_weights_are_refused() -> None:
    values = values_of("convluna")
    with pytest.raises(InputError, match="model='Mega' must be one of"):
        luna.load({"model": "Mega"}, {})
    with pytest.raises(InputError, match="qkv_dim=8: our ConvLuna has 16"):
        model_of(values, qkv_dim=8)
    with pytest.raises(InputError, match=r"left over: layers\.1"):
        model_of(values, num_blocks=1)
    with pytest.raises(InputError, match="they lack 'num_blocks'"):
        luna.load({k: v for k, v in values.hparams.items() if k != "num_blocks"}, values.weights)
    with pytest.raises(InputError, match="learned_pos_embedding=False"):
        model_of(values_of("luna"), learned_pos_embedding=False)
