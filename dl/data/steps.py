"""The number of steps of a number of epochs."""

from typing import Protocol

from dl.errors import UserError
from dl.ranges import STEPS, check_count
from dl.types import Source


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of batches in one epoch, including the padded last one."""
    return -(-num_examples // batch_size)


class _HasTrain(Protocol):
    @property
    def train(self) -> Source: ...


class CountsSteps:
    """A base class with the method `steps` of `dl.types.Splits`."""

    def steps(self: _HasTrain, num_epochs: int, batch_size: int, *, at_least: int = 1) -> int:
        num_epochs = check_count("num_epochs", num_epochs, STEPS)
        batch_size = check_count("batch_size", batch_size, STEPS)
        at_least = check_count("at_least", at_least, STEPS)
        if not len(self.train):
            raise UserError("the training split has no examples; choose another data set")
        per_epoch = steps_per_epoch(len(self.train), batch_size)
        return per_epoch * max(num_epochs, -(-at_least // per_epoch))
