"""The workers that carry out a study together, on one machine or on many, through its folder alone.

Each piece of the study (a run, or several runs in one program) is claimed by one worker. A worker that is
stopped gives its piece back. The piece of a worker that dies is taken over, see `dl.system.claims`. The next
worker resumes its runs from their checkpoints.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from dl.errors import UserError
from dl.runs.console import Console
from dl.runs.folder import RunFolder
from dl.studies.folder import Study, usable
from dl.system.claims import EXPIRY, Claim, ClaimLost, Claims
from dl.training.signals import Stopped, StopSignals

CLAIMS = "claims"  # the subfolder of a study
_RECORD = "record"  # the piece whose holder may write the record of the study
_PLAN = "plan"
_MAX_PAUSE = 1.0  # seconds between two looks at the folder

Work = Callable[[], Any]
"""Carries out a piece and returns its result, a JSON value."""


class Worker:
    """This process as one of the workers of a study.

    Attributes:
      claims: the pieces of the study.
      console: the console for runs. It ends a run whose piece was lost.
      claim: the claim on the piece that is carried out; `None` if there is none.
    """

    def __init__(self, study: Study, resume_command: str, console: Console, expiry: float = EXPIRY):
        """Joins the workers of a study.

        Args:
          study: the study, whose folder is open for several processes.
          resume_command: the command line that continues the study.
          console: where this worker says that it waits.
          expiry: number of seconds without a sign of life after which a worker counts as dead.

        Raises:
          UserError: this process is one of several that train together.
        """
        if jax.process_count() > 1:
            raise UserError("a worker is a single process; start each worker without --num-processes")
        self.claims = Claims(study.folder / CLAIMS, expiry)
        self.console = _ClaimConsole(self)
        self.claim: Claim | None = None
        self._folder = study.folder
        self._resume_command = resume_command
        self._said = console

    @contextlib.contextmanager
    def writing(self) -> Iterator[Claim]:
        """A context in which no other worker writes the record of the study.

        Raises:
          Stopped: a signal arrived.
          UserError: the folder cannot be used.
        """
        with StopSignals() as signals:
            while (claim := self._claim([_RECORD])) is None:
                self._end_if_stopped(signals)
                self._pause()
            with claim:
                yield claim
            self._end_if_stopped(signals)

    def agree(self, plan: Mapping[str, Any]) -> None:
        """Checks that all workers have the same plan.

        Args:
          plan: for each option that workers must share, its value.

        Raises:
          Stopped: a signal arrived.
          UserError: a worker holds a piece of another plan, or the folder cannot be used.
        """
        with self.writing() as claim, usable(self._folder):
            there = self.claims.note(_RECORD, _PLAN)
            if there == plan:
                return
            if there is not None:
                for piece, holder in others(self.claims).items():
                    differences = ", ".join(
                        f"{name}={there.get(name)} there, {value} here"
                        for name, value in plan.items()
                        if there.get(name) != value
                    )
                    raise UserError(
                        f"workdir={self._folder} has workers with other options ({differences}): {holder} "
                        f"holds {piece}; give the same options, or wait until they have ended"
                    )
            claim.note(_PLAN, plan)

    def carry_out(self, pieces: Mapping[str, Work]) -> dict[str, Any]:
        """Carries out pieces, together with the other workers, until all are done.

        Args:
          pieces: the work of each piece, by its name.

        Returns:
          The result of each piece, by its name.

        Raises:
          Stopped: a signal arrived. The piece of this worker was given back.
          UserError: the folder cannot be used. An error of the work is raised too. The piece is given back.
        """
        results: dict[str, Any] = {}
        is_waiting = False
        with StopSignals() as signals:
            while len(results) < len(pieces):
                self._end_if_stopped(signals)
                left = [name for name in pieces if name not in results]
                with usable(self._folder):
                    results |= {name: self.claims.result(name) for name in left if self.claims.is_done(name)}
                if (claim := self._claim([name for name in left if name not in results])) is not None:
                    with claim, contextlib.suppress(ClaimLost):
                        self._carry_out(claim, pieces[claim.name])
                elif len(results) < len(pieces):
                    if not is_waiting:
                        self._said.line(
                            f"waiting for other workers: {', '.join(others(self.claims).values())}"
                        )
                    is_waiting = True
                    self._pause()
            self._end_if_stopped(signals)
        return results

    def prepare(self, run: Path) -> None:
        """Makes the folder of a run ready for this worker.

        Raises:
          UserError: the folder cannot be used.
        """
        if self.claim is not None and self.claim.is_inherited:
            with usable(run):
                RunFolder(run).seize()

    def check(self) -> None:
        """Raises ClaimLost if another worker has taken over the piece that is carried out."""
        if self.claim is not None:
            self.claim.check()

    def _carry_out(self, claim: Claim, work: Work) -> None:
        self.claim = claim
        try:
            with _StopAtOnce(self._resume_command):
                result = work()
            with usable(self._folder):
                claim.finish(result)
        finally:
            self.claim = None

    def _claim(self, names: Sequence[str]) -> Claim | None:
        """Returns a claim on one of the pieces, of a dead worker only if no other is free."""
        with usable(self._folder):
            for is_dead_too in (False, True):
                for name in names:
                    if (claim := self.claims.claim(name, is_dead_too)) is not None:
                        return claim
        return None

    def _pause(self) -> None:
        time.sleep(min(_MAX_PAUSE, self.claims.expiry / 20))

    def _end_if_stopped(self, signals: StopSignals) -> None:
        if signals.received is not None:
            raise _stopped(signals, self._resume_command)


def refuse_workers(study: Study) -> None:
    """Raises UserError if a worker holds a piece of a study that this process would carry out alone."""
    with usable(study.folder):
        for piece, holder in others(Claims(study.folder / CLAIMS)).items():
            raise UserError(
                f"workdir={study.folder} is shared by workers ({holder} holds {piece}); wait until they have "
                "ended, or join them with --worker"
            )


def others(claims: Claims) -> Mapping[str, str]:
    """Returns the holder of each piece of a study that is held."""
    return {piece: holder for piece, holder in claims.holders().items() if piece != _RECORD}


class _ClaimConsole(Console):
    """A silent console that ends a run if its worker has lost the piece."""

    def __init__(self, worker: Worker):
        super().__init__(is_quiet=True)
        self.is_live = True  # then `progress` is called after each step
        self._worker = worker

    def start(self, num_steps: int) -> None:
        pass

    def progress(self, step: int, description: str, figures: Mapping[str, float]) -> None:
        claim = self._worker.claim
        if claim is not None and claim.is_lost:
            raise ClaimLost(f"another process has taken over {claim.name}")


class _StopAtOnce(StopSignals):
    """A context in which a stop signal raises Stopped. Inside it, the training loop has its own handler."""

    def __init__(self, resume_command: str):
        super().__init__()
        self._resume_command = resume_command

    def _receive(self, number: int, frame: FrameType | None) -> None:
        super()._receive(number, frame)
        raise _stopped(self, self._resume_command)


def _stopped(signals: StopSignals, resume_command: str) -> Stopped:
    assert signals.received is not None
    return Stopped(signals.received, f"stopped by {signals.received.name}; to resume: {resume_command}")
