import re

import pandas as pd
import pytest
import torch
from torch import Tensor

from npbench import EventSequences
from npbench.models import CMHP, THP, Luna
from npbench.profiling import PHASES, profile, profile_figure


def thp(**arguments: float) -> THP:
    return THP(3, dim_model=8, num_layers=1, dim_feedforward=8, num_components=2, **arguments)


class Recorded(THP):
    """Remembers what it was given, and in which mode."""

    calls: dict[str, tuple]

    def _note(self, phase: str, times: Tensor) -> None:
        self.calls[phase] = (times, self.training, torch.is_grad_enabled())

    def _condition(self, times: Tensor, marks: Tensor, mask: Tensor) -> object:
        self._note("condition", times)
        return super()._condition(times, marks, mask)

    def _history(self, state: object) -> Tensor:
        self._note("query", state.times)
        return super()._history(state)

    def _update(self, state: object, time: Tensor, mark: Tensor) -> object:
        self._note("update", torch.cat([state.times, time[:, None]], dim=-1))
        return super()._update(state, time, mark)

    def loss(self, sequences: EventSequences) -> Tensor:
        self._note("train", sequences.times)
        return super().loss(sequences)


def test_the_phases_of_an_event_model_are_those_of_a_history_of_so_many_events() -> None:
    model = Recorded(3, dim_model=8, num_layers=1)
    model.calls = {}
    model.set_time_scale(1000.0, 6.0, 1.0)
    rows = list(profile(model, [400]))
    assert [row["phase"] for row in rows] == list(PHASES)
    assert all(row["num_context"] == 400 and row["seconds"] > 0 for row in rows)
    times, modes = {}, {}
    for phase, (of, *mode) in model.calls.items():
        times[phase], modes[phase] = of, mode
    assert {phase: of.shape[1] for phase, of in times.items()} == {
        "condition": 400, "query": 400, "update": 401, "train": 400,
    }  # fmt: skip
    assert modes.pop("train") == [True, True]
    assert all(mode == [False, False] for mode in modes.values())
    # One sequence, in the model's units.
    tau = times["update"].diff(dim=-1)
    assert torch.equal(times["update"][:, :-1], times["train"])
    assert (tau >= 0).all()
    assert float(tau.mean()) == pytest.approx(1000.0, rel=0.1)


@pytest.mark.slow
def test_what_absorbs_a_history_by_storing_it_grows_with_it() -> None:
    table = pd.DataFrame(profile(thp(), [100, 1000]))
    peaks = table.pivot(index="phase", columns="num_context", values="peak_bytes")
    # A time, a mark and a mask of each event; a score of each two.
    assert peaks.loc["update", 1000] - peaks.loc["update", 100] == 900 * (8 + 8 + 1)
    assert peaks.loc["query", 1000] > 50 * peaks.loc["query", 100]
    assert peaks.loc["train", 1000] > peaks.loc["query", 1000]


def test_what_keeps_a_history_at_constant_size_takes_constant_memory() -> None:
    model = CMHP(3, dim_model=8, num_layers=1, num_heads=2, dim_feedforward=8, num_components=2)
    table = pd.DataFrame(profile(model, [1, 100, 1000], phases=["query", "update"]))
    for _, peaks in table.groupby("phase")["peak_bytes"]:
        assert peaks.nunique() == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.slow
def test_profiling_leaves_an_event_model_and_the_random_state_alone(training: bool) -> None:
    model = thp(dropout=0.3).train(training)
    model.loss(EventSequences(torch.arange(5.0)[None], torch.arange(5)[None] % 3)).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = torch.random.get_rng_state()
    assert len(list(profile(model, [1, 20]))) == 8
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training == model.layers.training == training
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.slow
def test_the_figure_has_a_line_for_each_model_and_a_column_for_each_phase() -> None:
    profiles = {name: pd.DataFrame(profile(thp(), [10, 20], phases=["query", "update"]))
                for name in ("one", "two")}  # fmt: skip
    memory = profile_figure(profiles).axes[:2]
    assert [axis.get_title() for axis in memory] == ["query", "update"]
    for axis in memory:
        assert [line.get_label() for line in axis.lines] == ["one", "two"]
        assert all(list(line.get_xdata()) == [10, 20] for line in axis.lines)


def test_one_size_is_a_table() -> None:
    profiles = {name: pd.DataFrame(profile(thp(), [10], phases=["query", "update"]))
                for name in ("CMHP", "THP")}  # fmt: skip
    (axis,) = profile_figure(profiles).axes
    (table,) = axis.tables
    texts = [cell.get_text().get_text() for _, cell in sorted(table.get_celld().items())]
    assert texts[:2] == ["query", "update"]
    assert [texts[2], texts[5]] == ["CMHP", "THP"]
    assert all(re.fullmatch(r"[\d.]+ MiB, [\d.]+ m?s", texts[i]) for i in (3, 4, 6, 7))
    assert "10 points or events" in axis.get_title()


def test_a_classifier_has_the_phases_query_and_train() -> None:
    model = Luna(9, 3, dim_model=8, num_heads=2, num_layers=1, num_memory=2, dim_feedforward=8)
    rows = list(profile(model, [10, 200]))
    assert [(row["num_context"], row["phase"]) for row in rows] == [
        (10, "query"), (10, "train"), (200, "query"), (200, "train")
    ]  # fmt: skip
    assert all(row["peak_bytes"] > 0 for row in rows)
    assert all(parameter.grad is None for parameter in model.parameters())
