"""The conversation of a contestant's process with the process that started it: lines of JSON, one a turn."""

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO


class Turns:
    """A contestant trains only between `begin` and `end`. In between it waits for a line on its input."""

    def __init__(self) -> None:
        # Whatever a framework prints goes to the standard error, and cannot disturb the conversation.
        self._replies: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._is_ready = False

    def begin(self) -> float:
        """Waits for the next turn, and returns the seconds that it should take.

        Raises:
          SystemExit: there are no more turns.
        """
        if not self._is_ready:  # everything is built and compiled
            self._is_ready = True
            self.reply({"ready": True})
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        return float(json.loads(line)["seconds"])

    def end(self, examples: int, seconds: float) -> None:
        """Reports a turn, with the largest memory of this process so far."""
        self.reply({"examples": examples, "seconds": seconds, "peak_bytes": peak_bytes()})

    def reply(self, message: dict[str, Any]) -> None:
        """Sends a line."""
        print(json.dumps(message), file=self._replies, flush=True)


def peak_bytes() -> int:
    """Returns the largest resident memory of this process so far, in bytes.

    The number of `getrusage` is not used: it starts at the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
