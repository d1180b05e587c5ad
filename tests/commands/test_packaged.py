"""Configurations by their names, without a checkout."""

import pytest

from npbench.cli import main
from npbench.commands.packaged import packaged, with_packaged
from npbench.errors import InputError


def test_a_name_stands_for_its_file() -> None:
    words = with_packaged(
        ["fit", "--config", "npbench:gp/cnp", "--data.kernel=npbench:gp/kernels/matern52", "a:b"]
    )
    file, kernel = packaged("gp/cnp"), packaged("gp/kernels/matern52.yaml")
    assert words == ["fit", "--config", str(file), f"--data.kernel={kernel}", "a:b"]
    assert file.is_file()


def test_a_name_that_is_none_says_which_are_alike(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match="there is no configuration npbench:gp/cmamp; alike are"):
        packaged("gp/cmamp")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "npbench:nothing"])
    assert "no configuration npbench:nothing; alike are celeba, " in capsys.readouterr().err
