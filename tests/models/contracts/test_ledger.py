"""A state with a ledger forgets what it has absorbed, and nothing else."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same_prediction, few_examples, random_points, small, small_cmanp
from hypothesis import given
from hypothesis import strategies as st

from npbench.errors import InputError, NotAbsorbed
from npbench.models import CMANP, CNP, NP, CMANPState, NeuralProcess
from npbench.models.contracts import Points
from npbench.models.contracts.ledger import Ledger

pytestmark = pytest.mark.usefixtures("as_a_user")

FORGETTING = ["CMANP", "CMANPAND", "SecondMomentNP", "SecondMomentJointNP", "FourierMomentNP"]


def model() -> CMANP:
    return small_cmanp(dim_x=2, dtype=torch.float64)


def points(number: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return random_points(1, number, dim_x=2, dtype=torch.float64)


@given(
    absorbed=st.lists(st.integers(0, 5), max_size=12),
    forgotten=st.lists(st.integers(0, 5), max_size=12),
)
@few_examples
def test_a_ledger_is_a_set_that_counts(absorbed: list[int], forgotten: list[int]) -> None:
    def of(values: list[int]) -> Points:
        x = torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1)
        return Points(x, -x)

    ledger = Ledger.of(of(absorbed))
    if too_many := Counter(forgotten) - Counter(absorbed):
        with pytest.raises(NotAbsorbed) as caught:
            ledger.without(of(forgotten))
        assert forgotten[caught.value.point] in too_many
        assert caught.value.number == too_many.total()
        return
    left = ledger.without(of(forgotten))
    expected = Ledger.of(of(list((Counter(absorbed) - Counter(forgotten)).elements())))
    assert sorted(map(bytes, left.digests)) == sorted(map(bytes, expected.digests))


@pytest.mark.parametrize("name", FORGETTING)
def test_what_was_absorbed_is_forgotten_once(name: str) -> None:
    network = small(name, dim_y=1)
    (x, y), new = ((x[..., : network.dim_x], y) for x, y in (points(20), points(5, seed=1)))
    state = network.condition(x, y, ledger=True)
    plain = network.condition(x, y)
    assert_same_prediction(network.query(state, x), network.query(plain, x), 0.0)
    assert plain.ledger is None
    state = network.update(state, *new)
    left = network.forget(state, x[:, 3:6], y[:, 3:6])
    assert len(left.ledger) == 22
    with pytest.raises(NotAbsorbed, match=r"^point 0, one of 2, was never absorbed by this state"):
        network.forget(left, x[:, [4, 5, 7]], y[:, [4, 5, 7]])
    assert len(network.forget(left, *new).ledger) == 17


def test_a_point_that_was_never_absorbed_is_refused() -> None:
    """As one is that differs in its last digit, or has the output of another."""
    network, (x, y) = model(), points(20)
    state = network.condition(x, y, ledger=True)
    for wrong in (points(1, seed=1), (x[:, 3:4] * (1 + 1e-15), y[:, 3:4]), (x[:, :1], y[:, 1:2])):
        with pytest.raises(NotAbsorbed):
            network.forget(state, *wrong)


def test_all_ways_into_a_state_are_in_its_ledger() -> None:
    network, (x, y) = model(), points(30)
    mask = torch.arange(30)[None] != 2
    chunks = [(x[:, i : i + 7], y[:, i : i + 7], mask[:, i : i + 7]) for i in range(0, 30, 7)]
    whole = network.condition(x, y, mask, ledger=True)
    halves = [
        network.condition(x[:, half], y[:, half], mask[:, half], ledger=True)
        for half in (slice(12), slice(12, 30))
    ]
    grown = network.condition(x[:, :0], y[:, :0], ledger=True)
    for chunk in chunks:
        grown = network.update(grown, *chunk)
    for state in (
        whole, network.condition(chunks, ledger=True), network.condition(x, y, mask, 4, True),
        halves[0].merge(halves[1]), network.merge(*halves), grown, whole.to("cpu").detach(),
    ):  # fmt: skip
        assert len(state.ledger) == 29
        assert len(state.ledger.without(Points(x, y, mask))) == 0
    with pytest.raises(NotAbsorbed, match=r"^point 2, one of 1,"):
        network.forget(whole, x[:, :4], y[:, :4])
    without = network.condition(x, y)
    assert network.merge(whole, without).ledger is None
    assert without.merge(whole).ledger is None
    assert whole.repeat(2).ledger is None


def test_zero_has_no_sign_in_a_ledger() -> None:
    network, (x, y) = model(), points(5)
    y[0, 0] = 0.0
    state = network.condition(x, y, ledger=True)
    assert len(network.forget(state, x[:, :1], -y[:, :1]).ledger) == 4


def test_a_ledger_is_of_one_task() -> None:
    with pytest.raises(InputError, match="a ledger is of one task, and these points are of 2"):
        model().condition(*random_points(2, 5, dim_x=2, dtype=torch.float64), ledger=True)


def test_a_file_keeps_the_ledger_where_asked(tmp_path: Path) -> None:
    network, (x, y) = model(), points(1000)
    state = network.condition(x, y, ledger=True)
    state.save(tmp_path / "with", network, ledger=True)
    state.save(tmp_path / "without", network)
    network.condition(x, y).save(tmp_path / "plain", network)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["without"] == sizes["plain"]
    assert sizes["with"] - sizes["plain"] < 16 * 1000 + 200
    assert CMANPState.load(tmp_path / "without", network).ledger is None
    loaded = CMANPState.load(tmp_path / "with", network)
    assert np.array_equal(loaded.ledger.digests, state.ledger.digests)
    assert loaded.nbytes == state.nbytes
    with pytest.raises(InputError, match="has no ledger, which only condition"):
        network.condition(x, y).save(tmp_path / "none", network, ledger=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", [CNP, NP])
def test_all_states_that_merge_are_kept_in_files(kind: type[NeuralProcess], tmp_path: Path) -> None:
    """Those of CNP and NP as well, by the same contract."""
    network, (x, y) = small(kind.__name__, 2, 1), points(20)
    whole = network.condition(x, y, ledger=True)
    whole.save(tmp_path / "state", network, ledger=True)
    loaded = network.state_class.load(tmp_path / "state", network)
    parts = [network.condition(x[:, part], y[:, part]) for part in (slice(7), slice(7, 20))]
    merged = network.merge(*parts)
    assert len(loaded.ledger) == 20
    for mine, theirs in zip(merged.tensors(), loaded.tensors(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="merge takes one state or more"):
        network.merge()
    other = small("CMANP", 2, 1)
    with pytest.raises(InputError, match="of another model, or of other weights"):
        network.state_class.load(tmp_path / "state", other)
