"""The first example of the README runs, and answers in the units of the table."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

README = Path(__file__).parents[1] / "README.md"


def test_five_lines_lead_from_a_table_to_predictions_with_error_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hours = np.linspace(0, 24, 60)
    celsius = 15 + 5 * np.sin(2 * np.pi * (hours - 9) / 24)
    pd.DataFrame({"hour": hours, "celsius": celsius}).to_csv("temperatures.csv", index=False)
    text = README.read_text()
    block = re.search(r"in five lines\n\n```python\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for line in block[1].splitlines() if line]
    assert len(lines) == 5
    with redirect_stdout(io.StringIO()) as printed:
        exec(block[1], {})
    answer = pd.read_csv(io.StringIO(printed.getvalue()), sep=r"\s+")
    assert list(answer) == ["celsius", "celsius_std", "celsius_q0.05", "celsius_q0.95"]
    truth = 15 + 5 * np.sin(2 * np.pi * (np.array([6.5, 12.0]) - 9) / 24)
    np.testing.assert_allclose(answer["celsius"], truth, atol=0.1)
    assert (answer["celsius_q0.05"] < truth).all()
    assert (truth < answer["celsius_q0.95"]).all()
    assert (answer["celsius_std"] < 0.5).all()
