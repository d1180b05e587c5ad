"""What the benchmark of fine-tuning holds out, and how sure it is of a difference."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.fine_tuning.functions import DATA, split
from benchmarks.fine_tuning.scores import standard_error


@pytest.mark.parametrize("name", DATA)
def test_no_group_is_learned_and_held_out_and_no_value_given_and_asked_for(name: str) -> None:
    functions = DATA[name]()
    learned, cases = split(functions, seed=0, most=20)
    assert learned["function"].nunique() == 20
    assert not {case.group for case in cases} & set(learned["group"])
    sizes = functions.table.groupby("function").size()
    for case in cases:
        assert 3 <= len(case.x) <= functions.most_given
        assert not set(case.x) & set(case.new_x)
        assert len(case.x) + len(case.new_x) in set(sizes)


def test_values_that_come_twice_are_as_sure_as_once() -> None:
    values = pd.Series(np.random.default_rng(0).normal(size=50))
    alone = standard_error(values, pd.Series(range(50)))
    np.testing.assert_allclose(alone, values.std() / np.sqrt(50))
    twice = standard_error(pd.concat([values, values]), pd.Series([*range(50)] * 2))
    np.testing.assert_allclose(twice, alone)
