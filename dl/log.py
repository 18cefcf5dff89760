"""What a run records: `metrics.jsonl`, one JSON object a line, and TensorBoard events where installed.

Every line has `kind`, `step` (updates done) and `epoch` (passes over the training split, a fraction).

- `kind: "train"`: means over the steps since the last such line of every metric of the loss (`loss`,
  `accuracy`, …), `gradient_norm` and `learning_rate`, with `examples_per_second`.
- `kind: "epoch"`: the same means over everything since the last evaluation, each example counted once,
  the short last batch by its size; with `seconds` since the start of training.
- `kind: "validation"` (or another evaluation split's name, and `"test"` once at the end): means over the
  whole split, each example counted exactly once.

Losses are in nats, `accuracy` is a fraction. `examples_per_second` is over the time spent in training steps,
without compilation and evaluation, since step 0; `seconds` is all wall time since the start. A figure that is
no finite number is null.
"""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dl.metrics import MetricTable


class Averages:
    """Sums and counts of metrics on the host in double precision; saved with a checkpoint as JSON."""

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None):
        self.sums = {name: (total, count) for name, (total, count) in (sums or {}).items()}

    def add(self, metrics: MetricTable) -> None:
        """Adds the metrics of a step, once they are on the host."""
        for name, (more_total, more_count) in zip(metrics.names, metrics.sums.tolist(), strict=True):
            total, count = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (total + more_total, count + more_count)

    def compute(self) -> dict[str, float]:
        return {name: total / max(count, 1.0) for name, (total, count) in self.sums.items()}


class MetricsLog:
    """The metrics of one run on disk. Only process 0 writes.

    Attributes:
      size: bytes written; given back at a resume, it cuts off what a killed process wrote after its
        last checkpoint. TensorBoard drops what lies after `step`.
    """

    def __init__(self, path: Path, size: int = 0, step: int = 0):
        self._file = None
        self._board = None
        self.size = size
        if jax.process_index():
            return
        path.touch()
        self._file = path.open("r+")
        self._file.truncate(size)
        self._file.seek(0, 2)
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step)

    def write(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        if self._file is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"kind": kind, "step": step, "epoch": round(epoch, 4), **finite}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        self.size = self._file.tell()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text().splitlines()]
