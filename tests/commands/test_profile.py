from pathlib import Path

import pandas as pd
import pytest

from npbench.cli import main

ROOT = Path(__file__).parents[2]
CONFIGS = [str(ROOT / f"configs/gp/{name}.yaml") for name in ("cnp", "tnpd")]


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.slow
def test_it_measures_the_models_of_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    # A busy machine may take long over a small size, which would foretell too much of a larger one.
    sizes = ["--context-sizes", "1e2,10", "--num-targets", "20", "--device", "cpu",
             "--time-limit", "1e9"]  # fmt: skip
    assert main(["profile", "--config", *CONFIGS, *sizes, "--out", str(tmp_path)]) is None
    table = pd.read_csv(tmp_path / "profile.csv")
    assert len(table) == 2 * 2 * 4
    assert set(table["model"]) == {"cnp", "tnpd"}
    assert (tmp_path / "profile.png").stat().st_size > 1000
    *printed, _ = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    state = table[(table["model"] == "tnpd") & (table["phase"] == "condition")]
    assert state["peak_bytes"].is_monotonic_increasing


@pytest.mark.usefixtures("as_a_user")
def test_fields_of_the_models_can_be_set(tmp_path: Path) -> None:
    config = str(ROOT / "configs/gp/cmanp-small.yaml")
    common = ["profile", "--config", config, "--context-sizes", "2000", "--phases", "train",
              "--num-targets", "10", "--device", "cpu"]  # fmt: skip
    peaks = []
    for fields in ([], ["--model.model.context_chunk_size", "100"]):
        out = tmp_path / str(len(fields))
        main([*common, *fields, "--out", str(out)])
        peaks.append(pd.read_csv(out / "profile.csv")["peak_bytes"].item())
    assert peaks[1] < peaks[0] / 2


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.slow
def test_it_measures_the_models_of_events(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Their context is the history."""
    config = ROOT / "configs/events/hawkes/thp.yaml"
    sizes = ["--context-sizes", "10,100", "--device", "cpu", "--out", str(tmp_path),
             "--time-limit", "1e9"]  # fmt: skip
    main(["profile", "--config", str(config), *sizes, "--model.model.dim_model", "8"])
    table = pd.read_csv(tmp_path / "profile.csv")
    assert table["num_context"].tolist() == [10] * 4 + [100] * 4
    assert (table["peak_bytes"] > 0).all()
    update = table[table["phase"] == "update"]["peak_bytes"]
    assert update.diff().iloc[-1] == 90 * (8 + 8 + 1)  # a time, a mark and a mask of each event
    *printed, _ = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    (row,) = (line for line in printed if "100" in line and "iB" in line)
    assert "1.7 KiB" in row  # of the update
    assert row.rstrip().endswith("MiB")  # of training


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--context-sizes", "1e3,many"], "many is no number of points", 2),
        (["--context-sizes", "0"], "0 is no number of points", 2),
        (["--phases", "quary"], "unknown phase(s) ['quary']; known: condition, query,", 1),
        (["--device", "gpuu"], "there is no device gpuu", 2),
        (["--context-size", "10"], "did you mean context-sizes?", 2),
        (["--model.model.num_layerz", "1"], "did you mean num_layers?", 1),
    ],
)
def test_mistakes_end_in_one_sentence(
    arguments: list[str], message: str, code: int, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["profile", "--config", CONFIGS[1], *arguments, "--out", str(tmp_path / "out")])
    assert exit_.value.code == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
