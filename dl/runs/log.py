"""The log of a run: `metrics.jsonl`, one JSON object per line, and TensorBoard events if it is installed.

Every line has `kind`, `step` (updates done) and `epoch` (passes over the training split, a fraction).

- `kind: "train"`: means over the steps since the last line of this kind: every metric of the loss (`loss`,
  `accuracy`, …), `gradient_norm` and `learning_rate`, with `examples_per_second`.
- `kind: "epoch"`: the same means over all steps since the last evaluation. Every example counts once, also
  in a short last batch. `seconds` is the time since the start of training.
- `kind: "validation"` (or another evaluation split's name, and `"test"` once at the end): means over the
  whole split, each example counted exactly once.

Where several seeds are trained at the same time, a metric is the mean over them, and `seeds` holds the
metrics of each, in the order of the seeds.

The task states the units of its metrics, see `task.Kind`. `examples_per_second` counts the time in training
steps since step 0, without compilation, evaluation and saving. `seconds` is the wall time since the start. A
metric that is not finite is null.
"""

import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dl.errors import UserError
from dl.metrics import MetricTable
from dl.system.files import read_regular, storage_error


class Averages:
    """Sums and counts of metrics on the host in double precision; saved with a checkpoint as JSON."""

    def __init__(self, sums: Mapping[str, Any] | None = None):
        """Starts from the sums that `to_json` returned: total and count of each metric, shape … × 2."""
        self._names = tuple(sums or {})
        self._sums: np.ndarray | None = None  # … × K × 2, one array for all metrics, as in a MetricTable
        if sums:
            self._sums = np.stack([np.asarray(pair, np.float64) for pair in sums.values()], axis=-2)

    def add(self, metrics: MetricTable) -> None:
        """Adds the metrics of a step, which are on the host.

        Raises:
          ValueError: they are other metrics than those before.
        """
        more = np.asarray(metrics.sums, np.float64)
        if self._sums is None:
            self._names, self._sums = metrics.names, more
        elif metrics.names == self._names:
            self._sums = self._sums + more
        elif sorted(metrics.names) == sorted(self._names):  # a checkpoint of a version with another order
            places = [metrics.names.index(name) for name in self._names]
            self._sums = self._sums + more[..., places, :]
        else:
            raise ValueError(f"metrics {metrics.names} cannot be added to {self._names}")

    def compute(self) -> dict[str, np.ndarray]:
        """Returns the mean of each metric, 0 where nothing was counted."""
        if self._sums is None:
            return {}
        totals, counts = self._sums[..., 0], self._sums[..., 1]
        of_all = totals / np.where(counts > 0, counts, 1.0)
        return {name: of_all[..., place] for place, name in enumerate(self._names)}

    def to_json(self) -> dict[str, Any]:
        """Returns the sums as JSON."""
        if self._sums is None:
            return {}
        return {name: self._sums[..., place, :].tolist() for place, name in enumerate(self._names)}


def means(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the mean of each metric over the runs of a population."""
    return {name: float(np.mean(value)) for name, value in metrics.items()}


def line_of(kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line of the log: the metrics, or for several runs their means and the metrics of each."""
    seeds = {name: np.asarray(value).tolist() for name, value in values.items() if np.ndim(value)}
    line = {"kind": kind, "step": step, "epoch": round(epoch, 7), **means(values)}
    return finite({**line, "seeds": seeds} if seeds else line)


class MetricsLog:
    """The log of one run on disk. Only process 0 writes.

    Attributes:
      size: the size of the log in bytes. At a resume, the log is cut to this size, which removes what a
        killed process wrote after its last checkpoint. TensorBoard drops events after `step`.
      trouble: why the lines before a resume are missing; empty if they are not.
    """

    def __init__(self, path: Path, size: int = 0, step: int = 0, digest: str = ""):
        """Opens a new log, or an existing one at the size that a checkpoint recorded.

        Args:
          path: the path of the file. A file that does not match the digest is renamed, and a new one begins.
          size: the size of the file at the checkpoint, in bytes.
          step: the step of the checkpoint that is resumed.
          digest: the digest of these bytes, see the property `digest`; empty if it is not known.

        Raises:
          UserError: the file cannot be written.
        """
        self._path = path
        self._file: io.FileIO | None = None
        self._board = None
        self._content = hashlib.sha256()
        self.size = size
        self.trouble = ""
        if jax.process_index():
            return
        with self._storing():
            content = _first_bytes(path, size)
            self._content.update(content)
            if len(content) < size or (digest and self.digest != digest):
                self._begin_again(bool(digest) and len(content) == size)
            self._file = path.open("ab", buffering=0)
            self._file.truncate(self.size)
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step)

    @property
    def digest(self) -> str:
        """The SHA-256 of the log so far."""
        return self._content.hexdigest()

    def write(self, kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Writes a line.

        Raises:
          UserError: the file cannot be written.
        """
        if self._file is None:
            return
        content = json.dumps(line_of(kind, step, epoch, values), allow_nan=False).encode() + b"\n"
        with self._storing():
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._content.update(content)
        self.size += len(content)
        if self._board is not None:
            for name, value in means(values).items():
                if not math.isfinite(value):
                    continue  # it cannot be plotted
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _begin_again(self, is_changed: bool) -> None:
        self.trouble = f"{self._path} {'was changed' if is_changed else 'is missing or was cut short'}"
        for number in itertools.count(1):
            aside = self._path.with_name(f"damaged-metrics-{number}.jsonl")
            if not aside.exists():
                break
        if self._path.exists():
            self._path.rename(aside)
            self.trouble += f" and is set aside as {aside.name}"
        self.size, self._content = 0, hashlib.sha256()

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "free some space, then run the same command again to resume from the last checkpoint"
            raise storage_error(self._path, error, hint) from error


def _first_bytes(path: Path, size: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(size)


def finite(value: Any) -> Any:
    """Returns JSON values in which numbers that are not finite are replaced by null."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def readable_lines(path: Path, max_bytes: int = 2**30) -> list[dict[str, Any]]:
    """Returns the lines of a file that are JSON objects; none if there is no file.

    An incomplete line is left out: the run continues, or was killed.
    """
    try:
        content = read_regular(path, max_bytes)
    except FileNotFoundError:
        return []
    lines = []
    for line in content.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`.

    Raises:
      UserError: a line is not JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged: it does not hold lines of JSON ({error})") from None
