"""A run that is kept in memory only, with the same methods as `dl.runs.run.Run`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from dl.runs.definition import Definition
from dl.runs.log import finite, line_of
from dl.runs.predictions import Kept


class MemoryRun:
    """A run without a folder. It cannot be resumed.

    Attributes:
      definition: the definition of the experiment.
      log: the metrics so far.
      predictions: the predictions for the final split. `None` before the end, and with several seeds.
    """

    folder = None
    identity = None
    is_begun = False
    where = "in memory"
    resume_command = "train again; give a folder to resume from"

    def __init__(self, definition: Definition):
        self.definition = definition
        self.log = MemoryLog()
        self.predictions: Kept | None = None
        self.result: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return self.definition.name or ""

    def check(self, facts: Mapping[str, Any]) -> None:
        """Does nothing: there is no earlier run to compare with."""

    def open(self, facts: Mapping[str, Any], mesh: Mesh, files: Mapping[str, str] | None = None) -> None:
        """Does nothing: there is no folder to lock."""

    def close(self) -> None:
        """Does nothing: there is no folder to release."""

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Does nothing: there is no folder that could be moved."""
        yield

    def open_log(self, size: int, step: int, digest: str) -> "MemoryLog":
        """Returns an empty log of the metrics."""
        return self.log

    def keep_predictions(self, predictions: Kept) -> None:
        """Keeps the predictions of the final variables."""
        self.predictions = predictions

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """The texts that the model wrote at the evaluations so far."""
        return self.log.samples

    def keep_samples(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Keeps the texts that the model wrote so far."""
        self.log.samples = list(lines)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps the result, and returns it."""
        self.result = dict(finite(dict(result)))
        return self.result


class MemoryLog:
    """The metrics of a run, as `dl.runs.log.MetricsLog` writes them.

    Attributes:
      lines: the lines, as a reader of metrics.jsonl gets them.
      samples: the lines, as a reader of samples.jsonl gets them.
    """

    size = 0
    digest = ""
    trouble = ""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.samples: list[Mapping[str, Any]] = []

    def write(self, kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        self.lines.append(line_of(kind, step, epoch, values))

    def close(self) -> None:
        """Does nothing: there is no file to close."""


class NoCheckpoints:
    """The checkpoints of a run in memory. Nothing is saved."""

    directory = None
    steps: tuple[int, ...] = ()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Does nothing: a run in memory is not saved."""

    def restore(self, abstract_state: Any, trouble_with: Any) -> None:
        """Returns `None`: nothing was saved."""

    def wait(self) -> None:
        """Does nothing: nothing is being saved."""
