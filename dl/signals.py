"""Stopping on request: Ctrl-C and SIGTERM become a flag that the loop reads between steps."""

import signal
from types import FrameType, TracebackType


class Stopped(Exception):
    """A run was stopped by a signal, and saved."""

    def __init__(self, number: signal.Signals, message: str):
        super().__init__(message)
        self.number = number


class StopSignals:
    """A context in which the first SIGINT or SIGTERM only sets `received`; a second one acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        self._previous = {
            number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
