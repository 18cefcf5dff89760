"""A lock on a folder of a bucket: an object that its holder renews, and that a dead holder loses."""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

from dl.errors import UserError
from dl.system.bucket import NEW, BucketFolder

EXPIRY = 60.0  # seconds without a renewal after which a holder counts as dead
_RENEWALS = 6  # in this time
_NAME = ".lock"


class BucketLock:
    """An exclusive lock until `release`, or until the process is dead for `EXPIRY` seconds.

    The object `.lock` is only ever replaced from the generation that was seen before, so one of several
    processes succeeds. A lock whose generation has not changed for `EXPIRY` seconds of this process's own
    clock is taken over; a lock of a process that has ended on this machine at once. A holder that was taken
    over notices it at its next renewal, and at the latest in `is_in_place`.

    Raises:
      UserError: another process holds the lock.
      StorageError: the bucket cannot be reached.
    """

    def __init__(self, bucket: BucketFolder):
        self._bucket = bucket
        self._holder = {**_this_process(), "id": secrets.token_hex(8)}
        self._beat = 0
        self._is_lost = False
        self._guard = threading.Lock()
        self._ended = threading.Event()
        generation = bucket.replace(_NAME, self._text(), NEW)
        if generation is None:
            generation = bucket.replace(_NAME, self._text(), self._await_dead())
        if generation is None:
            raise self._in_use("another process")
        self._generation = generation
        threading.Thread(target=self._show_life, name="bucket-lock", daemon=True).start()

    def is_in_place(self) -> bool:
        """Renews the lock; returns whether this process holds it still."""
        self._renew()
        return not self._is_lost

    def release(self) -> None:
        """Removes the lock, unless it was lost. If the bucket cannot be reached, the lock expires."""
        with self._guard:
            self._ended.set()
            if not self._is_lost:
                with contextlib.suppress(UserError):
                    self._bucket.remove(_NAME, self._generation)

    def _await_dead(self) -> int:
        """Returns the generation of a dead holder's lock; raises UserError if the holder is alive."""
        seen, since, is_told = None, time.monotonic(), False
        while True:
            there = self._bucket.read(_NAME)
            if there is None:
                return NEW
            text, generation = there
            holder = _parse(text)
            if seen not in (None, generation):
                raise self._in_use(f"process {holder.get('pid')} on {holder.get('host')}")
            if _has_ended(holder) or time.monotonic() - since > EXPIRY:
                return generation
            if not is_told:
                print(
                    f"{self._bucket.url} is locked by process {holder.get('pid')} on {holder.get('host')}; "
                    f"waiting up to {EXPIRY:.0f} s to see whether it is alive",
                    file=sys.stderr,
                    flush=True,
                )
            seen, is_told = generation, True
            time.sleep(min(1.0, EXPIRY / _RENEWALS))

    def _in_use(self, holder: str) -> UserError:
        return UserError(f"{self._bucket.url} is in use by {holder}; wait for it, or choose another folder")

    def _show_life(self) -> None:
        while not self._ended.wait(EXPIRY / _RENEWALS):
            with contextlib.suppress(UserError):  # a failure of the network may pass
                self._renew()

    def _renew(self) -> None:
        with self._guard:
            if self._ended.is_set() or self._is_lost:
                return
            self._beat += 1
            generation = self._bucket.replace(_NAME, self._text(), self._generation)
            if generation is None:
                self._is_lost = True
            else:
                self._generation = generation

    def _text(self) -> str:
        return json.dumps({**self._holder, "beat": self._beat})


def _parse(text: str) -> dict[str, object]:
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _this_process() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": _machine(),
        "started": _started(os.getpid()),
    }


def _has_ended(holder: dict[str, object]) -> bool:
    """Returns whether a process is known to have ended, which only its own machine can tell."""
    pid = holder.get("pid")
    machine = _machine()
    if not machine or holder.get("machine") != machine or not isinstance(pid, int):
        return False
    return _started(pid) != holder.get("started")


def _machine() -> str:
    """Returns what names this boot of this machine and the table of processes; empty if it is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Returns when a process started, in ticks since the boot; empty if there is no such process."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
