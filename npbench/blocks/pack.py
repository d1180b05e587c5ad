"""What latents at places keep of points: the only layer of a located model that sees them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from npbench.attention import AttentionState, split_heads
from npbench.attention.bias import REACH, CompactKernel, compact, squared_distances
from npbench.attention.kernels import log_normalised
from npbench.attention.rotary import Rotary, Rotation
from npbench.blocks.layers import MLP
from npbench.blocks.located import At

# log of the mass of points at which a place begins to know of them: κ(3.9 lengths), one point.
_FLOOR = -12.0


class Pack(nn.Module):
    r"""The only layer that sees points: what places keep of them, a sum over points.

    Head h of place l is at $u_{lh}$. A point at x with outputs y has the weight $\kappa_h$ there
    (`CompactKernel`), and the value $v_h = R(\Omega x)\, \mathrm{MLP}(y)_h$:

    $$\mathrm{mass} = \sum_j \kappa_h(|x_j - u|), \qquad
      \mathrm{lse} = \log \mathrm{mass}, \qquad
      \mathrm{out} = \frac{1}{\mathrm{mass}} \sum_j \kappa_h(|x_j - u|)\, v_{jh}$$

    which is attention with the scores $\log \kappa$: its state merges with others. The weights are
    between 0 and 1, and therefore need no running maximum.

    The `readout` undoes the rotation at the place, so that values carry displacements, and adds
    what the softmax of attention forgets, how much there was and how near, with
    $\lambda = \log(\mathrm{mass} + e^c)$, $c = -12$:

    $$p = W [\mathrm{out}\,\sigma(\mathrm{lse} - c),\ \mathrm{out}\,\sigma(\lambda),\
             \sigma(\lambda),\ \mathrm{distance},\ \mathrm{sign}(\lambda) \log(1 + |\lambda|) / 2]_h
      + b$$

    With `content`, each head of each place has a learned query too, and points have keys:
    $\log \kappa + \tau\, q \cdot k / \sqrt{d}$ is the score, where norms bound the second part, so
    that the sums need no running maximum then either. Keys and values are an MLP of x and y.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_model: width of the latents and of the MLP.
        dim_head: width of a head.
        lengths: initial length of each head.
        offsets: where each head looks, from the place.
        content: number of places that have queries, or None.
        max_density: number of points in a unit of volume beyond which λ grows no more, so that far
            more points than in training are read as what training has shown.
    """

    offsets: Tensor

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_model: int,
        dim_head: int,
        lengths: Sequence[float],
        offsets: Float[Tensor, "heads dim_x"],
        content: int | None = None,
        max_density: float | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads = len(lengths)
        self.dim_head = dim_head
        self.max_density = max_density
        self.kernel = CompactKernel(lengths)
        self.register_buffer("offsets", offsets.to(torch.get_default_dtype()), persistent=False)
        dim_in = dim_y if content is None else dim_x + dim_y
        self.to_values = MLP(dim_in, dim_model, num_heads * dim_head, depth=2)
        self.to_keys, self.queries, self.temperature = None, None, None
        if content is not None:
            self.to_keys = MLP(dim_in, dim_model, num_heads * dim_head, depth=2)
            self.queries = nn.Parameter(torch.randn(num_heads, content, dim_head))
            self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.to_latents = nn.Linear(num_heads * (2 * dim_head + 3), dim_model)

    def sites(self, places: Float[Tensor, "places dim_x"]) -> Float[Tensor, "heads places dim_x"]:
        """Where the heads look from these places."""
        return places + self.offsets[:, None]

    def sums(
        self,
        at: At,
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None,
        places: Float[Tensor, "places dim_x"],
    ) -> Float[Tensor, "batch heads places dim_value"]:
        """The sums over points of weighted values, and the mass as a last number."""
        with torch.autocast(y.device.type, enabled=False):
            keys, values = self._keys_values(at, y, mask)
            weights = self.kernel(at.x, self.sites(places))
            if keys is not None:
                weights = weights * (self._scaled_queries @ keys.mT).exp()
            return weights @ values

    def sums_of_many(
        self,
        at: At,
        y: Float[Tensor, "1 points dim_y"],
        mask: Bool[Tensor, "1 points"] | None,
        places: Float[Tensor, "places dim_x"],
        size: int = 2048,
    ) -> Float[Tensor, "1 heads places dim_value"]:
        """The same sums of one task, without gradients, where each point meets only the places
        within reach: its cost does not depend on their number.

        Points come in the order of `near_first`, `size` at a time, so that those of one piece are
        near each other, and few places in reach of the box around them. All others have the weight
        0, exactly.

        Args:
            at: where the points are.
            y: their outputs.
            mask: True where a point is real.
            places: as of `sums`.
            size: number of points of a piece.
        """
        sites, rates = self.sites(places), self.kernel.rates
        reach = (REACH / rates)[:, None]
        queries = None if self.queries is None else self._scaled_queries
        total = y.new_zeros(1, *sites.shape[:2], self.dim_head + 1)
        for start in range(0, y.shape[1], size):
            window = slice(start, start + size)
            x, part = at.x[:, window], None if mask is None else mask[:, window]
            rotation = Rotation(at.rotation.cos[..., window, :], at.rotation.sin[..., window, :])
            keys, values = self._keys_values(At(x, rotation), y[:, window], part)
            low, high = x[0].amin(dim=0), x[0].amax(dim=0)
            gaps = torch.maximum(low - sites, sites - high).clamp(min=0.0).square().sum(dim=-1)
            in_reach = gaps <= reach.square()
            for head in range(len(sites)):
                indices = in_reach[head].nonzero()[:, 0]
                distances = squared_distances(sites[head, indices], x[0])
                weights = compact(distances, rates[head].view(1, 1))
                if queries is not None:
                    weights = weights * (queries[head, indices] @ keys[0, head].mT).exp()
                total[0, head].index_add_(0, indices, weights @ values[0, head])
        return total

    def log_weights(
        self,
        at: At,
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None,
        places: Float[Tensor, "places dim_x"],
    ) -> Float[Tensor, "batch heads places points"]:
        """The logarithms of the shares that points have in what each place keeps."""
        keys, _ = self._keys_values(at, y, mask)
        scores = self.kernel(at.x, self.sites(places)).log()
        if keys is not None:
            scores = scores + self._scaled_queries @ keys.mT
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        return log_normalised(scores)

    def readout(
        self, state: AttentionState, places: Float[Tensor, "places dim_x"], rotary: Rotary
    ) -> Float[Tensor, "batch places dim_model"]:
        """The latents before they know of each other."""
        out = rotary(self.sites(places)).undo(state.out)
        floor = state.lse.new_tensor(_FLOOR)
        level = torch.logaddexp(state.lse, floor)
        if self.max_density is not None:
            level = level.minimum(self.kernel.log_mass(self.max_density, self.offsets.shape[-1]))
        known, share = (state.lse - floor).sigmoid()[..., None], level.sigmoid()
        size = level.sign() * level.abs().log1p() / 2
        numbers = torch.stack([share, self.kernel.distances(level), size], dim=-1)
        features = torch.cat([out * known, out * share[..., None], numbers], dim=-1)
        return self.to_latents(features.transpose(1, 2).flatten(2).to(self.to_latents.weight.dtype))

    @property
    def _scaled_queries(self) -> Float[Tensor, "heads places dim_head"]:
        q = F.rms_norm(self.queries, self.queries.shape[-1:])
        return q * (self.temperature * self.dim_head**-0.5)

    def _keys_values(
        self, at: At, y: Float[Tensor, "batch points dim_y"], mask: Tensor | None
    ) -> tuple[Tensor | None, Float[Tensor, "batch heads points dim_value"]]:
        """The keys of the points, if any, and their turned values with 1 as a last number; the
        values are 0 at padding."""
        inputs = y if self.to_keys is None else torch.cat([at.x, y], dim=-1)
        v = at.rotation.turn(split_heads(self.to_values(inputs), self.num_heads))
        v = F.pad(v, (0, 1), value=1.0)
        if mask is not None:
            v = v.masked_fill(~mask[:, None, :, None], 0.0)
        if self.to_keys is None:
            return None, v
        k = split_heads(self.to_keys(inputs), self.num_heads)
        return F.rms_norm(k, k.shape[-1:]), v


def near_first(x: Float[Tensor, "points dim_x"], step: float) -> Integer[Tensor, "points"]:
    """An order in which neighbours come near each other: by x, or row by row through cells."""
    if x.shape[-1] == 1:
        return x[:, 0].argsort()
    cells = ((x - x.amin(dim=0)) / step).floor().long()
    key = cells[:, 0]
    for column in range(1, x.shape[-1]):
        key = key * (cells[:, column].amax() + 1) + cells[:, column]
    return key.argsort()


def state_of(sums: Float[Tensor, "*batch dim_value"]) -> AttentionState:
    """(lse, out) of sums of weighted values and the mass; without NaN where there is none."""
    mass = sums[..., -1]
    nothing = mass <= 0
    divisor = mass.masked_fill(nothing, 1.0)
    lse = divisor.log().masked_fill(nothing, -torch.inf)
    return AttentionState(lse, sums[..., :-1] / divisor[..., None])
