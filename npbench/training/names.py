"""Training whose numbers stand for names: marks of events, or classes."""

from abc import abstractmethod
from typing import Any, ClassVar

from npbench.training.base import TrainingModule


class TrainingByNames(TrainingModule):
    """Numbers that a model counts by keep their meaning, whatever data modules it is given.

    Where the data module names them, this module keeps the names of its training, saves them in its
    checkpoints, and sets them in every data module that it is given later. A subclass says what the
    names are, has an attribute for them, which is None at first, and checks before each stage that
    the data are those of its model.
    """

    names: ClassVar[str]
    """What the names are called in this module, in data modules and in checkpoints."""

    offer: ClassVar[type]
    """The protocol of data modules that have such names."""

    @abstractmethod
    def _check_data(self) -> None:
        """Compare the data of the run with the model.

        It is called once a restored checkpoint has brought its names.

        Raises:
            InputError: if the model counts otherwise.
        """

    def setup(self, stage: str) -> None:
        self._hand_over_names()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[self.names] = getattr(self, self.names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, and count by the names of this one.

        Raises:
            InputError: as `TrainingModule`.
        """
        super().on_load_checkpoint(checkpoint)
        setattr(self, self.names, checkpoint.get(self.names))
        self._hand_over_names()

    def on_fit_start(self) -> None:
        self._check_data()
        offered = isinstance(self._data, self.offer)
        setattr(self, self.names, getattr(self._data, self.names) if offered else None)

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._check_data()

    def on_test_start(self) -> None:
        super().on_test_start()
        self._check_data()

    def on_predict_start(self) -> None:
        self._check_data()

    def _hand_over_names(self) -> None:
        """Tell the data module of the run by which names it counts.

        `setup` does so for a module that was loaded before the run. The trainer restores a
        checkpoint after `setup`, and before it asks for the first batch: `on_load_checkpoint` does
        so then.
        """
        names = getattr(self, self.names)
        if names is not None and isinstance(self._data, self.offer):
            setattr(self._data, self.names, names)
