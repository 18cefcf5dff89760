"""Stopping on request: Ctrl-C, SIGTERM and similar signals set a flag that the loop reads between steps."""

import signal
import threading
import time
from types import FrameType, TracebackType

# SIGHUP: the terminal was closed or its connection was lost.
_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Batch systems send them before the end of a job.
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_ECHO = 1.0  # seconds in which another SIGTERM is the same request: SLURM sends two when it preempts a job


class Stopped(Exception):
    """A run was stopped by a signal, and saved."""

    def __init__(self, number: signal.Signals, message: str):
        super().__init__(message)
        self.number = number


class StopSignals:
    """A context in which the first stop signal only sets `received`; a second one acts at once.

    A second SIGTERM within a second is ignored.

    Signals that the process ignores, such as SIGHUP under `nohup`, are not handled. Outside the main thread
    no signal is handled. A signal that did not end the inner of two such contexts is passed to the outer one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (*_REQUESTS, *_WARNINGS):
                previous = signal.getsignal(number)
                is_own = isinstance(getattr(previous, "__self__", None), StopSignals)
                if previous == signal.SIG_DFL or is_own or (number in _REQUESTS and callable(previous)):
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), now
            if number != signal.SIGTERM:
                self._restore()
        elif number != self.received or now - self._received_at > _ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
        if self.received is not None and not isinstance(error, Stopped):
            outer = getattr(signal.getsignal(self.received), "__self__", None)
            if isinstance(outer, StopSignals):
                outer._receive(self.received, None)
