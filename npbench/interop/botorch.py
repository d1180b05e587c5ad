r"""Neural processes as models of BoTorch, for Bayesian optimisation.

Take `NeuralProcessModel` where BoTorch takes a model, such as a `SingleTaskGP`: nothing is fitted,
a new observation is absorbed exactly, and what is kept does not grow with the observations.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import FantasizeMixin, Model
from botorch.models.utils.assorted import fantasize
from botorch.posteriors import GPyTorchPosterior, Posterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from jaxtyping import Float
from linear_operator import to_linear_operator
from torch import Tensor

from npbench.errors import InputError
from npbench.interop.batches import as_tasks, expanded
from npbench.interop.moments import (
    Moments,
    is_joint,
    knows_functions,
    marginals_of,
    moments_of,
    moments_of_functions,
)
from npbench.interop.outputs import by_output
from npbench.models import NeuralProcess, State
from npbench.models.contracts import MergingProcess
from npbench.models.contracts.process import evaluating
from npbench.models.contracts.second_moment import SecondMomentProcess
from npbench.scaling import Scaling


class _Part(NamedTuple):
    """A process in the units of one output or of all, and its state of the observations."""

    process: NeuralProcess
    state: Any


class _Observations(NamedTuple):
    x: Float[Tensor, "*batch n d"]
    y: Float[Tensor, "*batch n m"]


class NeuralProcessModel(Model, FantasizeMixin):
    r"""A neural process and its state of the observations, as a model of BoTorch.

    Acquisition functions and `optimize_acqf` take it unchanged. `posterior` is normal: where the
    process predicts a mixture, with the mean and the covariance of the mixture. Which processes
    predict the q points of a batch jointly:

    - `SecondMomentJointNP`, and `SecondMomentNP` without correction, such as "gp-1d": the values
      of the function, to which `observation_noise=True` adds the noise;
    - `TNPND`, `LBANPND`, `CMANPAND`, `LocatedCMANPAND` and `TNPKRND`: by their joint heads.

    All others predict each point by itself: the q points are independent given the observations.
    But for the first kind, processes do not tell noise from what they do not know: their posterior
    always has both, whatever `observation_noise` says.

    A process of one output takes any number of outputs, each by itself. Computations are those of a
    copy of the process in float64, whose parameters are constants.

    Args:
        process: a trained model, such as `npbench.load("gp-1d")`.
        train_X: inputs of the observations, in any units.
        train_Y: their outputs, of which larger ones are better where BoTorch says nothing else.
        bounds: lower and upper bounds of the inputs, which become the range of the process's
            training; by default the range of `train_X`. Outputs are standardised. A process that
            has units of its own (`process.scaling`) keeps them, and takes no bounds.
        state: what the process has absorbed already, in place of `train_X` and `train_Y`.

    Raises:
        InputError: if the process is for other numbers of inputs or outputs, or classifies; or if
            there are neither observations nor a state.

    Example:
        >>> import npbench
        >>> X = torch.tensor([[10.0], [20.0], [30.0]], dtype=torch.float64)
        >>> Y = torch.sin(X / 5)
        >>> bounds = torch.tensor([[0.0], [40.0]], dtype=torch.float64)
        >>> model = NeuralProcessModel(npbench.load("gp-1d"), X, Y, bounds)
        >>> more = torch.tensor([[15.0]], dtype=torch.float64)
        >>> model = model.condition_on_observations(more, torch.sin(more / 5))
        >>> posterior = model.posterior(torch.rand(6, 2, 1, dtype=torch.float64) * 40)
        >>> posterior.mean.shape, posterior.rsample(torch.Size([8])).shape
        (torch.Size([6, 2, 1]), torch.Size([8, 6, 2, 1]))
    """

    # BoTorch asks for it before it fantasizes; the noise is the process's own.
    likelihood = None

    def __init__(
        self,
        process: NeuralProcess,
        train_X: Float[Tensor, "*batch n d"] | None = None,
        train_Y: Float[Tensor, "*batch n m"] | None = None,
        bounds: Float[Tensor, "2 d"] | None = None,
        *,
        state: State | None = None,
    ) -> None:
        super().__init__()
        self._guesses: _Observations | None = None
        if not isinstance(process, NeuralProcess):
            raise InputError(
                f"NeuralProcessModel takes a NeuralProcess, not {type(process).__name__}; "
                f'npbench.load("gp-1d") gives one'
            )
        if process.predicts_classes:
            raise InputError("a process that predicts classes has no posterior that is normal")
        process = copy.deepcopy(process).double().eval().requires_grad_(False)
        if state is not None:
            if train_X is not None or train_Y is not None or bounds is not None:
                raise InputError(
                    "a state takes the place of train_X, train_Y and bounds; absorb more by "
                    "condition_on_observations"
                )
            self._state_shape = torch.Size([state.batch_size] if state.batch_size > 1 else [])
            self._parts = [_Part(process, _finished(process, state))]
            return
        if train_X is None or train_Y is None:
            raise InputError("give train_X and train_Y, or a state of the process")
        _check_observations(train_X, train_Y)
        if train_X.shape[:-2] != train_Y.shape[:-2] or not train_X.shape[-2]:
            raise InputError(
                f"train_X {list(train_X.shape)} and train_Y {list(train_Y.shape)} must have the "
                f"same batch shape, and one observation or more"
            )
        x_names, y_names = process.columns
        if len(x_names) != train_X.shape[-1]:
            raise InputError(
                f"train_X has shape {list(train_X.shape)}; expected [..., n, {len(x_names)}], as "
                f"the process takes {len(x_names)} input(s)"
            )
        if process.scaling is not None:
            if bounds is not None:
                raise InputError("the process has units of its own, and takes no bounds")
            if len(y_names) != train_Y.shape[-1]:
                raise InputError(
                    f"train_Y has shape {list(train_Y.shape)}; expected the output(s) "
                    f"{', '.join(y_names)}, of which the units of the process are"
                )
        scaling = process.scaling or _units(process, train_X, train_Y, bounds)
        self._state_shape = train_X.shape[:-2]
        x, y = (as_tasks(z, self._state_shape) for z in (train_X, train_Y))
        self._parts = []
        for model, outputs in by_output(process, scaling):
            with evaluating(model):
                self._parts.append(_Part(model, model.condition(x, y[..., outputs])))

    @property
    def num_outputs(self) -> int:
        """The number m of outputs."""
        return sum(part.process.dim_y for part in self._parts)

    @property
    def num_inputs(self) -> int:
        """The number d of inputs."""
        return len(self._parts[0].process.columns[0])

    @property
    def batch_shape(self) -> torch.Size:
        """Of the observations: of fantasies, their number and the shape of their batch."""
        return self._state_shape if self._guesses is None else self._guesses.x.shape[:-2]

    @property
    def is_joint(self) -> bool:
        """Whether the q points of a batch are predicted jointly."""
        return all(is_joint(process) for process, _ in self._parts)

    @property
    def states(self) -> list[State]:
        """What is kept of the observations: one state, or one for each output."""
        return [part.state for part in self._parts]

    @property
    def nbytes(self) -> int:
        """Bytes that the states take."""
        return sum(state.nbytes for state in self.states)

    def posterior(
        self,
        X: Float[Tensor, "*batch q d"],
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """The normal distribution of the outputs at q points, a batch at a time.

        Args:
            X: inputs, whose batch shape broadcasts with that of the model. Gradients flow to them.
            output_indices: which outputs are wanted; by default all.
            observation_noise: whether observations are predicted, with their noise, where the
                process tells it from the function; or variances to add, which broadcast to
                [*batch, q, m].
            posterior_transform: of BoTorch, applied to the posterior.

        Raises:
            InputError: if X has another number of inputs than the model.
        """
        if X.ndim < 2 or X.shape[-1] != self.num_inputs:
            raise InputError(
                f"X has shape {list(X.shape)}; expected [..., q, {self.num_inputs}], as the model "
                f"has {self.num_inputs} input(s)"
            )
        moments = Moments.joined(
            [
                self._moments(part, outputs, X, observation_noise is True)
                for part, outputs in zip(self._parts, self._outputs())
            ]
        )
        if isinstance(observation_noise, Tensor):
            moments = moments.with_noise(observation_noise)
        if output_indices is not None:
            moments = moments.of_outputs(output_indices)
        posterior = GPyTorchPosterior(_normal(moments, like=X))
        return posterior if posterior_transform is None else posterior_transform(posterior, X=X)

    def condition_on_observations(
        self,
        X: Float[Tensor, "*batch n d"],
        Y: Float[Tensor, "*more n m"],
        noise: Tensor | None = None,
        **kwargs: Any,
    ) -> "NeuralProcessModel":
        """The model that has absorbed more observations: exactly that of all of them, in the units
        of the first. This one stays as it is.

        Args:
            X: inputs.
            Y: outputs. The batch shape of the new model is what those of X, Y and this model
                broadcast to.
            noise: must be None, as processes infer the noise.
            **kwargs: are not used.

        Raises:
            InputError: if X and Y do not fit the model or each other, or there is a noise.
        """
        if noise is not None:
            raise InputError("a neural process infers the noise, and takes no variances of it")
        _check_observations(X, Y)
        if (X.shape[-1], Y.shape[-1]) != (self.num_inputs, self.num_outputs):
            raise InputError(
                f"X {list(X.shape)} and Y {list(Y.shape)} have {X.shape[-1]} input(s) and "
                f"{Y.shape[-1]} output(s), and the model {self.num_inputs} and {self.num_outputs}"
            )
        batch = torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2], self.batch_shape)
        observations = self._guesses_and(X, Y, batch)
        model = copy.copy(self)
        if fantasize.on() and all(knows_functions(process) for process, _ in self._parts):
            model._guesses = observations
            return model
        x, y = (as_tasks(z, batch) for z in observations)
        model._parts = []
        for (process, state), outputs in zip(self._parts, self._outputs()):
            state = expanded(state, self._state_shape, batch)
            model._parts.append(_Part(process, process.update(state, x, y[..., outputs])))
        model._state_shape, model._guesses = batch, None
        return model

    def _outputs(self) -> Iterator[slice]:
        """Which outputs those of each part are."""
        first = 0
        for process, _ in self._parts:
            yield slice(first, first := first + process.dim_y)

    def _guesses_and(self, X: Tensor, Y: Tensor, batch: torch.Size) -> _Observations:
        """What was guessed until now and these observations, all of one batch shape."""
        sets = [(X, Y)] if self._guesses is None else [self._guesses, (X, Y)]
        x, y = (
            torch.cat([z.expand(*batch, *z.shape[-2:]) for z in values], dim=-2)
            for values in zip(*sets)
        )
        return _Observations(x, y)

    def _moments(
        self, part: _Part, outputs: slice, X: Float[Tensor, "*batch q d"], is_noisy: bool
    ) -> Moments:
        """Those of the outputs of one part."""
        process, state = part
        batch = torch.broadcast_shapes(X.shape[:-2], self.batch_shape)
        if state.batch_size == 1 and not is_joint(process):
            # All points are targets of one task.
            marginals = marginals_of(process, state, as_tasks(X, batch).reshape(1, -1, X.shape[-1]))
            shape = *batch, X.shape[-2], process.dim_y
            return Moments.independent(*(z.reshape(shape) for z in marginals))
        state, x = expanded(state, self._state_shape, batch), as_tasks(X, batch)
        if self._guesses is None:
            moments = moments_of(process, state, x, is_noisy)
        else:
            guesses = as_tasks(self._guesses.x, batch), as_tasks(self._guesses.y, batch)
            assert isinstance(process, SecondMomentProcess)
            functions = process.functions_given(state, guesses[0], guesses[1][..., outputs], x)
            moments = moments_of_functions(functions, process.scaling, is_noisy)
        return Moments(*(z.reshape(*batch, *z.shape[1:]) for z in moments))


def _normal(moments: Moments, like: Tensor) -> MultivariateNormal:
    """The normal distribution with these moments, in the type of a tensor."""
    mean = moments.mean.to(like)
    # A linear operator is factorised when samples are drawn, with the jitter that this takes.
    covariance = to_linear_operator(moments.covariance.to(like))
    if mean.shape[-1] == 1:
        return MultivariateNormal(mean[..., 0], covariance)
    return MultitaskMultivariateNormal(mean, covariance)


def _finished(process: NeuralProcess, state: State) -> State:
    """The state in float64, with all that queries need."""
    state = state.map(lambda z: z.double() if z.is_floating_point() else z)
    return process.merge(state) if isinstance(process, MergingProcess) else state


def _units(
    process: NeuralProcess, x: Tensor, y: Tensor, bounds: Float[Tensor, "2 d"] | None
) -> Scaling:
    """Units in which the bounds are the range of the process's training."""
    if bounds is None:
        bounds = torch.stack([x.flatten(0, -2).amin(dim=0), x.flatten(0, -2).amax(dim=0)])
    if bounds.shape != (2, x.shape[-1]) or not (bounds[0] < bounds[1]).all():
        raise InputError(
            f"bounds of shape {list(bounds.shape)} must be the lower and the upper bounds of "
            f"{x.shape[-1]} input(s), the lower ones below the upper ones"
        )
    ends, outputs = (z.detach().double().cpu().flatten(0, -2).numpy() for z in (bounds, y))
    x_names, y_names = ([f"{z}{i}" for i in range(of.shape[-1])] for z, of in (("x", x), ("y", y)))
    return Scaling.fit(ends, outputs, x_names, y_names, ends=process.watch.input_ends())


def _check_observations(X: Tensor, Y: Tensor) -> None:
    if X.ndim < 2 or Y.ndim < 2 or X.shape[-2] != Y.shape[-2]:
        raise InputError(
            f"X has shape {list(X.shape)} and Y {list(Y.shape)}; expected [..., n, d] and "
            f"[..., n, m] with the same number n of observations"
        )
