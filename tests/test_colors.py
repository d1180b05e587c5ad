"""A model has one colour in all figures."""

from npbench import models
from npbench.colors import BAYES, EXACT, colors_of
from npbench.models import EventModel, NeuralProcess


def names_of(kind: type) -> list[str]:
    """The models of a kind."""
    return [name for name in models.__all__ if kind in getattr(models, name).__mro__[1:]]


def test_every_model_has_a_colour_of_its_own() -> None:
    for kind in (NeuralProcess, EventModel):
        names = names_of(kind)
        assert names
        colors = {name: colors_of([name])[name] for name in names}
        assert len({*colors.values(), EXACT, BAYES}) == len(names) + 2
        assert colors_of(reversed(names)) == colors


def test_the_papers_names_have_the_colours_of_the_classes() -> None:
    assert colors_of(["TNP-D"])["TNP-D"] == colors_of(["TNPD"])["TNPD"]


def test_other_names_have_colours_that_differ_and_follow_from_the_name() -> None:
    runs = [f"runs/version_{i}" for i in range(6)]
    colors = colors_of([*runs, "CMANP"])
    assert len(set(colors.values())) == 7
    assert colors_of(["mine"]) == colors_of(["mine"])
    assert len(colors_of(f"run {i}" for i in range(30))) == 30
