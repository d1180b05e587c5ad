"""Muon for matrices and Adam for everything else, as one optimiser."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adam import adam

from npbench.errors import InputError


class MuonAdam(torch.optim.Optimizer):
    r"""Muon on the weight matrices, Adam on biases, norms and other vectors.

    Muon steps along the momentum with all its singular values set to about 1,

    $$M_t = \mu M_{t-1} + G_t, \qquad
      W_t = W_{t-1} - \eta \sqrt{\max(1, r/c)}\; \mathrm{NS}(G_t + \mu M_t)$$

    for a matrix of r rows and c columns, where NS is a Newton–Schulz iteration. Matrices of one
    shape go through it as one batch, in float32, which on a CPU is several times faster than one by
    one.

    Args:
        params: parameters; those with two dimensions get Muon.
        lr: learning rate η of Muon.
        adam_lr: learning rate of Adam.
        momentum: μ.
        betas: Adam's decay rates.
        eps: Adam's ε.
        weight_decay: decoupled weight decay of the matrices, times the learning rate.

    Source: Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024.

    Example:
        >>> optimizer = MuonAdam(torch.nn.Linear(4, 8).parameters(), lr=0.02, adam_lr=1e-3)
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [1, 1]
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        adam_lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, rate in (("lr", lr), ("adam_lr", adam_lr)):
            if rate < 0:
                raise InputError(f"{name}={rate} must not be negative")
        params = list(params)
        groups = [
            {"params": [p for p in params if p.ndim == 2], "lr": lr, "muon": True},
            {"params": [p for p in params if p.ndim != 2], "lr": adam_lr, "muon": False},
        ]
        defaults = {
            "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay
        }  # fmt: skip
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["muon"] else self._adam)(params, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in params:
            by_shape[tuple(p.shape)].append(p)
        for (rows, cols), matrices in by_shape.items():
            for p in matrices:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(p.grad)
            nesterov = torch.stack(
                [p.grad + group["momentum"] * self.state[p]["momentum"] for p in matrices]
            )
            scale = max(1.0, rows / cols) ** 0.5
            for p, direction in zip(matrices, orthogonalise(nesterov)):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-group["lr"] * scale)

    def _adam(self, params: list[Tensor], group: dict) -> None:
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)

        def states(name: str) -> list[Tensor]:
            return [self.state[p][name] for p in params]

        adam(
            params,
            [p.grad for p in params],
            states("exp_avg"),
            states("exp_avg_sq"),
            [],
            states("step"),
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


def scale_rates(
    optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]
) -> None:
    """Multiply the learning rates of parts of a model, each of which becomes a group by itself.

    Of a parameter that is in several of the parts the longest name counts.

    Args:
        optimizer: of the model's parameters, before a scheduler knows its groups.
        model: has the parts.
        factors: by the name of a part, such as {"blocks": 0.1}.

    Raises:
        InputError: if the model has no such part, or a factor is below 0.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
        >>> optimizer = MuonAdam(model.parameters(), lr=0.02, adam_lr=0.01)
        >>> scale_rates(optimizer, model, {"0": 0.1})
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.02, 0.01, 0.002, 0.001]
    """
    factor_of = {}
    for part, factor in sorted(factors.items(), key=lambda item: len(item[0])):
        parameters = [
            p for name, p in model.named_parameters() if f"{name}.".startswith(f"{part}.")
        ]
        if not parameters:
            parts = ", ".join(name for name, _ in model.named_children())
            raise InputError(f"lr_factors names {part}, and the parts of the model are {parts}")
        if not 0 <= factor < float("inf"):
            raise InputError(f"lr_factors has {factor} for {part}; a factor is 0 or more")
        factor_of |= dict.fromkeys(parameters, factor)
    for group in list(optimizer.param_groups):
        by_factor: dict[float, list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            by_factor[factor_of.get(p, 1.0)].append(p)
        first, *others = sorted(by_factor, reverse=True)
        rate = group["lr"]
        group["params"], group["lr"] = by_factor[first], rate * first
        for factor in others:
            optimizer.add_param_group({**group, "params": by_factor[factor], "lr": rate * factor})


def orthogonalise(
    matrices: Float[Tensor, "batch rows cols"], num_steps: int = 5
) -> Float[Tensor, "batch rows cols"]:
    r"""$U V^\top$ of each matrix $U \Sigma V^\top$, roughly.

    Singular values above about 0.002 of the matrix's norm end in [0.7, 1.2], smaller ones below.
    Newton–Schulz with Jordan's quintic, $X \leftarrow a X + (b\, XX^\top + c\, (XX^\top)^2) X$.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices.float() if wide else matrices.float().mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)
