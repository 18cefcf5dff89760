"""Calls of `gcloud`, and what its failures mean.

The flags are those of the reference of `gcloud compute tpus queued-resources`. The texts of failures are
those of the Cloud TPU service, which `gcloud` prints behind `ERROR: (gcloud.…)`.
"""

import dataclasses
import json
import re
import time
from typing import Any

from launch.command import shown
from launch.errors import UserError
from launch.steps import Done, Steps

_RETRIES = 5
_MESSAGE = 300  # characters of a message of gcloud that are shown


@dataclasses.dataclass(frozen=True)
class Failure:
    """A kind of failure of `gcloud`.

    Attributes:
      name: the name of the kind.
      pattern: a regular expression that finds it in what gcloud prints.
      advice: what the user can do.
    """

    name: str
    pattern: str
    advice: str


# The first that matches counts. The code RESOURCE_EXHAUSTED means a quota or a zone without capacity.
FAILURES = (
    Failure(
        "credentials",
        r"active account|gcloud auth login|[Rr]eauthentication|invalid_grant|UNAUTHENTICATED",
        "log in with: gcloud auth login",
    ),
    Failure(
        "api",
        r"SERVICE_DISABLED|API has not been used|it is disabled|is not enabled",
        "switch the Cloud TPU API on with: python -m launch.tpu setup --project PROJECT",
    ),
    Failure("billing", r"[Bb]illing", "link a billing account to the project"),
    Failure(
        "capacity",
        r"no more capacity|[Ii]nsufficient (reserved )?capacity|STOCKOUT|stockout|RESOURCE_POOL_EXHAUSTED",
        "the zone has no free TPU of this type now; try again later, another --zone, or --spot",
    ),
    Failure(
        "quota",
        r"[Qq]uota",
        "ask for more quota in the Google Cloud console, or delete queued resources; suspended and failed "
        "ones count too",
    ),
    Failure(
        "permission",
        r"PERMISSION_DENIED|[Pp]ermission .*denied|does not have permission",
        "the account needs the role roles/tpu.admin in the project",
    ),
    Failure("exists", r"ALREADY_EXISTS|already exists", "choose another name, or delete the old one first"),
    Failure("missing", r"NOT_FOUND|was not found|not found", "check the name, --zone and --project"),
    Failure(
        "key",
        r"not present in the SSH agent",
        "for several hosts, start an agent and add the key: ssh-add ~/.ssh/google_compute_engine",
    ),
    Failure("lost", r"terminal state|cannot be currently connected", "the TPU was preempted or stopped"),
    Failure(
        "invalid",
        r"INVALID_ARGUMENT|[Ii]nvalid|unrecognized arguments",
        "check --accelerator-type, --runtime-version and --zone",
    ),
    Failure(
        "transient",
        r"UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|timed out|[Cc]onnection (reset|refused|aborted)",
        "the service did not answer; try again later",
    ),
)
OTHER = Failure("other", r"", "see the message of gcloud")


def failure_in(text: str) -> Failure:
    """Returns the kind of failure that a text of gcloud or of the service names."""
    return next((failure for failure in FAILURES if re.search(failure.pattern, text)), OTHER)


def message_of(text: str) -> str:
    """Returns the message within what gcloud printed, on one line."""
    found = re.search(r"ERROR: (?:\(gcloud[\w.-]*\) )?(.*)", text, re.DOTALL)
    line = " ".join((found[1] if found else text).split()) or "no message"
    return line if len(line) <= _MESSAGE else f"{line[:_MESSAGE]}…"


class GcloudError(UserError):
    """A failure of `gcloud`.

    Attributes:
      failure: its kind.
    """

    def __init__(self, failure: Failure, text: str):
        super().__init__(f"{message_of(text)} ({failure.advice})")
        self.failure = failure


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """Calls of `gcloud` for one project and zone.

    Attributes:
      steps: how programs are run.
      project: the project's name.
      zone: the zone of the TPU.
      pause: seconds between two questions about a state, and at most between two tries.
    """

    steps: Steps
    project: str
    zone: str
    pause: float = 30.0

    def queued(self, verb: str, *words: str) -> Done:
        """Calls `gcloud compute tpus queued-resources VERB`, again where the service did not answer.

        Raises:
          GcloudError: the call failed.
        """
        return self.call("compute", "tpus", "queued-resources", verb, *words, f"--zone={self.zone}")

    def call(self, *words: str) -> Done:
        """Calls `gcloud` and captures what it prints. Raises GcloudError where it fails."""
        argv = ["gcloud", *words, f"--project={self.project}", "--quiet"]
        for number in range(_RETRIES):
            done = self.steps.run(argv, captured=True)
            if not done.status:
                return done
            failure = failure_in(done.errors)
            if failure.name != "transient":
                break
            if number + 1 < _RETRIES:
                self.steps.say(f"{message_of(done.errors)}; trying again")
                time.sleep(min(self.pause, 2**number))
        raise GcloudError(failure, done.errors)

    def on_hosts(self, verb: str, *words: str, line: str = "") -> int:
        """Calls `queued-resources ssh` or `scp`, with output to the terminal. Returns its exit status.

        Args:
          verb: `ssh` or `scp`.
          words: what follows it.
          line: what the shells of the hosts run; empty for `scp`.
        """
        argv = ["gcloud", "compute", "tpus", "queued-resources", verb, *words]
        argv += [f"--zone={self.zone}", f"--project={self.project}", "--quiet"]
        return self.steps.run([*argv, f"--command={line}"] if line else argv).status

    def describe(self, name: str) -> tuple[str, str]:
        """Returns the state of a queued resource, or `MISSING`, and what the service says of a failure."""
        try:
            done = self.queued("describe", name, "--format=json(state)")
        except GcloudError as error:
            if error.failure.name == "missing":
                return "MISSING", ""
            raise
        return ("ACTIVE", "") if self.steps.dry_run else _state_in(done.output)


def _state_in(text: str) -> tuple[str, str]:
    try:
        state: Any = json.loads(text)["state"]
        reason = state.get("failedData", {}).get("error", {}).get("message", "")
        return str(state["state"]), " ".join(str(reason).split())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"gcloud describes the queued resource as {shown(text)}; update it: gcloud components update"
        ) from None
