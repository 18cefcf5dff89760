"""The process of a contestant, as the process that starts it sees it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from benchmarks.peers.contestants import Contestant
from benchmarks.peers.reference import Different

ROOT = Path(__file__).parent.parent.parent
READY_SECONDS = 300.0  # until a network is built and compiled, and has trained for an epoch
TURN_SECONDS = 120.0


class Failed(Exception):
    """A process ended, took too long, or reported an error."""


class Turn(NamedTuple):
    """What a contestant did in a turn."""

    examples: int
    seconds: float
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Examples per second."""
        return self.examples / self.seconds


class Process:
    """A contestant that trains when it has the turn; a context, at whose end the process has ended.

    Attributes:
      ready_seconds: time until it was ready, with imports and compilation.
    """

    def __init__(
        self,
        contestant: Contestant,
        network: str,
        reference: Path,
        environment: Mapping[str, str],
        errors: IO[bytes],
    ):
        """Starts the process, and waits until it is ready.

        Args:
          contestant: the contestant.
          network: name of the network.
          reference: file of the reference.
          environment: environment of the process.
          errors: where its standard error goes.

        Raises:
          Different: its network is not that of the reference.
          Failed: it is not ready in time, or reports an error.
        """
        words = [network, str(reference), contestant.framework, contestant.variant]
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", *words],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            self._receive(READY_SECONDS)
        except BaseException:
            self.close()
            raise
        self.ready_seconds = time.perf_counter() - started

    def turn(self, seconds: float) -> Turn:
        """Lets the contestant train for a number of seconds, rounded up to whole epochs.

        Raises:
          Failed: it ended, or did not report in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"seconds": seconds}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Failed("its process ended") from error
        return Turn(**self._receive(seconds + TURN_SECONDS))

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        # A process sends one line for each that it gets, so nothing is left in a buffer.
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise Failed(f"it took more than {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"its process ended with status {self._process.wait()}")
        message: dict[str, Any] = json.loads(line)
        if "different" in message:
            raise Different(message["different"])
        if "failed" in message:
            raise Failed(message["failed"])
        return message

    def close(self) -> None:
        """Ends the process, and those that it started to compile."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_reference(network: str, path: Path, environment: Mapping[str, str], errors: IO[bytes]) -> None:
    """Writes the reference of a network to a file, in a process of its own.

    Raises:
      Failed: the trainer of `dl` did not finish four steps.
    """
    words = [sys.executable, "-m", "benchmarks.peers.worker", network, str(path), "reference"]
    try:
        done = subprocess.run(
            words,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            timeout=READY_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"no reference: it took more than {READY_SECONDS:.0f} s") from error
    if done.returncode or not path.exists():
        raise Failed(f"no reference: {done.stdout.decode(errors='replace').strip() or done.returncode}")


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
