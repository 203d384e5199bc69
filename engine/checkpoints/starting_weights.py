"""The weights that a new run starts from (``checkpoint.start``)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from engine.checkpoints.checkpoint_file import is_ours
from engine.errors import UserError
from models import has_average, read_file, start_from, weights_in


@dataclass(frozen=True)
class StartingWeights:
    """Weights from a file.

    Attributes:
        file: path of the file.
        weights: the weights, by name.
        classes: names of the classes that they were trained on, in the classifier's order; None if the file does not
            say so.
        averaged: whether they are the moving average, which the file has beside the trained weights.
    """

    file: str
    weights: dict[str, Tensor]
    classes: list[str] | None
    averaged: bool

    @classmethod
    def read(cls, file: str) -> "StartingWeights":
        """Read a file of weights, or a checkpoint.

        Raises:
            UserError: if some numbers are not finite.
            ModelError: if the file cannot be read, or has no weights.
        """
        content = read_file(file)
        weights = weights_in(content, file)
        broken = next((name for name, weight in weights.items() if not weight.isfinite().all()), None)
        if broken is not None:
            raise UserError(f"{file} has numbers that are not finite ({broken}): start from other weights")
        return cls(file, weights, content.get("classes") if is_ours(content) else None, has_average(content))

    def load_into(self, model: nn.Module, classes: Sequence[str]) -> list[str]:
        """Load the weights into a model for ``classes``, in the classifier's order. Returns the messages to log.

        Raises:
            ModelError: if they belong to another model.
        """
        which = "the moving average of the weights" if self.averaged else "the weights"
        notices = [f"starting from {which} in {self.file}", *start_from(model, self.weights, self.file)]
        if self.classes is not None and len(self.classes) == len(classes) and list(self.classes) != list(classes):
            theirs, ours = next(pair for pair in zip(self.classes, classes, strict=True) if pair[0] != pair[1])
            notices.append(f"the classifier is kept, although it was trained on other classes ({theirs}, not {ours})")
        return notices
