"""The commands of `npbench`. Each has a module with `run(args)`, imported when it is called."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command as `npbench --help` lists it.

    Args:
        module: the file of this package that runs it.
        summary: what it does, in one sentence.
    """

    module: str
    summary: str


COMMANDS = {
    "fit": Command("trainer", "Train a model, with validation."),
    "validate": Command("trainer", "Evaluate a checkpoint on the validation data."),
    "test": Command("trainer", "Evaluate a checkpoint on the test data."),
    "predict": Command("trainer", "Write a checkpoint's predictions to a Parquet file."),
    "compare": Command("compare", "Evaluate several models on the same tasks."),
    "profile": Command("profile", "Measure memory and time as the context or the history grows."),
    "condition": Command("condition", "Turn a table of any size into a small file, a state."),
    "query": Command("query", "Predict at the rows of a table from a state."),
    "forget": Command("forget", "Take the rows of a table out of a state."),
    "merge": Command("merge", "Merge the states of several tables into the state of all."),
    "export": Command("export", "Make a folder of a trained model, or a program to deploy."),
    "import-official": Command("import_official", "Take weights of the paper's official code."),
}
