"""A run that leaves nothing on disk: the same as `dl.runs.run.Run` to whoever trains, kept in memory only."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from dl.runs.definition import Definition
from dl.runs.log import finite, line_of
from dl.runs.predictions import Kept


class MemoryRun:
    """A run without a folder; it cannot be stopped and resumed.

    Attributes:
      definition: of the experiment.
      log: the metrics so far.
      predictions: of the final split; None before the end, and of several seeds.
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
        """There is nothing that it could disagree with."""

    def open(self, facts: Mapping[str, Any], mesh: Mesh) -> None:
        """There is nothing to take."""

    def close(self) -> None:
        """There is nothing to let go of."""

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Nothing can be moved away."""
        yield

    def open_log(self, size: int, step: int, digest: str) -> "MemoryLog":
        """Returns the log of the metrics, which begins empty."""
        return self.log

    def keep_predictions(self, predictions: Kept) -> None:
        """Keeps what the run's end predicts."""
        self.predictions = predictions

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps the result, and returns it."""
        self.result = dict(finite(dict(result)))
        return self.result


class MemoryLog:
    """The metrics of a run, as `dl.runs.log.MetricsLog` writes them.

    Attributes:
      lines: as a reader of metrics.jsonl gets them.
    """

    size = 0
    digest = ""
    trouble = ""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        self.lines.append(line_of(kind, step, epoch, values))

    def close(self) -> None:
        """There is nothing to close."""


class NoCheckpoints:
    """Checkpoints of a run in memory: none."""

    directory = None
    steps: tuple[int, ...] = ()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves nothing."""

    def restore(self, abstract_state: Any, trouble_with: Any) -> None:
        """Finds nothing."""

    def wait(self) -> None:
        """There is nothing to wait for."""
