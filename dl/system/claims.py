"""Claims on pieces of work that processes share through a folder, on one machine or on many.

Each piece has a folder with one empty file, the baton. The name of the baton is the state of the piece: free,
held by a process, or done. A process changes the state by a rename from exactly the name that it has read. So
of several processes one succeeds, and the others find that the name has gone.

A holder renames its baton every few seconds, as a sign of life. If another process has seen one name for
`expiry` seconds of its own monotonic clock, the holder counts as dead, and the piece can be taken over. No
two clocks are compared. An outdated listing of a network file system does no harm, because a rename from an
old name fails. Nothing is needed but a file system with atomic renames: no locks and no links.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from dl.errors import UserError
from dl.system.json_files import read_json, write_json

EXPIRY = 60.0  # seconds; more than the time for which network file systems keep listings
_RENEWALS = 6  # signs of life in the time of expiry

_FREE, _HELD, _DONE = "free", "held", "done"
_BATON = re.compile(rf"(\d+)-(?:({_FREE}|{_DONE})|{_HELD}-(.+)-(\d+))")
_RESULT = "result"
_NUM_READINGS = 20  # of a folder, which shows no baton for a moment while it is renamed


class ClaimLost(Exception):
    """Another process has taken over the piece, because this one showed no sign of life for too long."""


class _Baton(NamedTuple):
    """The state of a piece.

    Attributes:
      generation: the number of the last claim, from 1; 0 before the first.
      state: free, held or done.
      holder: HOST.PROCESS.RANDOM of the holder; empty if there is none.
      beat: the number of its signs of life.
    """

    generation: int
    state: str
    holder: str = ""
    beat: int = 0

    @property
    def name(self) -> str:
        end = f"-{self.holder}-{self.beat}" if self.state == _HELD else ""
        return f"{self.generation}-{self.state}{end}"


class Claims:
    """The pieces of work in a folder. A piece is known by its name, and created by its first claim.

    Attributes:
      folder: the folder, which is created when it is needed.
      expiry: number of seconds without a sign of life after which a holder counts as dead. All processes
        must use the same number.
    """

    def __init__(self, folder: Path, expiry: float = EXPIRY):
        self.folder = folder
        self.expiry = expiry
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
        self._holder = f"{host}.{os.getpid()}"
        self._seen: dict[str, tuple[_Baton, float]] = {}

    def claim(self, name: str, is_dead_too: bool = True) -> "Claim | None":
        """Returns a claim on a piece; `None` if it is done, held by a living process, or was just lost.

        Args:
          name: the name of the piece.
          is_dead_too: whether a piece of a dead holder is taken over.

        Raises:
          OSError: the folder cannot be written.
          UserError: the folder of the piece is damaged.
        """
        baton = self._read(name) or self._create(name)
        is_inherited = baton.state == _HELD
        if baton.state == _DONE or (is_inherited and not (self._is_dead(name, baton) and is_dead_too)):
            return None
        held = _Baton(baton.generation + 1, _HELD, f"{self._holder}.{secrets.token_hex(4)}")
        if not self.change(name, baton, held):
            return None
        return Claim(self, name, held, is_inherited)

    def is_done(self, name: str) -> bool:
        """Returns whether a piece is done."""
        baton = self._read(name)
        return baton is not None and baton.state == _DONE

    def result(self, name: str) -> Any:
        """Returns the result of a piece that is done.

        Raises:
          UserError: the result is damaged or missing.
        """
        baton = self._read(name)
        generation = baton.generation if baton is not None and baton.state == _DONE else 0
        path = self.folder / name / f"{generation}-{_RESULT}.json"
        if (found := read_json(path)) is None:
            raise UserError(f"{path} is missing; remove {path.parent}, and the piece is done again")
        return found["value"]

    def note(self, name: str, word: str) -> Any:
        """Returns what the last holder of a piece has noted under a word; `None` if nothing."""
        numbers = [
            int(found[1])
            for path in self._list(name)
            if (found := re.fullmatch(rf"(\d+)-{re.escape(word)}\.json", path))
        ]
        return read_json(self.folder / name / f"{max(numbers)}-{word}.json")["value"] if numbers else None

    def holders(self) -> Mapping[str, str]:
        """Returns the holder of each piece that is held, as text, by the name of the piece."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.folder)):
                baton = None if name.startswith(".") else self._read(name)
                if baton is not None and baton.state == _HELD:
                    host, process, _ = baton.holder.rsplit(".", 2)
                    found[name] = f"process {process} on {host}"
        return found

    def change(self, name: str, old: _Baton, new: _Baton) -> bool:
        """Changes the state of a piece from `old` to `new`; returns False if its state is another one.

        Only one process can come to make `new`.
        """
        folder = self.folder / name
        try:
            os.rename(folder / old.name, folder / new.name)
        except FileNotFoundError:
            # A network file system may repeat a rename that has succeeded, because the answer was lost.
            return (folder / new.name).exists()
        return True

    def _is_dead(self, name: str, baton: _Baton) -> bool:
        seen, since = self._seen.get(name, (None, 0.0))
        now = time.monotonic()
        if seen != baton:
            self._seen[name] = baton, now
            return False
        return now - since > self.expiry

    def _list(self, name: str) -> list[str]:
        try:
            return os.listdir(self.folder / name)
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> _Baton | None:
        """Returns the state of a piece; `None` if there is no such piece yet."""
        for _ in range(_NUM_READINGS):
            found = [match for path in self._list(name) if (match := _BATON.fullmatch(path))]
            batons = [_Baton(int(m[1]), m[2] or _HELD, m[3] or "", int(m[4] or 0)) for m in found]
            if batons:
                # A listing may show a file under its old and its new name.
                return max(batons, key=lambda baton: (baton.generation, baton.state != _HELD, baton.beat))
            if not (self.folder / name).exists():
                return None
            time.sleep(0.01)
        raise UserError(f"{self.folder / name} is damaged (no state); remove this folder")

    def _create(self, name: str) -> _Baton:
        """Creates a piece that is free, unless another process does. Returns its state."""
        self.folder.mkdir(parents=True, exist_ok=True)
        baton = _Baton(0, _FREE)
        prepared = self.folder / f".{name}.{secrets.token_hex(8)}"
        try:
            prepared.mkdir()
            (prepared / baton.name).touch()
            os.rename(prepared, self.folder / name)  # fails if there is a folder with content
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
        # What a killed process, or one that came too late, has prepared for this piece.
        for path in self.folder.glob(f".{name}.*"):
            shutil.rmtree(path, ignore_errors=True)
        if (there := self._read(name)) is None:
            raise UserError(f"{self.folder} was removed; start again")
        return there


class Claim:
    """A piece of work that this process holds, until `finish` or `release`. It is also a context.

    Attributes:
      name: the name of the piece.
      is_inherited: whether the last holder showed no sign of life. It may be alive on another machine.
      is_lost: whether another process has taken over the piece.
    """

    def __init__(self, claims: Claims, name: str, baton: _Baton, is_inherited: bool):
        self.name = name
        self.is_inherited = is_inherited
        self.is_lost = False
        self._claims = claims
        self._baton = baton
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._show_life, name=f"claim-{name}", daemon=True).start()

    def check(self) -> None:
        """Shows a sign of life; raises ClaimLost if another process has taken over the piece."""
        self._renew()
        if self.is_lost:
            raise ClaimLost(f"another process has taken over {self.name}")

    def note(self, word: str, value: Any) -> None:
        """Notes a JSON value for this holder and those after it.

        Raises:
          UserError: the note cannot be written.
        """
        folder = self._claims.folder / self.name
        write_json(folder / f"{self._baton.generation}-{word}.json", {"value": value})

    def finish(self, value: Any) -> None:
        """Ends the piece with its result, a JSON value.

        Raises:
          ClaimLost: another process has taken over the piece, and the result does not count.
          OSError, UserError: the folder cannot be written.
        """
        self.note(_RESULT, value)
        self._end(_DONE)
        if self.is_lost:
            raise ClaimLost(f"another process has taken over {self.name}")

    def release(self) -> None:
        """Gives the piece back, unless it has ended or was lost. If that fails, the claim expires."""
        with contextlib.suppress(OSError):
            self._end(_FREE)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _show_life(self) -> None:
        while not self._ended.wait(self._claims.expiry / _RENEWALS):
            # With a network file system an error may pass. If it does not, the piece is taken over.
            with contextlib.suppress(OSError):
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            if not self._ended.is_set():
                self._change(self._baton._replace(beat=self._baton.beat + 1))

    def _end(self, state: str) -> None:
        with self._lock:
            if not self._ended.is_set():
                self._ended.set()
                self._change(_Baton(self._baton.generation, state))

    def _change(self, baton: _Baton) -> None:
        if self._claims.change(self.name, self._baton, baton):
            self._baton = baton
        else:
            self.is_lost = True
            self._ended.set()
