"""Training on a TPU from nothing to nothing: create, run, create again after a preemption, delete."""

import contextlib
import dataclasses
import time

from launch import worker
from launch.command import Command, option_of
from launch.errors import UserError
from launch.gcloud import GcloudError
from launch.queued import GONE, Lost, QueuedTpu, Request

_TAKEN = (129, 137, 143)  # exit statuses of a run whose host may be taken away: SIGHUP, SIGKILL, SIGTERM
_CONNECTION = (1, 255)  # of gcloud and ssh where the connection is lost, and the first also of a run


@dataclasses.dataclass(frozen=True)
class Training:
    """One command on a TPU that may be taken away.

    Attributes:
      tpu: the queued resource.
      request: what it asks for.
      command: what runs there. It resumes in its `--workdir`.
      restarts: how often it is started again.
      settle: seconds that a preemption may take to show in the state of the queued resource.
      keep: whether the TPU stays at the end.
    """

    tpu: QueuedTpu
    request: Request
    command: Command
    restarts: int
    settle: float
    keep: bool

    def run(self) -> int:
        """Runs the command to its end and deletes the TPU. Returns the command's exit status.

        If the queued resource exists already, as after a lost connection, its work goes on.
        """
        tpu, say = self.tpu, self.tpu.gcloud.steps.say
        if tpu.gcloud.steps.dry_run:
            return self._plan()
        try:
            for number in range(self.restarts + 1):
                if number:
                    time.sleep(tpu.gcloud.pause)
                    say(f"start {number + 1} of at most {self.restarts + 1}: the same command resumes")
                status = self._attempt(is_first=not number)
                if status is not None:
                    break
            else:
                status = 255
                say(f"the TPU was lost {self.restarts + 1} times; --restarts N allows more")
        except KeyboardInterrupt:
            self._remind()
            raise
        except UserError:
            # A failed request counts against the quota, and a TPU without a run costs money.
            with contextlib.suppress(GcloudError):
                self._end()
            raise
        self._end()
        return status

    def _end(self) -> None:
        if self.keep:
            self._remind()
        else:
            self.tpu.delete()
            self.tpu.gcloud.steps.say(f"{self.tpu.name}: deleted")

    def _remind(self) -> None:
        tpu, gcloud = self.tpu, self.tpu.gcloud
        line = f"python -m launch.tpu delete {tpu.name} --zone {gcloud.zone} --project {gcloud.project}"
        gcloud.steps.say(f"the TPU {tpu.name} is not deleted and costs money; delete it with: {line}")

    def _attempt(self, is_first: bool) -> int | None:
        """Returns the exit status of the command; `None` if it did not end because the TPU was lost."""
        tpu = self.tpu
        try:
            was_there = self._ensure()
            tpu.wait()
            # A job that outlived the connection goes on, also that of an earlier start of this launcher.
            job = tpu.ask() if was_there else worker.NONE
            if job != worker.RUNNING and (is_first or job != worker.ENDED):
                tpu.copy()
                tpu.install()
            status = tpu.run(self.command)
        except Lost as lost:
            tpu.gcloud.steps.say(str(lost))
            return None
        if status == 0 or not self._was_lost(status):
            return status
        return None

    def _ensure(self) -> bool:
        """Puts the request into the queue if it is not there. Returns whether the TPU was there."""
        state, _ = self.tpu.gcloud.describe(self.tpu.name)
        if state in ("FAILED", *GONE):
            if state != "MISSING":
                self.tpu.gcloud.steps.say(f"{self.tpu.name}: {state}; deleting it")
                self.tpu.delete()  # it would count against the quota, and holds the name
            self.tpu.create(self.request)
        return state == "ACTIVE"

    def _was_lost(self, status: int) -> bool:
        """Returns whether the hosts, not the command, are the reason of an exit status.

        A preemption shows in the state only some time after the hosts have gone.
        """
        gcloud = self.tpu.gcloud
        end = time.monotonic() + self.settle
        while True:
            state, _ = gcloud.describe(self.tpu.name)
            if state != "ACTIVE":
                gcloud.steps.say(f"{self.tpu.name}: {state}")
                return True
            if status not in (*_TAKEN, *_CONNECTION):
                return False
            if status in _CONNECTION:
                job = self.tpu.ask()
                if job in (worker.RUNNING, worker.ENDED):
                    return job == worker.RUNNING or status == 255  # the connection alone was lost: join again
            if time.monotonic() >= end:
                return status in _CONNECTION
            time.sleep(min(gcloud.pause, max(0.0, end - time.monotonic())))

    def _plan(self) -> int:
        """Prints the steps of a training without a preemption."""
        tpu = self.tpu
        tpu.create(self.request)
        tpu.wait()
        tpu.copy()
        tpu.install()
        tpu.run(self.command)
        tpu.gcloud.steps.say(
            f"after a preemption: delete, and from the beginning, at most {self.restarts} times"
        )
        if not self.keep:
            tpu.delete()
        return 0


def check_survives(command: Command) -> None:
    """Raises UserError if the results of a command would be deleted with the TPU's disks."""
    workdir = option_of(command, "--workdir") or ""
    if not workdir.startswith("gs://"):
        raise UserError(
            f"--workdir {workdir} is on a disk that is deleted with the TPU; write --workdir gs://BUCKET/FOLDER"
        )
