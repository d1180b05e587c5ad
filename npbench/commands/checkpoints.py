"""Models that commands are told to take, and those that made states."""

from collections.abc import Mapping
from pathlib import Path

from npbench.commands.arguments import given
from npbench.errors import InputError
from npbench.models import NeuralProcess
from npbench.pretrained.model_files import built, content_of, find
from npbench.scaling import Scaling


def load(checkpoint: Path) -> NeuralProcess:
    """The model of a file, on the CPU; the file is read without running code.

    Raises:
        InputError: if it is none, or of no model of regression that npbench knows, or that
            `--allow` has imported.
    """
    return built(content_of(checkpoint), str(checkpoint))


def load_with_saved_states(
    checkpoint: Path, notes: Mapping[str, str] | None = None
) -> NeuralProcess:
    """The same, of a model whose states are kept in files.

    Args:
        checkpoint: the file.
        notes: those of a state file, in whose units the model is then.

    Raises:
        InputError: as `load`, and if the model's state grows with its context.
    """
    model = load(checkpoint)
    if model.state_class is None:
        raise InputError(
            f"{checkpoint} holds a {type(model).__name__}, whose states are not kept in files; "
            f"condition and query take CMANP, LocatedCMANP, SecondMomentNP, ConvCNP and their kin"
        )
    if notes:
        model.scaling = Scaling.of_notes(notes)
    return model


def of_state(notes: Mapping[str, str], named: Path | None) -> Path:
    """The checkpoint that is named for a state, or else the one that its notes say.

    Raises:
        InputError: if there is none.
    """
    if named is not None:
        return find(named)
    checkpoint = Path(given("--ckpt", notes.get("checkpoint")))
    if not checkpoint.is_file():
        raise InputError(
            f"the state was made by {checkpoint}, which is not there any more; name it by --ckpt"
        )
    return checkpoint
