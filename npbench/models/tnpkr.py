"""TNP-KR: context and targets pass the same blocks, by one of three attentions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution

from npbench.attention.bias_spec import Bias
from npbench.attention.deep_kernel import DeepKernelAttention
from npbench.attention.pair_bias import SummedBias
from npbench.attention.performer import PerformerAttention
from npbench.attention.scan import ScanAttention
from npbench.blocks import GELUMLP, KernelRegressionBlock
from npbench.blocks.kernel_regression import NORM_EPS
from npbench.errors import InputError
from npbench.likelihoods import Likelihood, target_head
from npbench.models.contracts.inputs import check_batch
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import NeuralProcess, State, records_arguments

# Without gradients so many targets are predicted at a time.
_TARGETS_AT_A_TIME = 16_384
# Width of the vector that says whether a point's outputs are observed.
_DIM_OBSERVED = 4
_ATTENTIONS = ("scan", "deep_kernel", "performer")


@dataclass(frozen=True, eq=False)
class KernelState(State):
    """The context, which an update needs, and what each pass of a block keeps of it.

    With scan attention `kept` is the encoding of every point, and `points` are where they are;
    with the others it is one matrix (deep kernel), or one a head (Performer), of a size that does
    not depend on the context, and `points` is None after `TNPKR.without_points`.
    """

    points: Points | None
    kept: Float[Tensor, "batch passes *kept"]

    @property
    def batch_size(self) -> int:
        return self.kept.shape[0]


class TNPKR(NeuralProcess):
    r"""Transformer Neural Process – Kernel Regression.

    Context and targets pass the same blocks, with the same parameters; both attend to the context
    as it was before the block, so that targets cost what they cost and see each other never:

    $$C_i = \mathrm{Block}_i(C_{i-1} \to C_{i-1}), \qquad X_i = \mathrm{Block}_i(X_{i-1} \to
      C_{i-1}), \qquad [\mu, r] = \mathrm{MLP}(\mathrm{LN}(X_K))$$

    Tokens are $\mathrm{LN}(\mathrm{MLP}([e, x, y]))$, with a learned vector e of points and another
    of targets, whose y is 0. Three attentions:

    - "scan": softmax attention with a bias of distances, in bounded memory (`scan_attention`).
      Inputs may be left out of the tokens and still be seen by the bias, which makes the model
      invariant to their translation. Its state has the encodings of all points: conditioning takes
      N² operations, a target N.
    - "deep_kernel": no softmax; a state of one matrix a block (`DeepKernelAttention`).
      Conditioning takes N operations and a target the same for any N.
    - "performer": random features of softmax attention (`PerformerAttention`), as cheap.

    Every `update` and `forget` is exact, as it encodes the whole context again: N² operations with
    scan attention and N with the others. The matrices of the first block are sums over points; from
    the second on the tokens depend on all points, so that states do not merge. Of the last two
    attentions `without_points` makes a state of constant size, which answers and does not update.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point; of classes, with the categorical likelihood.
        attention: see above.
        bias: of scan attention: one `Bias` or several, which add up; none for an empty list. By
            default a network of radial basis functions of the distance over all inputs.
        invariant: which inputs tokens are without: those of the biases (True, as by default with
            scan attention), none (False), or the ones listed.
        dim_model: width D of the tokens.
        num_heads: heads of scan attention and of the Performer.
        dim_head: width of each head.
        num_layers: number of blocks.
        num_repeats: how often each block is passed; K is `num_layers * num_repeats`.
        dim_feedforward: hidden width of the feed-forward layers.
        embed_widths: hidden widths of the embedding MLP; by default (256, 128), and (512, 128) with
            the Performer.
        head_widths: hidden widths of the head's MLP.
        num_features: of the deep kernel, or random ones of the Performer.
        dim_hidden: hidden width of the deep kernel's networks.
        dropout: rate on the blocks' branches, and in feed-forward layers and head.
        min_std: least standard deviation m: $\sigma = m + (1 - m)\,\mathrm{softplus}(r)$.
        likelihood: what is predicted: a diagonal "gaussian", or one of `dim_y` classes, which are
            one-hot outputs ("categorical").

    Source: Jenson et al., *Transformer Neural Processes – Kernel Regression*, 2024, and *Scalable
    Spatiotemporal Inference with Biased Scan Attention Transformer Neural Processes*, 2025. Unlike
    there, basis functions start with different rates; see `Bias`.

    Example:
        >>> model = TNPKR(dim_x=2, dim_y=1, num_layers=2).eval()
        >>> x, y = torch.randn(16, 50, 2), torch.randn(16, 50, 1)
        >>> mean = model(x, y, x).mean
        >>> torch.allclose(model(x + 10, y, x + 10).mean, mean, atol=1e-4)
        True
        >>> model = TNPKR(dim_x=2, dim_y=1, attention="deep_kernel").eval()
        >>> few, many = (model.condition(x[:, :n], y[:, :n]) for n in (5, 50))
        >>> model.without_points(few).nbytes == model.without_points(many).nbytes
        True
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        attention: Literal["scan", "deep_kernel", "performer"] = "scan",
        bias: Bias | Sequence[Bias] | None = None,
        invariant: bool | Sequence[int] | None = None,
        dim_model: int = 64,
        num_heads: int = 4,
        dim_head: int = 32,
        num_layers: int = 6,
        num_repeats: int = 1,
        dim_feedforward: int = 256,
        embed_widths: Sequence[int] | None = None,
        head_widths: Sequence[int] = (256, 64),
        num_features: int = 128,
        dim_hidden: int = 128,
        dropout: float = 0.0,
        min_std: float = 0.0,
        likelihood: Likelihood = "gaussian",
    ) -> None:
        super().__init__(dim_x, dim_y)
        if attention not in _ATTENTIONS:
            raise InputError(f"attention={attention!r} must be one of {', '.join(_ATTENTIONS)}")
        if num_layers < 1 or num_repeats < 1:
            raise InputError(
                f"num_layers={num_layers} and num_repeats={num_repeats} must be 1 or more"
            )
        self.attention = attention
        self.num_repeats = num_repeats
        biases = _biases(attention, bias)
        self.token_columns = _token_columns(dim_x, attention, biases, invariant)
        self.watch.watched = [*self.token_columns, *range(dim_x, dim_x + dim_y)]

        def new_attention() -> nn.Module:
            if attention == "scan":
                modules = [each.build(num_heads, dim_x) for each in biases]
                summed = SummedBias(modules) if modules else None
                return ScanAttention(dim_model, num_heads, dim_head, summed)
            if attention == "performer":
                return PerformerAttention(dim_model, num_heads, dim_head, num_features)
            features = GELUMLP([dim_x + dim_model, dim_hidden, num_features])
            values = GELUMLP([dim_model, dim_hidden, dim_model])
            return DeepKernelAttention(features, values, dim_model, NORM_EPS)

        if embed_widths is None:
            embed_widths = (512, 128) if attention == "performer" else (256, 128)
        dim_token = _DIM_OBSERVED + len(self.token_columns) + dim_y
        self.embed_observed = nn.Embedding(2, _DIM_OBSERVED)
        self.embed = GELUMLP([dim_token, *embed_widths, dim_model])
        self.norm_embedding = nn.LayerNorm(dim_model, NORM_EPS)
        self.blocks: Any = nn.ModuleList(
            KernelRegressionBlock(new_attention(), dim_model, dim_feedforward, dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim_model, NORM_EPS)
        self.head: Any = target_head(
            likelihood, dim_y, lambda n: GELUMLP([dim_model, *head_widths, n], dropout), min_std
        )
        self.apply(_initialise)
        nn.init.normal_(self.embed_observed.weight, std=_DIM_OBSERVED**-0.5)

    def tokens(self, x: Tensor, y: Tensor | None = None) -> Float[Tensor, "batch points dim_model"]:
        """Tokens of points, or of targets, which have no outputs."""
        observed = self.embed_observed.weight[0 if y is None else 1]
        y = x.new_zeros(*x.shape[:2], self.dim_y) if y is None else y
        parts = [observed.expand(*x.shape[:2], -1), x[..., self.token_columns], y]
        return self.norm_embedding(self.embed(torch.cat(parts, dim=-1)))

    def encodings(self, state: KernelState, xt: Tensor) -> Iterator[Tensor]:
        """The encodings of targets, so many at a time."""
        self._check_positions(xt)
        parts = (xt,) if torch.is_grad_enabled() else xt.split(_TARGETS_AT_A_TIME, dim=1)
        return (self._attend(state, part) for part in parts)

    def without_points(self, state: KernelState) -> KernelState:
        """The state without its points: of constant size. It answers queries as before, and cannot
        update or forget.

        Raises:
            InputError: with scan attention, whose queries attend to all points.
        """
        if self.attention == "scan":
            raise InputError(
                'attention="scan" needs all points to answer a query: only "deep_kernel" and '
                '"performer" keep matrices that answer without them'
            )
        return replace(state, points=None)

    def forget(
        self,
        state: KernelState,
        x: Float[Tensor, "batch points dim_x"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> KernelState:
        """The state without these points, to the last bit those it was given before; the other
        points are encoded again.

        Raises:
            InputError: as `update`; and if the state does not hold the points.
        """
        points = self._inputs.points("x", x, "y", y, mask)
        check_batch("x", points.x, state.batch_size)
        return self._encode(_without(_stored(state), points))

    def _condition(self, chunks: Iterator[Points]) -> KernelState:
        return self._encode(Points.concatenate(chunks))

    def _update(self, state: KernelState, points: Points) -> KernelState:
        return self._encode(Points.concatenate([_stored(state), points]))

    def _query(self, state: KernelState, xt: Tensor) -> Distribution:
        parts = (self.head.parts(encoding) for encoding in self.encodings(state, xt))
        return self.head.distribution(*(torch.cat(z, dim=1) for z in zip(*parts)))

    def _encode(self, points: Points) -> KernelState:
        self._check_positions(points.x)
        tokens = self.tokens(points.x, points.y)
        first, *others = self._passes
        kept = [first.keep(tokens, points.x, points.mask)]
        for block, following in zip(self._passes, others):
            tokens = block(tokens, points.x, kept[-1], points.x, points.mask)
            kept.append(following.keep(tokens, points.x, points.mask))
        return KernelState(points, torch.stack(kept, dim=1))

    def _attend(self, state: KernelState, xt: Tensor) -> Float[Tensor, "batch target dim_model"]:
        x, mask = (None, None) if state.points is None else (state.points.x, state.points.mask)
        tokens = self.tokens(xt)
        for block, kept in zip(self._passes, state.kept.unbind(dim=1), strict=True):
            tokens = block(tokens, xt, kept, x, mask)
        return self.norm(tokens)

    def _check_positions(self, x: Tensor) -> None:
        bias = self.blocks[0].attention.bias if self.attention == "scan" else None
        if bias is not None:
            bias.check(x)

    @property
    def _passes(self) -> list[Any]:
        """The blocks in the order in which tokens pass them."""
        return [block for block in self.blocks for _ in range(self.num_repeats)]


def _biases(attention: str, bias: Bias | Sequence[Bias] | None) -> list[Bias]:
    if attention != "scan":
        if bias:
            raise InputError(
                f"attention={attention!r} takes no bias, as it forms no scores: use "
                f'attention="scan", or leave bias out'
            )
        return []
    if bias is None:
        return [Bias()]
    return [bias] if isinstance(bias, Bias) else list(bias)


def _token_columns(
    dim_x: int, attention: str, biases: list[Bias], invariant: bool | Sequence[int] | None
) -> list[int]:
    """The inputs that tokens have."""
    if attention != "scan":
        if invariant:
            raise InputError(
                f"attention={attention!r} sees positions in its tokens and is not invariant to "
                f'translation: use attention="scan", or invariant=False'
            )
        return list(range(dim_x))
    biased = {column for bias in biases for column in bias.chosen(dim_x)}
    if invariant is None or isinstance(invariant, bool):
        left_out = set() if invariant is False else biased
    else:
        left_out = set(invariant)
        if unseen := left_out - biased:
            raise InputError(
                f"invariant={list(invariant)} leaves out input(s) {sorted(unseen)}, which no bias "
                f"has among its columns: the model would not see them"
            )
    return [column for column in range(dim_x) if column not in left_out]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)
        nn.init.zeros_(module.bias)


def _stored(state: KernelState) -> Points:
    if state.points is None:
        raise InputError(
            "this state is without its points, which an update or forget encodes again: do that "
            "before `without_points`, or condition on all points"
        )
    return state.points


def _without(stored: Points, gone: Points) -> Points:
    """The stored points, without one for each of those that are gone."""
    left = stored.full_mask.clone()
    for index in range(gone.x.shape[1]):
        same = (stored.x == gone.x[:, [index]]).all(-1) & (stored.y == gone.y[:, [index]]).all(-1)
        found = (same & left).float()
        wanted = gone.full_mask[:, index]
        missing = wanted & (found.sum(dim=-1) == 0)
        if missing.any():
            raise InputError(
                f"the state of task {int(missing.nonzero()[0])} does not hold point {index} of "
                f"those to forget"
            )
        first = torch.nn.functional.one_hot(found.argmax(dim=-1), left.shape[1]).bool()
        left &= ~(first & wanted[:, None])
    return replace(stored, mask=left)
