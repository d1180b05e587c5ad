"""What data modules offer to training and callbacks."""

import lightning as L
import pandas as pd
import pytest
import torch
from helpers.event_files import long_table, random_events
from helpers.image_files import write_emnist

from datamodules import (
    EMNISTDataModule,
    EventSequenceDataModule,
    GPDataModule,
    HawkesProcess,
    ListOpsDataModule,
    SIRDataModule,
    SyntheticEventDataModule,
    TableDataModule,
)
from npbench import EventSequences, Task, offers

ALL = {name for name in vars(offers) if name.startswith("Offers")}
OFFERS_OF = {
    "gp": {"OffersFigureTask"},
    "images": {"OffersCompletionTask"},
    "table": {"OffersFigureTask", "OffersNamedPredictions", "OffersScaling"},
    "synthetic": {
        "OffersFigureSequences", "OffersIntervalStatistics", "OffersNumMarks", "OffersProcess",
    },
    "files": {
        "OffersFigureSequences", "OffersIntervalStatistics", "OffersNamedPredictions",
        "OffersNumMarks", "OffersTimeName", "OffersVocabulary",
    },
    "epidemics": {"OffersClassNames", "OffersFigureTask"},
    "expressions": {"OffersClasses", "OffersNamedPredictions"},
}  # fmt: skip


@pytest.fixture(scope="module")
def data_modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, L.LightningDataModule]:
    folder = tmp_path_factory.mktemp("data")
    write_emnist(folder)
    long_table(random_events(30)).to_csv(folder / "events.csv", index=False)
    process = HawkesProcess([0.2, 0.1], [[0.3, 0.2], [0.1, 0.4]])
    return {
        "gp": GPDataModule(),
        "images": EMNISTDataModule(folder, num_val_tasks=4),
        "table": TableDataModule(pd.DataFrame({"x": range(100), "y": range(100)}), ["x"], ["y"]),
        "synthetic": SyntheticEventDataModule(process, num_train=20, num_val=5, num_test=5),
        "files": EventSequenceDataModule(folder / "events.csv"),
        "epidemics": SIRDataModule(size=8, min_context=2, max_context=4, num_targets=8),
        "expressions": ListOpsDataModule(cache_dir=str(folder)),
    }


@pytest.mark.parametrize("kind", list(OFFERS_OF))
def test_a_data_module_makes_these_offers_and_no_others(
    kind: str, data_modules: dict[str, L.LightningDataModule]
) -> None:
    made = {name for name in ALL if isinstance(data_modules[kind], getattr(offers, name))}
    assert made == OFFERS_OF[kind]


def test_every_offer_is_made_by_some_data_module() -> None:
    assert set().union(*OFFERS_OF.values()) == ALL


def test_no_data_module_offers_nothing() -> None:
    """A run without one goes on: `trainer.datamodule` is None then."""
    assert not any(isinstance(None, getattr(offers, name)) for name in ALL)


def test_offers_give_what_they_say(data_modules: dict[str, L.LightningDataModule]) -> None:
    task = data_modules["gp"].figure_task(1)
    assert isinstance(task, Task)
    assert (task.xt[0, :, 0].diff() > 0).all()
    images = data_modules["images"]
    completion = images.completion_task(0, 5)
    assert completion.xc.shape[1] + completion.xt.shape[1] == 28 * 28
    for kind in ("synthetic", "files"):
        sequences = data_modules[kind].figure_sequences(test=True)
        assert isinstance(sequences, EventSequences)
        statistics = data_modules[kind].interval_statistics
        assert all(
            isinstance(value, float)
            for value in (statistics.mean, statistics.log_mean, statistics.log_std)
        )
    process = data_modules["synthetic"].process
    assert isinstance(process, offers.KnownProcess)
    sequences = data_modules["synthetic"].figure_sequences(test=True)
    assert torch.isfinite(process.compensator(sequences)).all()
    assert data_modules["files"].num_marks == len(data_modules["files"].vocabulary)
