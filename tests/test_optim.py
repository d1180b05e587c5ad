from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from npbench.errors import InputError
from npbench.optim import MuonAdam, orthogonalise, scale_rates

SHAPES = pytest.mark.parametrize(
    ("rows", "cols"), [(8, 24), (24, 8), (16, 16), (1, 5)], ids=["wide", "tall", "square", "row"]
)


def network() -> nn.Module:
    """Matrices of two shapes, vectors, and a tensor of three dimensions."""
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6))
    module.scale = nn.Parameter(torch.ones(2, 1, 1))
    return module


def train(module: nn.Module, optimizer: MuonAdam, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(10, 4, generator=generator)
        optimizer.zero_grad()
        (module(x) * module.scale).square().mean().backward()
        optimizer.step()


def with_gradient(value: Tensor, gradient: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(value.clone())
    parameter.grad = gradient.clone()
    return parameter


def test_matrices_go_to_muon_and_the_rest_to_adam() -> None:
    module = network()
    muon, adam = MuonAdam(module.parameters(), lr=0.02, adam_lr=1e-3).param_groups
    assert all(p.ndim == 2 for p in muon["params"])
    assert all(p.ndim != 2 for p in adam["params"])
    assert len(muon["params"]) == 3
    assert len(adam["params"]) == 6
    assert (muon["lr"], adam["lr"]) == (0.02, 1e-3)


@pytest.mark.parametrize("shape", [(3, 2), (3,)])
def test_one_kind_of_parameter_is_enough(shape: tuple[int, ...]) -> None:
    start = torch.ones(shape)
    parameter = with_gradient(start, torch.ones(shape))
    MuonAdam([parameter]).step()
    assert (parameter < start).any()


def random_matrices(rows: int, cols: int) -> Tensor:
    """With singular values from 1 down to 0.02."""
    left, values, right = torch.linalg.svd(torch.randn(5, rows, cols), full_matrices=False)
    values = torch.logspace(0.0, -1.7, values.shape[-1])
    return left * values @ right


@SHAPES
def test_orthogonalise_sets_the_singular_values_to_about_one(rows: int, cols: int) -> None:
    values = torch.linalg.svdvals(orthogonalise(random_matrices(rows, cols)))
    assert values.min() > 0.6
    assert values.max() < 1.3


@SHAPES
def test_orthogonalise_keeps_the_singular_vectors(rows: int, cols: int) -> None:
    matrices = random_matrices(rows, cols)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ orthogonalise(matrices) @ right.mT
    off_diagonal = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-4
    assert (inner.diagonal(dim1=-2, dim2=-1) > 0.6).all()


@SHAPES
def test_orthogonalising_a_batch_equals_one_by_one(rows: int, cols: int) -> None:
    matrices = torch.randn(5, rows, cols)
    one_by_one = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    assert_close(orthogonalise(matrices), one_by_one, 1e-4)


def test_orthogonalise_ignores_the_scale_and_keeps_zero_and_the_dtype() -> None:
    matrices = torch.randn(2, 6, 9)
    assert_close(orthogonalise(1e3 * matrices), orthogonalise(matrices), 1e-4)
    assert not orthogonalise(torch.zeros(1, 6, 9)).any()
    assert orthogonalise(matrices.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5,)])
def test_one_step_on_a_quadratic_decreases_it(shape: tuple[int, ...]) -> None:
    goal, parameter = torch.randn(shape), nn.Parameter(torch.zeros(shape))
    optimizer = MuonAdam([parameter], lr=0.02, adam_lr=0.02)

    def loss() -> Tensor:
        return (parameter - goal).square().sum()

    before = loss()
    before.backward()
    optimizer.step()
    assert loss() < before


@pytest.mark.parametrize(("rows", "cols", "scale"), [(8, 2, 2.0), (2, 8, 1.0)])
def test_a_muon_step_is_its_formula(rows: int, cols: int, scale: float) -> None:
    start, first, second = torch.randn(3, rows, cols)
    parameter = with_gradient(start, first)
    optimizer = MuonAdam([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    optimizer.step()
    direction = orthogonalise((first + 0.9 * first)[None])[0]
    expected = 0.95 * start - 0.1 * scale * direction
    assert_close(parameter.detach(), expected)

    parameter.grad = second
    optimizer.step()
    momentum = 0.9 * first + second
    direction = orthogonalise((second + 0.9 * momentum)[None])[0]
    assert_close(parameter.detach(), 0.95 * expected - 0.1 * scale * direction)


def test_vectors_take_the_steps_of_adam_without_weight_decay() -> None:
    ours, theirs = (nn.Parameter(torch.arange(4.0)) for _ in range(2))
    settings = {"betas": (0.8, 0.95), "eps": 1e-6}
    optimizers = [
        MuonAdam([ours], adam_lr=0.1, weight_decay=0.5, **settings),
        torch.optim.Adam([theirs], lr=0.1, **settings),
    ]
    for _ in range(4):
        gradient = torch.randn(4)
        for parameter, optimizer in zip((ours, theirs), optimizers):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert_close(ours, theirs, 1e-7)


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    frozen, moving = nn.Parameter(torch.ones(2, 2)), with_gradient(torch.ones(2, 2), torch.eye(2))
    MuonAdam([frozen, moving]).step()
    assert torch.equal(frozen, torch.ones(2, 2))
    assert not torch.equal(moving, torch.ones(2, 2))


def test_a_run_resumed_from_a_state_dict_continues_bit_for_bit(tmp_path: Path) -> None:
    straight = network()
    optimizer = MuonAdam(straight.parameters())
    train(straight, optimizer, range(3))

    resumed = deepcopy(straight)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = MuonAdam(resumed.parameters(), lr=123.0, adam_lr=123.0)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))

    train(straight, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    for mine, theirs in zip(resumed.parameters(), straight.parameters()):
        assert torch.equal(mine, theirs)


def test_a_schedule_scales_both_learning_rates() -> None:
    module = network()
    optimizer = MuonAdam(module.parameters(), lr=0.02, adam_lr=1e-3)
    schedule = CosineAnnealingLR(optimizer, T_max=4)
    for fraction in (0.85355339, 0.5, 0.14644661, 0.0):
        train(module, optimizer, range(1))
        schedule.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.02 * fraction, 1e-3 * fraction], abs=1e-9)
    before = [p.clone() for p in module.parameters()]
    train(module, optimizer, range(1))
    assert all(torch.equal(now, then) for now, then in zip(module.parameters(), before))


def test_a_closure_gives_the_loss() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = MuonAdam([parameter])

    def closure() -> Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0
    assert not torch.equal(parameter, torch.ones(2, 3))


@pytest.mark.parametrize(
    "make",
    [lambda p: MuonAdam(p, lr=-0.1), lambda p: MuonAdam(p, adam_lr=-0.1)],
    ids=["lr", "adam_lr"],
)
def test_a_negative_learning_rate_is_refused(make: Callable) -> None:
    with pytest.raises(ValueError, match=r"lr=-0.1 must not be negative"):
        make([nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize("make", [torch.optim.SGD, MuonAdam], ids=lambda make: make.__name__)
def test_parts_have_learning_rates_of_their_own(make: Callable) -> None:
    module = network()
    optimizer = make(module.parameters(), lr=0.1)
    if make is MuonAdam:
        optimizer.param_groups[1]["lr"] = 0.1
    scale_rates(optimizer, module, {"0": 0.5, "2": 0.0, "2.bias": 2.0})
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"0": 0.05, "2.weight": 0.0, "2.bias": 0.2}
    for name, parameter in module.named_parameters():
        factor = expected.get(name, expected.get(name.split(".")[0], 0.1))
        assert rates[id(parameter)] == pytest.approx(factor), name
    before = deepcopy(module.state_dict())
    train(module, optimizer, range(2))
    unchanged = {n for n, value in module.state_dict().items() if torch.equal(value, before[n])}
    assert unchanged == {"2.weight"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 9


def test_a_part_that_is_not_the_model_s_has_no_rate() -> None:
    module = network()
    optimizer = MuonAdam(module.parameters())
    with pytest.raises(InputError, match="lr_factors names head, and the parts of the model are 0"):
        scale_rates(optimizer, module, {"head": 0.1})
    with pytest.raises(InputError, match=r"lr_factors has -0.1 for 0; a factor is 0 or more"):
        scale_rates(optimizer, module, {"0": -0.1})
