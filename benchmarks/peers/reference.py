"""What all contestants start from: the initial weights, the first batches, and the losses of `dl` on them.

`python -m benchmarks.peers` writes it to a file, which every other process reads; NumPy is enough for that.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

NUM_STEPS = 4  # batches whose losses are compared: before any step, …, after three steps
FIRST_TOLERANCE = 1e-4
LAST_TOLERANCE = 1e-3


class Different(Exception):
    """A network is not the one that it is compared with."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The start of a training, and its first losses.

    Attributes:
      weights: initial parameters and statistics by path, such as `params/Dense_0/kernel`.
      rows: rows of the examples in the first batches, shape steps × batch.
      losses: mean loss of each of these batches, before the step on it.
      num_parameters: number of parameters, trained and frozen.
    """

    weights: Mapping[str, np.ndarray]
    rows: np.ndarray
    losses: Sequence[float]
    num_parameters: int

    def save(self, path: Path) -> None:
        """Writes the reference to a file."""
        facts = json.dumps({"losses": list(self.losses), "num_parameters": self.num_parameters})
        with path.open("wb") as file:
            np.savez(file, rows=self.rows, facts=np.array(facts), **self.weights)

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Returns the reference in a file."""
        with np.load(path) as file:
            arrays = dict(file)
        facts = json.loads(str(arrays.pop("facts")))
        rows = arrays.pop("rows")
        return cls(arrays, rows, facts["losses"], facts["num_parameters"])

    def param(self, name: str) -> np.ndarray:
        """Returns the initial value of a parameter."""
        return self.weights[f"params/{name}"]

    def check(self, num_parameters: int, losses: Sequence[float]) -> None:
        """Compares another network with the same weights.

        Args:
          num_parameters: its number of parameters.
          losses: its losses on the same batches, before the step on each.

        Raises:
          Different: the number of parameters differs, or the first or the last loss does, or is not finite.
        """
        if num_parameters != self.num_parameters:
            raise Different(f"it has {num_parameters:,} parameters instead of {self.num_parameters:,}")
        for step, tolerance in ((0, FIRST_TOLERANCE), (NUM_STEPS - 1, LAST_TOLERANCE)):
            # Written so that NaN differs too.
            if not abs(losses[step] - self.losses[step]) <= tolerance:
                raise Different(
                    f"after {step} steps its loss is {losses[step]:.6f} instead of "
                    f"{self.losses[step]:.6f}; they may differ by {tolerance:g}"
                )
