"""Transformer neural processes: context and targets as tokens of one Transformer."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution

from npbench.blocks import MLP, LayerConfig, TransformerLayer
from npbench.likelihoods import JointGaussian, Likelihood, target_head
from npbench.models.contracts.causal import CausalExtension, CausalOption, CausalState
from npbench.models.contracts.joint import JointProcess
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import Evaluation, masked_mean, records_arguments
from npbench.models.contracts.stored_context import StoredContext


class TNPD(CausalOption):
    r"""Transformer Neural Process with a diagonal Gaussian.

    Tokens $\mathrm{MLP}([x, y])$ for the context and $\mathrm{MLP}([x_t, 0])$ for the targets; in
    every layer each token attends to the context's alone:

    $$C_i = \mathrm{Layer}_i(C_{i-1} \to C_{i-1}), \qquad X_i = \mathrm{Layer}_i(X_{i-1} \to
      C_{i-1}), \qquad i = 1, …, K$$

    The state stores $C_0, …, C_{K-1}$, so that a query encodes the targets alone. Memory: $N^2$ to
    condition and to update, $NM$ to query.

    With `causal` a point of the context sees only those before it. The state then keeps the keys
    and values of all points in every layer, twice as many numbers, and not the points.
    An update by n points encodes them alone: n(N + n) operations and a copy of what is kept, in
    place of (N + n)² operations. Training predicts each point of a task from all before it, in one
    pass (`next_points`). In return predictions depend on the order of the context.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_model: width D.
        num_heads: heads of every attention.
        num_layers: number K of Transformer layers.
        dim_feedforward: hidden width of the layers and of the head.
        embed_depth: linear layers in the embedding MLP.
        dropout: rate in the layers.
        bound_std: keep the standard deviation above 0.05.
        qk_norm: normalise queries and keys; see `MultiheadAttention`.
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.
        causal: whether points of the context see only those before them; see above.

    Source: Nguyen and Grover, *Transformer Neural Processes: Uncertainty-Aware Meta Learning via
    Sequence Modeling*, ICML 2022.

    Example:
        >>> model = TNPD(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).mean.shape
        torch.Size([16, 10, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 6,
        dim_feedforward: int = 128,
        embed_depth: int = 4,
        dropout: float = 0.0,
        bound_std: bool = False,
        qk_norm: bool = False,
        likelihood: Likelihood = "gaussian",
        causal: bool = False,
    ) -> None:
        super().__init__(dim_x, dim_y)
        self._set_causal(causal)
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout, qk_norm)
        self.embed = MLP(dim_x + dim_y, dim_model, dim_model, embed_depth)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(num_layers))
        self.head: nn.Module = target_head(
            likelihood,
            dim_y,
            lambda n: MLP(dim_model, dim_feedforward, n, depth=2),
            min_std=0.05 if bound_std else None,
        )

    def _encode(self, points: Points) -> StoredContext:
        tokens = [self.embed(points.xy)]
        for layer in self.layers[:-1]:
            tokens.append(layer(tokens[-1], tokens[-1], points.attention_mask))
        return StoredContext(points, torch.stack(tokens, dim=1))

    def _extend(self, state: CausalState | None, points: Points) -> CausalState:
        extension, x = CausalExtension(state, points), self.embed(points.xy)
        for index, layer in enumerate(self.layers):
            k, v = extension.add(*layer.attention.keys_values(x))
            if index < len(self.layers) - 1:
                x = layer.attend_to(x, k, v, extension.visible)
        return extension.state()

    def _query(self, state: StoredContext | CausalState, xt: Tensor) -> Distribution:
        if isinstance(state, CausalState):
            return super()._query(state, xt)
        return self.head(self._encode_targets(state, xt))

    def _predict(self, state: CausalState, xt: Tensor, visible: Tensor) -> Distribution:
        x = self._embed_targets(xt)
        for layer, (k, v) in zip(self.layers, state.keys_values(), strict=True):
            x = layer.attend_to(x, k, v, visible)
        return self.head(x)

    def _encode_targets(
        self, state: StoredContext, xt: Tensor
    ) -> Float[Tensor, "batch target dim_model"]:
        contexts = state.encodings.unbind(dim=1)
        return self._attend(self._embed_targets(xt), contexts, state.points.attention_mask)

    def _attend(
        self, x: Tensor, contexts: Sequence[Tensor], mask: Tensor | None
    ) -> Float[Tensor, "batch target dim_model"]:
        for layer, context in zip(self.layers, contexts, strict=True):
            x = layer(x, context, mask)
        return x

    def _embed_targets(self, xt: Tensor) -> Float[Tensor, "batch target dim_model"]:
        """Tokens without values."""
        return self.embed(torch.cat([xt, xt.new_zeros(*xt.shape[:2], self.dim_y)], dim=-1))


class TNPND(JointProcess, TNPD):
    r"""TNP with a joint Gaussian over all targets: see `JointGaussian` for its covariance.

    Args:
        covariance: "cholesky" or "lowrank".
        dim_projection: columns of the covariance's factor P.
        num_std_layers: Transformer layers among the targets before P.
        projection_depth: linear layers from their output to P (and to the diagonal).

    The other arguments are those of `TNPD`.

    Example:
        >>> model = TNPND(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).covariance_matrix.shape
        torch.Size([16, 10, 10])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 6,
        dim_feedforward: int = 128,
        embed_depth: int = 4,
        dropout: float = 0.0,
        bound_std: bool = False,
        qk_norm: bool = False,
        covariance: Literal["cholesky", "lowrank"] = "cholesky",
        dim_projection: int = 20,
        num_std_layers: int = 2,
        projection_depth: int = 4,
    ) -> None:
        super().__init__(
            dim_x=dim_x,
            dim_y=dim_y,
            dim_model=dim_model,
            num_heads=num_heads,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            embed_depth=embed_depth,
            dropout=dropout,
            bound_std=bound_std,
            qk_norm=qk_norm,
        )
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout)
        self.head = JointGaussian(
            config=config,
            dim_y=dim_y,
            covariance=covariance,
            dim_projection=dim_projection,
            num_std_layers=num_std_layers,
            projection_depth=projection_depth,
            bound_std=bound_std,
        )


class TNPA(TNPD):
    r"""Autoregressive TNP: each target is predicted from the context and the targets before it.

    $$\log p(y_{1:M}) = \sum_m \log p(y_m \mid y_{<m}, \mathrm{context})$$

    Beside the tokens of `TNPD` there is one $\mathrm{MLP}([x_m, y_m])$ for each target before,
    which attends to the context and to those up to itself. The log-likelihood takes one pass, with
    the true values; samples are drawn one target after another. Both depend on the order of the
    targets. `query` predicts each target by itself, as if it came first.

    The arguments and the source are those of `TNPD`, without `causal`.

    Example:
        >>> model = TNPA(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model.sample(model.condition(x, y), x[:, :3], num_samples=5).shape
        torch.Size([5, 16, 3, 1])
    """

    scores_jointly = True

    def teacher_forced(self, state: StoredContext, targets: Points) -> Distribution:
        """The prediction of each target from the context and the true targets before it."""
        num_targets = targets.x.shape[1]
        x = torch.cat([self.embed(targets.xy), self._embed_targets(targets.x)], dim=1)
        mask = self._mask(state.points, targets)
        for layer, context in zip(self.layers, state.encodings.unbind(dim=1), strict=True):
            x = layer(x, torch.cat([context, x[:, :num_targets]], dim=1), mask)
        return self.head(x[:, num_targets:])

    def _evaluate(self, state: StoredContext, targets: Points) -> Evaluation:
        return Evaluation(self._log_likelihood(state, targets), *self._marginals(state, targets))

    def _log_likelihood(self, state: StoredContext, targets: Points) -> Float[Tensor, "batch"]:
        log_prob = self.teacher_forced(state, targets).log_prob(targets.y)
        return masked_mean(log_prob, targets.mask)

    def _sample(
        self, state: StoredContext, xt: Tensor, num_samples: int
    ) -> Float[Tensor, "samples batch target dim_y"]:
        state = state.repeat(num_samples)
        contexts = list(state.encodings.unbind(dim=1))
        mask = state.points.full_mask
        samples = []
        for x in xt.repeat(num_samples, 1, 1).split(1, dim=1):
            y = self.head(self._attend(self._embed_targets(x), contexts, mask[:, None])).sample()
            samples.append(y)
            # The value that was drawn joins the context of all targets after it.
            token = self.embed(torch.cat([x, y], dim=-1))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            for index, layer in enumerate(self.layers):
                contexts[index] = torch.cat([contexts[index], token], dim=1)
                token = layer(token, contexts[index], mask[:, None])
        return torch.cat(samples, dim=1).unflatten(0, (num_samples, -1))

    def _mask(self, context: Points, targets: Points) -> Bool[Tensor, "batch queries points"]:
        """True where a row may see a column: the rows are targets with values, then those without;
        the columns are the context, then the targets with values."""
        num_targets = targets.x.shape[1]
        ones = torch.ones(num_targets, num_targets, dtype=torch.bool, device=targets.x.device)
        before = torch.cat([ones.tril(), ones.tril(-1)]) & targets.full_mask[:, None]
        seen = context.full_mask[:, None].expand(-1, 2 * num_targets, -1)
        return torch.cat([seen, before], dim=-1)
