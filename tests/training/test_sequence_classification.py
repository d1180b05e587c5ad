"""Classifiers of sequences are trained, tested, resumed and asked for predictions."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from test_cli import error_of

from datamodules import ListOpsDataModule, TextClassificationDataModule
from npbench import TokenSequences
from npbench.callbacks import MemoryDegradation, PredictionWriter
from npbench.cli import main
from npbench.errors import InputError
from npbench.metrics import SequenceMetrics
from npbench.models import ConvLuna, Luna
from npbench.schedules import InverseSquareRoot
from npbench.training import SequenceClassification

ROOT = Path(__file__).parents[2]
FEW = [
    "--data.num_train", "64", "--data.num_val", "20", "--data.num_test", "15",
    "--data.batch_size", "8", "--data.eval_batch_size", "6", "--trainer.accelerator", "cpu",
    "--trainer.max_steps", "20", "--trainer.val_check_interval", "5",
    "--trainer.log_every_n_steps", "1", "--trainer.enable_model_summary", "false",
    "--model.model.dim_model", "16", "--last_checkpoint.every_n_train_steps", "7",
]  # fmt: skip
SIZES = {"dim_model": 16, "num_layers": 1, "num_heads": 2, "dim_feedforward": 16, "num_memory": 3}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = ["--data.cache_dir", str(tmp_path_factory.mktemp("cache"))]
    return ["--config", str(ROOT / "configs/listops/convluna-short.yaml"), *FEW, *cache]


@pytest.fixture(scope="module")
def run_(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    root = tmp_path_factory.mktemp("listops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtyping.config.jaxtyping_disable", True)
        patch.setattr("sys.argv", ["npbench"])
        main(["fit", *small, "--trainer.default_root_dir", str(root)])
    return root / "version_0"


def test_the_best_checkpoint_is_that_of_the_highest_accuracy(run_: Path) -> None:
    metrics = pd.read_csv(run_ / "metrics.csv").dropna(subset="val/accuracy")
    assert len(metrics) == 4
    best = torch.load(run_ / "checkpoints/best.ckpt", weights_only=True)
    found = metrics.set_index("step")["val/accuracy"]
    assert found[best["global_step"] - 1] == found.max()
    assert best["classes"] == list("0123456789")


@pytest.mark.usefixtures("as_a_user")
def test_test_and_predict_agree(run_: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(run_ / "config.yaml"),
                 "--ckpt_path", str(run_ / "checkpoints/best.ckpt"),
                 "--trainer.default_root_dir", str(tmp_path)]  # fmt: skip
    main(["test", *arguments])
    results = pd.read_csv(tmp_path / "version_0/metrics.csv").iloc[0]
    main(["predict", *arguments, "--predictions.path", str(tmp_path / "out.parquet")])
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert frame["sequence"].tolist() == list(range(15))
    assert frame["text"].str.startswith(("[MIN", "[MAX", "[MED", "[SM")).all()
    probabilities = frame.filter(like="probability_")
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-5)
    assert (probabilities.idxmax(axis=1) == "probability_" + frame["prediction"]).all()
    accuracy = (frame["prediction"] == frame["label"]).mean()
    assert accuracy == pytest.approx(results["test/accuracy"], abs=1e-6)


@pytest.mark.usefixtures("as_a_user")
def test_a_run_that_was_cut_off_goes_on_exactly(
    run_: Path, small: list[str], tmp_path: Path
) -> None:
    shorter = [*small, "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "11"]
    main(["fit", *shorter])
    last = str(tmp_path / "version_0/checkpoints/last.ckpt")
    main(["fit", *shorter, "--trainer.max_steps", "20", "--ckpt_path", last])
    first, second = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (run_, tmp_path / "version_1")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_makes_the_classifier_anew(run_: Path) -> None:
    module = SequenceClassification.load_from_checkpoint(run_ / "checkpoints/best.ckpt")
    assert isinstance(module.model, ConvLuna)
    assert module.model.hparams["filter"]["kernel"] == 4
    assert module.classes == list("0123456789")


def test_metrics_are_over_all_sequences() -> None:
    metrics = SequenceMetrics(num_classes=3)
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    labels = torch.tensor([0, 2, 1])
    for part in (slice(0, 2), slice(2, 3)):
        found = metrics.update(logits[part], labels[part])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert float(found["nll"].compute()) == pytest.approx(float(expected))
    assert float(found["accuracy"].compute()) == pytest.approx(2 / 3)


def reviews(path: Path, labels: tuple[str, str]) -> TextClassificationDataModule:
    rows = [{"text": f"it is {labels[i % 2]} {i}", "label": labels[i % 2]} for i in range(60)]
    pd.DataFrame(rows).to_csv(path, index=False)
    return TextClassificationDataModule(str(path), batch_size=8)


def trainer(folder: Path, **options: object) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **quiet | options)


def test_classes_keep_their_meaning_on_other_data(tmp_path: Path) -> None:
    module = SequenceClassification(Luna(257, 2, max_length=64, dim_classifier=8, **SIZES))
    data = reviews(tmp_path / "a.csv", ("bad", "good"))
    trainer(tmp_path, max_steps=2).fit(module, datamodule=data)
    assert module.classes == ["bad", "good"]
    # In these data alone the order would be the other one.
    other = reviews(tmp_path / "b.csv", ("good", "bad"))
    other.classes = ["good", "bad"]
    trainer(tmp_path).test(module, datamodule=other, verbose=False)
    assert other.classes == ["bad", "good"]


def test_predictions_of_texts_are_in_their_own_terms(tmp_path: Path) -> None:
    module = SequenceClassification(Luna(257, 2, max_length=64, dim_classifier=8, **SIZES))
    data = reviews(tmp_path / "a.csv", ("bad", "good"))
    writer = PredictionWriter(str(tmp_path / "out.csv"))
    trainer(tmp_path, callbacks=[writer]).predict(module, datamodule=data)
    found = pd.read_csv(tmp_path / "out.csv")
    expected = pd.read_csv(tmp_path / "a.csv").set_index("text")["label"]
    assert (found.set_index("text")["label"] == expected[found["text"]]).all()
    likelier = found["probability_good"] > found["probability_bad"]
    assert (found["prediction"] == likelier.map({True: "good", False: "bad"})).all()


def test_texts_without_labels_are_predicted(tmp_path: Path) -> None:
    module = SequenceClassification(Luna(257, 2, max_length=64, dim_classifier=8, **SIZES))
    reviews(tmp_path / "a.csv", ("bad", "good"))
    pd.DataFrame({"text": ["it may be", "who knows"]}).to_csv(tmp_path / "new.csv", index=False)
    data = TextClassificationDataModule(tmp_path / "a.csv", predict_path=tmp_path / "new.csv")
    writer = PredictionWriter(str(tmp_path / "out.csv"))
    trainer(tmp_path, callbacks=[writer]).predict(module, datamodule=data)
    found = pd.read_csv(tmp_path / "out.csv")
    assert found.columns.tolist() == [
        "sequence", "text", "prediction", "probability_bad", "probability_good"
    ]  # fmt: skip
    assert found["text"].tolist() == ["it may be", "who knows"]


@pytest.mark.parametrize(
    ("tokens", "classes", "message"),
    [
        (257, 3, "the data has 2 classes, the model num_classes=3; set the model's num_classes"),
        (100, 2, "the data has 257 tokens, the model vocab_size=100; set the model's vocab_size"),
    ],
)
def test_a_model_of_other_data_is_refused(
    tmp_path: Path, tokens: int, classes: int, message: str
) -> None:
    module = SequenceClassification(Luna(tokens, classes, dim_classifier=8, **SIZES))
    data = reviews(tmp_path / "a.csv", ("bad", "good"))
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, max_steps=2).fit(module, datamodule=data)


def test_a_table_without_a_data_module_has_the_tokens() -> None:
    module = SequenceClassification(Luna(12, 2, dim_classifier=8, **SIZES)).eval()
    sequences = TokenSequences(
        torch.tensor([[3, 4, 0], [5, 6, 7]]), mask=torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    )
    table = module.prediction_table(sequences, module.predict_step(sequences, 0))
    assert table["tokens"].to_pylist() == ["3 4", "5 6 7"]
    assert "label" not in table.column_names


@pytest.mark.usefixtures("as_a_user")
def test_a_bad_file_ends_in_one_sentence(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / f"basic_{name}.tsv").write_text("Source\tTarget\n[MAX 1 2\t2\n")
    root = ["--trainer.default_root_dir", str(tmp_path), "--data.path", str(tmp_path)]
    message = error_of(["fit", *small, *root], capsys)
    assert "basic_train.tsv, line 2: the expression is not balanced" in message


def test_the_inverse_square_root_rises_and_falls() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = InverseSquareRoot(optimizer, warmup_steps=4)
    rates = []
    for _ in range(16):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[15] == pytest.approx(1.0)
    with pytest.raises(InputError, match="warmup_steps=0 must be 1 or more"):
        InverseSquareRoot(optimizer, warmup_steps=0)


def test_the_data_module_of_listops_offers_its_classes(tmp_path: Path) -> None:
    data = ListOpsDataModule(cache_dir=str(tmp_path))
    assert (data.vocab_size, data.classes) == (17, list("0123456789"))


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *_: object
    ) -> None:
        self.values.append(outputs["loss"].clone())


def test_looking_at_the_memory_of_a_classifier_disturbs_nothing(tmp_path: Path) -> None:
    sizes = {"num_train": 32, "num_val": 8, "num_test": 8, "batch_size": 4}
    sizes["cache_dir"] = str(tmp_path / "cache")
    losses = []
    for callbacks in ([], [MemoryDegradation(num_tasks=3)]):
        torch.manual_seed(0)
        data = ListOpsDataModule(max_depth=4, min_length=5, max_length=40, **sizes)
        module = SequenceClassification(ConvLuna(17, 10, dropout=0.1, **SIZES))
        seen = Losses()
        run = trainer(
            tmp_path, max_steps=6, val_check_interval=3, callbacks=[seen, *callbacks],
            logger=CSVLogger(tmp_path, name="", version=len(losses)),
        )  # fmt: skip
        run.fit(module, datamodule=data)
        losses.append(torch.stack(seen.values))
    assert torch.equal(*losses)
    table = pd.read_csv(tmp_path / "version_1/degradation.csv")
    assert table["step"].tolist() == [0, 3, 6]
    assert table["cosine_latents"].between(-1, 1).all()
    assert table["relative_entropy"].between(0, 1 + 1e-6).all()


@pytest.mark.slow
def test_two_processes_train_what_reads_not_all_of_its_memory(tmp_path: Path) -> None:
    config = str(ROOT / "configs/listops/rmt-short.yaml")
    arguments = ["fit", "--config", config, *FEW, "--model.model.segment_length", "16",
                 "--model.model.num_gradient_segments", "1", "--trainer.max_steps", "3",
                 "--trainer.devices", "2", "--trainer.strategy", "ddp",
                 "--data.cache_dir", str(tmp_path / "cache"),
                 "--trainer.default_root_dir", str(tmp_path)]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "npbench", *arguments],
        cwd=ROOT, timeout=240, stdout=subprocess.DEVNULL, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    last = torch.load(tmp_path / "version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3
