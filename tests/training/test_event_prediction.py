"""EventPrediction trains, measures and reloads any event model."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import GPDataModule, HawkesProcess, SyntheticEventDataModule
from npbench import EventSequences
from npbench.callbacks import BestCheckpoint, PredictionWriter
from npbench.metrics import EventMetrics
from npbench.models import CNP, THP
from npbench.training import EventPrediction, MetaRegression

UNITS = (3.0, 0.5, 1.5)


def small_model(**arguments: object) -> THP:
    sizes = {"dim_model": 8, "dim_feedforward": 8, "num_layers": 1, "num_components": 3}
    return THP(**({"num_marks": 2} | sizes | arguments))


def trainer(path: Path, **options: object) -> L.Trainer:
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(accelerator="cpu", default_root_dir=path, **(quiet | options))


class Events(L.LightningDataModule):
    """Sequences of 2, 3, …, 6 events, padded, each loader's in batches of any size."""

    num_marks = 2
    interval_statistics = SimpleNamespace(mean=UNITS[0], log_mean=UNITS[1], log_std=UNITS[2])

    def __init__(self, batch_size: int = 5, **fields: object) -> None:
        super().__init__()
        self.batch_size = batch_size
        vars(self).update(fields)

    def sequences(self) -> EventSequences:
        generator = torch.Generator().manual_seed(1)
        times = torch.rand(5, 6, generator=generator, dtype=torch.float64).mul(4).cumsum(-1)
        marks = torch.randint(2, (5, 6), generator=generator)
        mask = torch.arange(6) < torch.arange(2, 7)[:, None]
        exact = torch.randn(5, 5, generator=generator).masked_fill(~mask[:, 1:], 0.0)
        return EventSequences(times, marks, mask, torch.full((5,), 30.0).double(), exact)

    def train_dataloader(self) -> DataLoader:
        starts = range(0, 5, self.batch_size)
        batches = [self.sequences().map(lambda z, i=i: z[i : i + self.batch_size]) for i in starts]
        return DataLoader(batches, batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def fit(module: EventPrediction, path: Path, data: object = None, **options: object) -> L.Trainer:
    run = trainer(path, **({"max_steps": 1, "limit_val_batches": 0} | options))
    run.fit(module, Events() if data is None else data)
    return run


def units(module: EventPrediction) -> tuple[float, ...]:
    model = module.model
    return tuple(float(z) for z in (model.time_scale, model.log_mean, model.log_std))


def test_training_closes_the_gap_to_the_process(tmp_path: Path) -> None:
    process = HawkesProcess([0.2, 0.1], [[0.4, 0.2], [0.3, 0.4]])
    data = SyntheticEventDataModule(process, num_events=20, num_train=64, num_val=64, num_test=1)
    module = EventPrediction(small_model())
    run = trainer(tmp_path, enable_checkpointing=False, max_epochs=80, check_val_every_n_epoch=80)
    (before,) = run.validate(module, data, verbose=False)
    run.fit(module, data)
    assert run.callback_metrics["val/gap"] < 0.5 * before["val/gap"]


def test_validation_logs_what_the_model_says_of_the_data(tmp_path: Path) -> None:
    module = EventPrediction(small_model())
    run = fit(module, tmp_path, limit_val_batches=1.0)
    logged = run.callback_metrics
    assert run.progress_bar_metrics.keys() == {"train/loss", "val/nll"}
    sequences = Events().sequences()
    with torch.no_grad():
        evaluation = module.model.evaluate(sequences)
        total = evaluation.log_prob.sum() + evaluation.log_survival.sum()
        expected = EventMetrics().update(sequences, evaluation)
    torch.testing.assert_close(logged["val/nll"].float(), -total / 15)
    logged = {name: float(value) for name, value in logged.items()}
    assert logged.keys() == {"train/loss", *(f"val/{name}" for name in expected)}
    for name, metric in expected.items():
        assert logged[f"val/{name}"] == pytest.approx(float(metric.compute()), rel=1e-6)


def test_the_loss_is_that_of_the_model(tmp_path: Path) -> None:
    module = EventPrediction(small_model())
    module.model.set_time_scale(*UNITS)
    expected = module.model.loss(Events().sequences()).detach()
    torch.testing.assert_close(fit(module, tmp_path).callback_metrics["train/loss"], expected)


def test_results_do_not_depend_on_the_evaluation_batch_size(tmp_path: Path) -> None:
    module, run = EventPrediction(small_model()), trainer(tmp_path)
    results = [run.test(module, Events(size), verbose=False) for size in (1, 2, 5)]
    for other in results[1:]:
        assert other[0] == pytest.approx(results[0][0], rel=1e-5)


def test_several_test_loaders_are_measured_each_for_itself(tmp_path: Path) -> None:
    class Two(Events):
        def test_dataloader(self) -> dict[str, DataLoader]:
            return {"short": self.val_dataloader(), "all": Events().val_dataloader()}

    run = trainer(tmp_path, limit_test_batches=1)
    short, whole = run.test(EventPrediction(small_model()), Two(batch_size=1), verbose=False)
    assert short["test/nll/short"] != whole["test/nll/all"]


def test_training_from_scratch_takes_the_units_of_the_data(tmp_path: Path) -> None:
    module = EventPrediction(small_model())
    trainer(tmp_path).test(module, Events(), verbose=False)
    assert units(module) == (1.0, 0.0, 1.0)
    fit(module, tmp_path)
    assert units(module) == UNITS


OTHER_UNITS = SimpleNamespace(mean=7.0, log_mean=-2.0, log_std=0.25)


def test_training_goes_on_in_the_units_that_the_model_has(tmp_path: Path) -> None:
    """Resumed, loaded and fine-tuned on other data, or set by hand."""
    module, other = EventPrediction(small_model()), Events(interval_statistics=OTHER_UNITS)
    fit(module, tmp_path).save_checkpoint(tmp_path / "model.ckpt")
    resumed = EventPrediction(small_model())
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(
        resumed, other, ckpt_path=tmp_path / "model.ckpt", weights_only=True
    )
    assert units(resumed) == UNITS
    loaded = EventPrediction.load_from_checkpoint(tmp_path / "model.ckpt")
    fit(loaded, tmp_path, other)
    assert units(loaded) == UNITS
    by_hand = EventPrediction(small_model())
    by_hand.model.set_time_scale(1.0, 0.0, 2.0)
    fit(by_hand, tmp_path)
    assert units(by_hand) == (1.0, 0.0, 2.0)


def test_a_checkpoint_is_tested_in_its_own_units(tmp_path: Path) -> None:
    module = EventPrediction(small_model())
    run = fit(module, tmp_path, limit_val_batches=1.0)
    run.save_checkpoint(tmp_path / "model.ckpt")
    tested, other = EventPrediction(small_model()), Events(interval_statistics=OTHER_UNITS)
    (results,) = trainer(tmp_path).test(
        tested, other, ckpt_path=tmp_path / "model.ckpt", weights_only=True, verbose=False
    )
    assert results["test/nll"] == float(run.callback_metrics["val/nll"])


def test_loaders_without_a_data_module_will_do(tmp_path: Path) -> None:
    module, data = EventPrediction(small_model()), Events()
    trainer(tmp_path, max_steps=1).fit(module, data.train_dataloader(), data.val_dataloader())
    assert units(module) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_wrong_number_of_marks_is_refused_before_the_first_batch(
    stage: str, tmp_path: Path
) -> None:
    module = EventPrediction(small_model(num_marks=3))
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0 if stage == "fit" else 1.0)
    message = "the data has 2 marks, the model num_marks=3; set the model's num_marks to 2"
    with pytest.raises(ValueError, match=message):
        getattr(run, stage)(module, Events())


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_data_for_another_module_are_refused(stage: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0 if stage == "fit" else 1.0)
    message = "EventPrediction takes batches of EventSequences, and the data gives Task; take a"
    tasks = GPDataModule(
        batch_size=2, steps_per_epoch=2, num_test_tasks=2, num_val_tasks=2, num_predict_tasks=2
    )
    with pytest.raises(ValueError, match=message):
        getattr(run, stage)(EventPrediction(small_model()), tasks)
    message = "MetaRegression takes batches of Task, and the data gives EventSequences; take a"
    with pytest.raises(ValueError, match=message):
        getattr(run, stage)(MetaRegression(CNP(1, 1, dim_hidden=8)), Events())


class Words(Events):
    """The same, of marks that are words; notes what it is told of them."""

    def __init__(self, vocabulary: list[str]) -> None:
        super().__init__(told=[])
        self._vocabulary = vocabulary

    @property
    def vocabulary(self) -> list[str]:
        return self.told[-1] if self.told else self._vocabulary

    @vocabulary.setter
    def vocabulary(self, vocabulary: list[str]) -> None:
        self.told.append(vocabulary)

    @property
    def num_marks(self) -> int:
        return len(self.vocabulary)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("release", ["0.1.0", "now"])
def test_a_checkpoint_tells_the_data_module_its_vocabulary_once(
    tmp_path: Path, stage: str, release: str
) -> None:
    """In checkpoints of release 0.1.0 the data module's own state holds it too."""
    trained, path = EventPrediction(small_model()), tmp_path / "model.ckpt"
    fit(trained, tmp_path, Words(["buy", "sell"])).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["vocabulary"] == ["buy", "sell"]
    assert "Words" not in checkpoint
    if release == "0.1.0":
        checkpoint["Words"] = {"vocabulary": ["buy", "sell"]}
        torch.save(checkpoint, path)
    # Of one mark, fewer than the model knows: refused, if it were told too late.
    module, data = EventPrediction(small_model()), Words(["sell"])
    run = trainer(tmp_path, max_steps=2)
    getattr(run, stage)(module, datamodule=data, ckpt_path=path, weights_only=True)
    assert module.vocabulary == ["buy", "sell"]
    assert data.told == [["buy", "sell"]]


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_loaded_module_tells_the_data_module_its_vocabulary_once(
    tmp_path: Path, stage: str
) -> None:
    trained, path = EventPrediction(small_model()), tmp_path / "model.ckpt"
    fit(trained, tmp_path, Words(["buy", "sell"])).save_checkpoint(path)
    module, data = EventPrediction.load_from_checkpoint(path, weights_only=True), Words(["sell"])
    assert module.vocabulary == ["buy", "sell"]
    getattr(trainer(tmp_path, max_steps=1), stage)(module, datamodule=data)
    assert data.told == [["buy", "sell"]]


def test_marks_are_counted_by_the_data_s_vocabulary_where_the_module_has_none(
    tmp_path: Path,
) -> None:
    module, data = EventPrediction(small_model()), Words(["buy", "sell"])
    trainer(tmp_path).test(module, data, verbose=False)
    assert module.vocabulary is None
    assert not data.told


def test_a_checkpoint_may_tell_the_data_module_its_marks(tmp_path: Path) -> None:
    """More than occur in the data at hand."""

    class Restored(Events):
        num_marks = 1

        def state_dict(self) -> dict[str, int]:
            return {"num_marks": 2}

        def load_state_dict(self, state_dict: dict[str, int]) -> None:
            self.num_marks = state_dict["num_marks"]

    fit(EventPrediction(small_model()), tmp_path, Restored(num_marks=2)).save_checkpoint(
        tmp_path / "model.ckpt"
    )
    module = EventPrediction(small_model())
    ckpt = {"ckpt_path": tmp_path / "model.ckpt", "weights_only": True}
    for run in (trainer(tmp_path).test, trainer(tmp_path, max_steps=2).fit):
        data = Restored()
        run(module, datamodule=data, **ckpt)  # refused, if the marks were still one
        assert data.num_marks == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_layers": 2}, "num_layers is 2 there and 1 here"),
        ({"num_marks": 4}, "num_marks is 4 there and 2 here"),
    ],
    ids=["layers", "marks"],
)
def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, other: dict[str, int], message: str
) -> None:
    data = Events(num_marks=other.get("num_marks", 2))
    fit(EventPrediction(small_model(**other)), tmp_path, data).save_checkpoint(tmp_path / "o.ckpt")
    with pytest.raises(ValueError, match=f"the checkpoint is of another model: {message}$"):
        trainer(tmp_path).test(
            EventPrediction(small_model()), Events(), ckpt_path=tmp_path / "o.ckpt"
        )


def test_weights_that_differ_are_named_where_the_arguments_agree() -> None:
    module = EventPrediction(small_model())
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    state = checkpoint["state_dict"]
    missing, reshaped = "model.head.time.0.weight", "model.head.time.0.bias"
    assert {missing, reshaped} <= state.keys()
    del state[missing]
    state[reshaped] = torch.zeros(3)
    state["model.more"] = torch.zeros(2, 2)
    with pytest.raises(
        ValueError,
        match=rf"another model: {missing} is missing there and \[8, 8\] here, {reshaped} is \[3\] "
        r"there and \[8\] here, model.more is \[2, 2\] there and missing here$",
    ):
        module.on_load_checkpoint(checkpoint)
    state.update({f"model.more{i}": torch.zeros(1) for i in range(4)})
    with pytest.raises(ValueError, match=r"missing here, and 4 more weights differ$"):
        module.on_load_checkpoint(checkpoint)


def test_a_checkpoint_from_python_needs_nothing_else(tmp_path: Path) -> None:
    module = EventPrediction(small_model())
    fit(module, tmp_path).save_checkpoint(tmp_path / "model.ckpt")
    loaded = EventPrediction.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.model.hparams == module.model.hparams
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, rtol=0, atol=0)


def predict(path: Path, batch_size: int = 5, name: str = "predictions.parquet") -> pd.DataFrame:
    torch.manual_seed(0)
    writer = PredictionWriter(str(path / name))
    trainer(path, callbacks=[writer]).predict(EventPrediction(small_model()), Events(batch_size))
    return (pd.read_parquet if name.endswith("parquet") else pd.read_csv)(path / name)


COLUMNS = [
    "sequence", "event", "time", "interval", "interval_mean", "interval_median",
    "mark", "mark_predicted", "mark_probability", "log_likelihood",
]  # fmt: skip


@pytest.mark.parametrize("batch_size", [2, 5])
def test_predictions_have_a_row_for_each_event_and_one_for_what_comes_next(
    tmp_path: Path, batch_size: int, capsys: pytest.CaptureFixture
) -> None:
    frame = predict(tmp_path, batch_size)
    assert "20 predictions written to" in capsys.readouterr().out
    assert list(frame) == COLUMNS
    expected = [(row, event) for row in range(5) for event in range(1, row + 3)]
    assert list(zip(frame["sequence"], frame["event"])) == expected
    sequences = Events().sequences()
    torch.manual_seed(0)
    model = small_model().eval()
    for row, rows in frame.groupby("sequence"):
        events = slice(row + 2)
        times, marks = sequences.times[row, events], sequences.marks[row, events]
        with torch.no_grad():
            dists = [model.query(model.condition(times[:i], marks[:i])) for i in range(1, row + 3)]
        truth, ahead = rows.iloc[:-1], dists[:-1]
        tau, next_marks = times.diff(), marks[1:]
        columns = {
            "time": times[1:],
            "interval": tau,
            "mark": next_marks,
            "mark_probability": [d.mark_probs[0, k] for d, k in zip(ahead, next_marks)],
            "log_likelihood": [
                d.log_prob(t[None], k[None])[0] for d, t, k in zip(ahead, tau, next_marks)
            ],
        }
        for name, values in columns.items():
            assert truth[name].tolist() == pytest.approx([float(z) for z in values], rel=1e-4)
            assert pd.isna(rows.iloc[-1][name])
        for name, values in {
            "interval_mean": [d.mean[0] for d in dists],
            "interval_median": [d.median[0] for d in dists],
            "mark_predicted": [d.mark_probs[0].argmax() for d in dists],
        }.items():
            assert rows[name].tolist() == pytest.approx([float(z) for z in values], rel=1e-4)


def test_predictions_as_csv_are_those_of_parquet(tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(
        predict(tmp_path, name="predictions.csv"), predict(tmp_path), rtol=1e-5, check_dtype=False
    )


def test_prediction_needs_no_event_that_is_known(tmp_path: Path) -> None:
    module = EventPrediction(small_model())
    sequences = EventSequences(torch.tensor([[1.0]]), torch.tensor([[1]]))
    table = module.prediction_table(sequences, module.eval().predict_step(sequences, 0))
    (row,) = table.to_pylist()
    assert row["event"] == 1
    assert row["interval_median"] > 0
    assert row["time"] is row["interval"] is row["mark"] is row["log_likelihood"] is None


def test_the_best_checkpoint_goes_by_the_module_s_own_value(tmp_path: Path) -> None:
    for module, monitored, mode in (
        (EventPrediction(small_model()), "val/nll", "min"),
        (EventPrediction(small_model()), "val/accuracy", "max"),
    ):
        asked = {} if mode == "min" else {"monitor": monitored, "mode": mode}
        best = BestCheckpoint(**asked)
        values = []

        class Record(L.Callback):
            def on_validation_end(self, trainer: L.Trainer, *_: object) -> None:
                if not trainer.sanity_checking:
                    values.append(float(trainer.callback_metrics[monitored]))  # noqa: B023

        module.optimizer = lambda params: torch.optim.SGD(params, lr=0.3)
        options = {"max_steps": 6, "limit_val_batches": 1.0, "callbacks": [Record(), best]}
        fit(module, tmp_path / mode, **options)
        expected = min(values) if mode == "min" else max(values)
        assert len(set(values)) > 1
        assert best.best_model_score == pytest.approx(expected)
        saved = torch.load(best.best_model_path, weights_only=True)
        assert values.index(expected) == saved["global_step"] - 1


def test_what_is_monitored_is_right_for_each_module(tmp_path: Path) -> None:
    assert (EventPrediction.monitor, EventPrediction.monitor_mode) == ("val/nll", "min")
    assert (MetaRegression.monitor, MetaRegression.monitor_mode) == ("val/log_likelihood", "max")


def test_another_value_is_monitored_with_a_mode_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor='val/rmse' needs a mode: \"min\" where less"):
        fit(EventPrediction(small_model()), tmp_path, callbacks=[BestCheckpoint("val/rmse")])
    best = BestCheckpoint("val/nll")
    fit(EventPrediction(small_model()), tmp_path, callbacks=[best], limit_val_batches=1.0)
    assert best.mode == "min"
