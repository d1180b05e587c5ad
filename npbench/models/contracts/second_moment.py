"""The base of the models whose state is sums: second moments of features, and of outputs."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributions import Categorical

from npbench.blocks import BayesianHeads, FunctionPosterior, SecondMoments, WeightPosterior
from npbench.blocks.fourier import fourier_features
from npbench.distributed import all_sum
from npbench.errors import InputError
from npbench.likelihoods import NormalMixture
from npbench.models.contracts.inputs import check_batch
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import (
    Marginals,
    NeuralProcess,
    merge_all,
)
from npbench.models.contracts.saved_state import SavedState
from npbench.structure import TensorRecord

# Without gradients so many points are absorbed, or targets predicted, at a time.
_INFERENCE_CHUNK = 4096
# Relative to what was there before, what subtraction may leave below 0 by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class SecondMomentState(SavedState):
    """All that the model keeps of its context, at a size that does not depend on it.

    `moments` are the only tensors that ever see the points: what files hold, and what travels
    between processes. `posterior`, the solved equations, follows from them; it is None right after
    `merge`, which knows no model, until the model's `merge` or `query` works it out. In training
    mode with gradients it is a `FunctionPosterior` where there are fewer points than features.
    """

    moments: SecondMoments
    posterior: WeightPosterior | FunctionPosterior | None

    def merge(self, other: "SecondMomentState") -> "SecondMomentState":
        """The state of the union of two contexts: a sum, exact in any order and tree of merges.

        Raises:
            InputError: if the two are states of different numbers of tasks, or of other models.
        """
        mine, theirs = self.moments, other.moments
        if mine.targets.shape != theirs.targets.shape:
            raise InputError(
                f"states with sums of shapes {list(mine.targets.shape)} and "
                f"{list(theirs.targets.shape)}, [tasks, features, outputs], do not merge"
            )
        return type(self)(mine.merge(theirs), posterior=None)

    def _tensors_to_save(self) -> dict[str, Tensor]:
        return {f"moments.{name}": getattr(self.moments, name) for name in _MOMENTS}

    @classmethod
    def _from_file(
        cls, tensors: Mapping[str, Tensor], notes: Mapping[str, str]
    ) -> "SecondMomentState":
        return cls(SecondMoments(*(tensors[f"moments.{name}"] for name in _MOMENTS)), None)


_MOMENTS = ("products", "targets", "squares", "count")


@dataclass(frozen=True, eq=False)
class SampledFunctions(TensorRecord):
    r"""Functions $f(x) = w^\top \varphi(x)$ that a model has drawn, to be evaluated anywhere.

    Calls are consistent with each other: the functions are their weights, which are kept. A value
    costs a dot product of m numbers. `noise_std` is what an observation adds to the function.
    """

    weights: Float[Tensor, "samples batch m dim_y"]
    frequencies: Float[Tensor, "features dim_x"]
    noise_std: Float[Tensor, "samples batch"]

    def __call__(
        self, x: Float[Tensor, "batch points dim_x"]
    ) -> Float[Tensor, "samples batch points dim_y"]:
        """The functions' values, each task's at its own inputs.

        Raises:
            InputError: if x has another number of tasks or inputs.
        """
        if x.ndim != 3 or x.shape[::2] != (self.weights.shape[1], self.frequencies.shape[1]):
            raise InputError(
                f"x has shape {list(x.shape)}; expected [{self.weights.shape[1]}, points, "
                f"{self.frequencies.shape[1]}]"
            )
        return fourier_features(x, self.frequencies) @ self.weights


class SecondMomentProcess(NeuralProcess):
    """What the models of second moments share: the state, and the functions that it knows of.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        heads: the priors.
    """

    state_class = SecondMomentState

    def __init__(self, dim_x: int, dim_y: int, heads: BayesianHeads) -> None:
        super().__init__(dim_x, dim_y)
        self.heads = heads

    @abstractmethod
    def _predict(self, state: SecondMomentState, xt: Tensor) -> NormalMixture:
        """At each target by itself; the state is solved."""

    def merge(self, *states: SecondMomentState) -> SecondMomentState:
        """The state of the union of one context or more, ready to be queried."""
        if not states:
            raise InputError("merge takes one state or more; condition on no points for a prior")
        return merge_all(states, finish=self._solved)

    def all_merge(
        self, state: SecondMomentState, group: ProcessGroup | None = None
    ) -> SecondMomentState:
        """The collective form of `merge`: one sum over ranks; see `npbench.distributed.all_sum`.

        Args:
            state: of this rank's shard of the context, which may be empty.
            group: the ranks that share the context; by default all.

        Raises:
            InputError: if there is no process group, or this process is not in it.
        """
        return self._state(all_sum(state.moments, group, self.parameters()))

    def forget(
        self,
        state: SecondMomentState,
        x: Float[Tensor, "batch points dim_x"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> SecondMomentState:
        """The state without these points, which it has absorbed before: the inverse of `update`.

        A subtraction in float64: exact but for rounding, however few points are left.

        Raises:
            InputError: as `update`; and if the state cannot have absorbed the points.
        """
        points = self._inputs.points("x", x, "y", y, mask)
        check_batch("x", points.x, state.batch_size)
        left = state.moments.remove(self._absorb(points))
        floor = -_ROUNDING * (1 + state.moments.squares)
        wrong = (left.count < 0) | (left.squares < floor).any(dim=-1)
        if wrong.any():
            task = int(wrong.nonzero()[0])
            raise InputError(
                f"forgetting these points would leave task {task} with {int(left.count[task])} "
                f"points and a sum of squares of {float(left.squares[task].min()):.3g}: the state "
                f"has never absorbed them"
            )
        try:
            return self._state(left)
        except torch.linalg.LinAlgError as error:
            raise InputError(
                "forgetting these points would leave products that no points have: the state has "
                "never absorbed them"
            ) from error

    def sample_functions(self, state: SecondMomentState, num_samples: int = 1) -> SampledFunctions:
        r"""Draw functions from the Bayesian mixture, to be evaluated anywhere and later.

        $$h \sim \pi, \qquad w \sim \mathcal{N}(\bar w_h, R_h^\top R_h), \qquad
          f(x) = w^\top \varphi(x)$$

        Without gradient, from torch's random state. For Thompson sampling, and for maps whose
        values fit together.

        Args:
            state: of the context.
            num_samples: functions drawn for each task.

        Raises:
            InputError: if `num_samples` is not 1 or more.

        Example:
            >>> model = SecondMomentNP(dim_x=1, dim_y=1)
            >>> state = model.condition(*torch.randn(2, 1, 10, 1))
            >>> functions = model.sample_functions(state, num_samples=3)
            >>> functions(torch.linspace(-2, 2, 100).reshape(1, -1, 1)).shape
            torch.Size([3, 1, 100, 1])
        """
        if num_samples < 1:
            raise InputError(f"num_samples={num_samples} must be 1 or more")
        with torch.no_grad():
            posterior = self._solved(state).posterior
            head = Categorical(logits=self.heads.log_weights(posterior)).sample((num_samples,))
            task = torch.arange(head.shape[1], device=head.device)
            mean, root = posterior.mean[task, head], posterior.root[task, head]
            weights = mean + root.mT @ torch.randn_like(mean)
            frequencies = self.heads.features.frequencies()
            return SampledFunctions(weights, frequencies, self.heads.noise_std[head])

    def _condition(self, chunks: Iterator[Points]) -> SecondMomentState:
        if not (self.training and torch.is_grad_enabled()):
            return merge_all(map(self._absorb, chunks), finish=self._state)
        points = Points.concatenate(chunks)
        features = self.heads.features(points.x)
        moments = SecondMoments.of(features, points.y, points.mask)
        if points.x.shape[1] >= features.shape[-1]:
            return self._state(moments)
        posterior = self.heads.solve_by_points(features, points.y, points.mask)
        return SecondMomentState(moments, posterior)

    def _update(self, state: SecondMomentState, points: Points) -> SecondMomentState:
        return self._state(state.moments.merge(self._absorb(points)))

    def _absorb(self, points: Points) -> SecondMoments:
        return SecondMoments.of(self.heads.features(points.x), points.y, points.mask)

    def _state(self, moments: SecondMoments) -> SecondMomentState:
        return SecondMomentState(moments, self.heads.solve(moments))

    def _solved(self, state: SecondMomentState) -> SecondMomentState:
        return state if isinstance(state.posterior, WeightPosterior) else self._state(state.moments)

    def _chunk_size(self) -> int | None:
        return None if torch.is_grad_enabled() else _INFERENCE_CHUNK

    def _marginals(self, state: SecondMomentState, targets: Points) -> Marginals:
        return Marginals(*self._mixture(state, targets.x).moments)

    def _mixture(self, state: SecondMomentState, xt: Tensor) -> NormalMixture:
        """At each target by itself, a chunk of targets at a time."""
        if state.posterior is None:
            state = self._solved(state)
        if torch.is_grad_enabled() or xt.shape[1] <= _INFERENCE_CHUNK:
            return self._predict(state, xt)
        chunks = [self._predict(state, x).tensors() for x in xt.split(_INFERENCE_CHUNK, dim=1)]
        return NormalMixture(*(torch.cat(z, dim=1) for z in zip(*chunks)))

    def _bayesian_mixture(
        self, posterior: WeightPosterior | FunctionPosterior, xt: Tensor
    ) -> NormalMixture:
        """At each target by itself: what the heads say, weighed by their evidence."""
        features = self.heads.features(xt)
        variance = posterior.variance(features) + self.heads.noise_std.square()[:, None]
        mean = torch.einsum("btm,bhmd->bthd", features, posterior.mean)
        log_weight = self.heads.log_weights(posterior)[:, None].expand(mean.shape[:3])
        std = variance.sqrt().mT[..., None].expand_as(mean)
        return NormalMixture(log_weight, mean, std)
