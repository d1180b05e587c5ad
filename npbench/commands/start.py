"""Where the trainer's commands take their weights from: a checkpoint, or nothing."""

from jsonargparse import Namespace

from npbench.errors import InputError
from npbench.pretrained.model_files import content_of, find
from npbench.training.base import TrainingModule

# What `--ckpt_path` is where random weights are meant.
_RANDOM = "none"


def check(command: str | None, options: Namespace) -> None:
    """Refuse to evaluate weights that nothing has trained, unless `--ckpt_path none` asks for it.

    Args:
        command: fit, validate, test or predict.
        options: the command's; `ckpt_path` is None afterwards where random weights are meant.

    Raises:
        InputError: if a checkpoint is missing.
    """
    path = options.get("ckpt_path")
    if str(path).lower() == _RANDOM and path is not None:
        options["ckpt_path"] = None
    elif path is None and command != "fit":
        raise InputError(
            f"npbench {command} takes the weights of a checkpoint, and none was given: add "
            f"--ckpt_path RUN/checkpoints/best.ckpt, or --ckpt_path {_RANDOM} for random weights"
        )


def load_weights(module: TrainingModule, path: str) -> None:
    """Give a module the weights of a trained model for a new run.

    Args:
        module: a module that trains a model of the same kind and size.
        path: a checkpoint, a run's folder, or the name of a model that comes with npbench.

    Raises:
        InputError: if there is no such checkpoint, or it is of another model.
    """
    content = dict(content_of(find(path)))
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
