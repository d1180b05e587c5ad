import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from helpers.blocks import CONFIG, randomised
from torch import nn

from npbench.blocks import (
    MLP,
    CrossAttention,
    Decoder,
    FeedForward,
    LayerConfig,
    PreNorm,
    QueryLayer,
    SelfAttention,
    TransformerLayer,
)


def linear_layers(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(
    ("depth", "widths"),
    [(1, [(3, 2)]), (2, [(3, 8), (8, 2)]), (4, [(3, 8), (8, 8), (8, 8), (8, 2)])],
)
def test_an_mlp_has_depth_linear_layers(depth: int, widths: list[tuple[int, int]]) -> None:
    mlp = MLP(3, 8, 2, depth)
    assert linear_layers(mlp) == widths
    assert not isinstance(mlp[-1], nn.ReLU)
    assert mlp(torch.randn(5, 7, 3)).shape == (5, 7, 2)


def test_an_mlp_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="one linear layer at least, not depth=0"):
        MLP(3, 8, 2, depth=0)


@pytest.mark.parametrize("points", [1, 6])
def test_layers_keep_the_shape(points: int) -> None:
    x, context = torch.randn(2, points, 12), torch.randn(2, 7, 12)
    assert FeedForward(CONFIG)(x).shape == x.shape
    assert SelfAttention(CONFIG)(x).shape == x.shape
    assert CrossAttention(CONFIG)(x, context).shape == x.shape
    assert QueryLayer(CONFIG)(x, context).shape == x.shape


def test_feed_forward_is_its_formula() -> None:
    layer = randomised(FeedForward(CONFIG))
    x = torch.randn(2, 5, 12).double()
    h = F.layer_norm(x, [12], layer.norm.weight, layer.norm.bias)
    linear, gate = (h @ layer.expand.weight.T + layer.expand.bias).split(20, dim=-1)
    gelu = gate * torch.distributions.Normal(0.0, 1.0).cdf(gate)
    assert_close(layer(x), h + layer.contract(linear * gelu))


@pytest.mark.parametrize("norm_residual", [False, True])
@pytest.mark.parametrize("kind", [FeedForward, SelfAttention, CrossAttention])
def test_a_layer_whose_function_is_zero_returns_its_residual(
    kind: type[PreNorm], norm_residual: bool
) -> None:
    layer = randomised(kind(LayerConfig(12, 3, 20, norm_residual=norm_residual)))
    last = layer.contract if kind is FeedForward else layer.attention.to_out
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    x = torch.randn(2, 5, 12).double()
    arguments = (x, torch.randn(2, 7, 12).double()) if kind is CrossAttention else (x,)
    assert torch.equal(layer(*arguments), layer.norm(x) if norm_residual else x)


def test_dropout_acts_in_training_only() -> None:
    layer = FeedForward(LayerConfig(12, 3, 20, dropout=0.5))
    x = torch.randn(2, 5, 12)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("norm_residual", [False, True])
def test_absorb_and_readout_equal_cross_attention_at_once(
    norm_residual: bool, qk_norm: bool
) -> None:
    config = LayerConfig(12, 3, 20, norm_residual=norm_residual, qk_norm=qk_norm)
    layer = randomised(CrossAttention(config))
    x, context = torch.randn(5, 12).double(), torch.randn(2, 7, 12).double()
    state = layer.absorb(x, context)
    assert_close(layer.readout(x, state), layer(x.expand(2, -1, -1), context))
    in_chunks = layer.absorb(x, context[:, :3]).merge(layer.absorb(x, context[:, 3:]))
    assert_close(layer.readout(x, in_chunks), layer.readout(x, state))


def test_the_decoder_reads_one_context_a_layer() -> None:
    decoder = randomised(Decoder(CONFIG, dim_x=2, num_layers=3, embed_depth=2))
    xt = torch.randn(2, 5, 2).double()
    contexts = [torch.randn(2, 7, 12).double() for _ in range(3)]
    x = decoder.embed(xt)
    for layer, context in zip(decoder.layers, contexts, strict=True):
        x = layer.feedforward(layer.attend(x, context))
    expected = F.layer_norm(x, [12], decoder.norm.weight, decoder.norm.bias)
    assert_close(decoder(xt, contexts), expected)
    assert_close(decoder(xt, iter(contexts)), expected)
    for number in (2, 4):
        with pytest.raises(ValueError, match="zip"):
            decoder(xt, [contexts[0]] * number)


def test_the_decoder_sees_no_masked_points() -> None:
    decoder = randomised(Decoder(CONFIG, dim_x=2, num_layers=2, embed_depth=2))
    xt, contexts = torch.randn(2, 5, 2).double(), torch.randn(2, 2, 7, 12).double()
    real = torch.tensor([True, False, True, True, False, False, True])
    masked = decoder(xt, contexts, real.expand(2, 1, -1))
    assert_close(masked, decoder(xt, contexts[:, :, real]))


def reference(layer: TransformerLayer) -> nn.TransformerEncoderLayer:
    """torch's own post-norm layer, with the same weights."""
    torchs = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True).double()
    attention, ours = torchs.self_attn, layer.attention
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([ours.to_q.weight, ours.to_kv.weight]))
        attention.in_proj_bias.copy_(torch.cat([ours.to_q.bias, ours.to_kv.bias]))
    attention.out_proj.load_state_dict(ours.to_out.state_dict())
    for theirs, mine in (
        (torchs.norm1, layer.norm_attention),
        (torchs.norm2, layer.norm_feedforward),
        (torchs.linear1, layer.expand),
        (torchs.linear2, layer.contract),
    ):
        theirs.load_state_dict(mine.state_dict())
    return torchs


@pytest.mark.parametrize("masked", [False, True])
def test_the_transformer_layer_is_torch_s(masked: bool) -> None:
    layer = randomised(TransformerLayer(CONFIG))
    x = torch.randn(2, 6, 12).double()
    mask = (torch.rand(2, 6, 6) < 0.5) | torch.eye(6, dtype=torch.bool) if masked else None
    # torch's masks mark what may not be seen, once for every head.
    hidden = None if mask is None else ~mask.repeat_interleave(3, dim=0)
    assert_close(layer(x, x, mask), reference(layer)(x, src_mask=hidden))


def test_the_transformer_layer_attends_to_its_context_alone() -> None:
    """In two groups of tokens, of which both see the first only, as in one with a mask."""
    layer = randomised(TransformerLayer(CONFIG))
    tokens = torch.randn(2, 9, 12).double()
    context, targets = tokens[:, :5], tokens[:, 5:]
    seen = (torch.arange(9) < 5).expand(2, 1, -1)
    together = layer(tokens, tokens, seen)
    assert_close(layer(context, context), together[:, :5])
    assert_close(layer(targets, context), together[:, 5:])
