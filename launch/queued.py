"""A TPU of Cloud TPU as a queued resource, and the steps of its life, from `create` to `delete`.

A request stands in a queue until the zone has capacity. Its hosts are virtual machines. On each of them, the
folder `dl-tpu` of the home folder holds the code (`source`), a Python environment (`venv`), the logs (`jobs`)
and what relative paths of the command name (`runs`).
"""

import dataclasses
import time
from pathlib import Path

from launch.archive import write_archive
from launch.command import Command, check_name, check_path, for_shell
from launch.errors import UserError
from launch.gcloud import Gcloud, GcloudError, failure_in
from launch.steps import FOLDER

# The software of a TPU VM, by the beginning of its accelerator type ("TPU software versions").
RUNTIMES = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
OLDER_RUNTIME = "tpu-ubuntu2204-base"
GONE = ("MISSING", "SUSPENDING", "SUSPENDED", "DELETING")  # states without hosts
PYTHON = "3.12"  # that is installed on the hosts; their own is older than dl needs


class Lost(UserError):
    """A queued resource has no hosts: they were preempted or deleted, or the zone had none to give."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a queued resource asks for; the names are those of the flags of `gcloud`.

    Attributes:
      accelerator_type: type and size, such as `v5litepod-8`.
      runtime_version: the software of the virtual machines; empty for that of the accelerator.
      node_count: number of slices.
      spot: whether the TPU may be taken away, for a lower price.
      reserved: whether it comes from a reservation of the project.
      internal_ips: whether the virtual machines have no external addresses.
      valid_until_duration: how long the request waits in the queue, such as `6h`; empty for no limit.
      service_account: the account of the virtual machines; empty for the default one.
      network: the network; empty for the default one.
      subnetwork: the subnetwork; empty for the default one.
    """

    accelerator_type: str
    runtime_version: str = ""
    node_count: int = 1
    spot: bool = False
    reserved: bool = False
    internal_ips: bool = False
    valid_until_duration: str = ""
    service_account: str = ""
    network: str = ""
    subnetwork: str = ""

    def flags(self, name: str) -> list[str]:
        """Returns the flags of `queued-resources create`."""
        nodes = [f"--node-count={self.node_count}", f"--node-prefix={name}"]
        flags = nodes if self.node_count > 1 else [f"--node-id={name}"]
        family = self.accelerator_type.partition("-")[0]
        runtime = self.runtime_version or RUNTIMES.get(family, OLDER_RUNTIME)
        flags += [f"--accelerator-type={self.accelerator_type}", f"--runtime-version={runtime}"]
        flags += [
            f"--{option.replace('_', '-')}"
            for option in ("spot", "reserved", "internal_ips")
            if getattr(self, option)
        ]
        texts = ("valid_until_duration", "service_account", "network", "subnetwork")
        return flags + [
            f"--{option.replace('_', '-')}={getattr(self, option)}"
            for option in texts
            if getattr(self, option)
        ]


@dataclasses.dataclass(frozen=True)
class QueuedTpu:
    """A queued resource by its name.

    Attributes:
      name: the name of the queued resource, and of its job on the hosts.
      gcloud: the calls of `gcloud`.
      tunnel: whether connections go through the Identity-Aware Proxy, for hosts without external addresses.
    """

    name: str
    gcloud: Gcloud
    tunnel: bool = False

    def create(self, request: Request) -> None:
        """Puts the request into the queue. Raises GcloudError where it is refused."""
        self.gcloud.queued("create", self.name, *request.flags(self.name))

    def wait(self) -> None:
        """Waits until the TPU is there.

        Raises:
          Lost: it is gone again, or the zone had no capacity for it.
          UserError: the request failed for another reason, such as a quota.
        """
        steps = self.gcloud.steps
        before = ""
        while True:
            state, reason = self.gcloud.describe(self.name)
            if steps.dry_run:
                steps.say(f"again every {self.gcloud.pause:g} s, until the state is ACTIVE")
                return
            if state != before:
                steps.say(f"{self.name}: {state}")
            if state == "ACTIVE":
                return
            if state == "FAILED":
                kind = Lost if failure_in(reason).name == "capacity" else UserError
                raise kind(f"the request {self.name} failed: {_explained(reason)}")
            if state == "MISSING":
                raise Lost(f"there is no queued resource {self.name} in {self.gcloud.zone}; create it first")
            if state in GONE:
                raise Lost(f"the TPU {self.name} was preempted ({state}); delete it and create it again")
            before = state
            time.sleep(self.gcloud.pause)

    def copy(self) -> None:
        """Copies the files that git tracks in the working folder to all hosts."""
        archive = FOLDER / f"{self.name}.tar.gz"
        steps = self.gcloud.steps
        steps.say(f"{archive}: the files that git tracks")
        if not steps.dry_run:
            write_archive(Path.cwd(), archive)
        self._require(self._scp([str(archive), f"{self.name}:code.tar.gz"], everywhere=True), "copy")
        unpack = [["rm", "-rf", "dl-tpu/source"], ["mkdir", "-p", "dl-tpu/source"]]
        self._require(self._ssh(*unpack, ["tar", "-xzf", "code.tar.gz", "-C", "dl-tpu/source"]), "copy")

    def install(self) -> None:
        """Installs Python and the code with its extra `tpu` on all hosts."""
        uv = ["python3", "-m", "uv"]
        status = self._ssh(
            [
                "env",
                "PIP_BREAK_SYSTEM_PACKAGES=1",
                "python3",
                "-m",
                "pip",
                "install",
                "--user",
                "--quiet",
                "uv",
            ],
            [*uv, "venv", "--quiet", "--clear", f"--python={PYTHON}", "dl-tpu/venv"],
            [*uv, "pip", "install", "--quiet", "--python=dl-tpu/venv/bin/python", "./dl-tpu/source[tpu]"],
        )
        self._require(status, "installation")

    def run(self, command: Command) -> int:
        """Starts the command on all hosts, or joins it, and shows its output. Returns its exit status.

        The command goes on if the connection is lost.
        """
        return self._job("run", "--", "venv/bin/python", *command[1:])

    def logs(self) -> int:
        """Shows the output of the command so far, and on to its end. Returns its exit status."""
        return self._job("follow")

    def stop(self) -> int:
        """Sends SIGTERM to the command on all hosts, and waits until it has saved and ended."""
        return self._job("stop")

    def ask(self) -> int:
        """Returns RUNNING, ENDED or NONE of `launch.worker`; another number if no host answers."""
        return self._job("ask")

    def fetch(self, remote: str, folder: Path) -> None:
        """Copies a path below the folder `dl-tpu` of the first host into a local folder."""
        check_path("the path", remote)
        if not self.gcloud.steps.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
        self._require(self._scp(["--recurse", f"{self.name}:dl-tpu/{remote}", f"{folder}/"]), "copy")

    def delete(self) -> None:
        """Deletes the hosts and the request; that they are gone already is not an error."""
        try:
            self.gcloud.queued("delete", self.name, "--force")
        except GcloudError as error:
            if error.failure.name != "missing":
                raise

    def _job(self, verb: str, *words: str) -> int:
        worker = ["python3", "source/launch/worker.py", verb, self.name, *words]
        return self._ssh(["cd", "dl-tpu"], worker)

    def _ssh(self, *commands: list[str]) -> int:
        return self._on_hosts("ssh", [self.name], ["--worker=all", "--node=all"], for_shell(*commands))

    def _scp(self, words: list[str], everywhere: bool = False) -> int:
        where = ["--worker=all", "--node=all"] if everywhere else ["--worker=0", "--node=0"]
        return self._on_hosts("scp", words, where)

    def _on_hosts(self, verb: str, words: list[str], where: list[str], line: str = "") -> int:
        flags = [*where, *["--tunnel-through-iap"] * self.tunnel]
        return self.gcloud.on_hosts(verb, *words, *flags, line=line)

    def _require(self, status: int, what: str) -> None:
        """Raises where a step on the hosts failed: Lost if they are gone, else UserError."""
        if status:
            state, _ = self.gcloud.describe(self.name)
            if state in GONE:
                raise Lost(f"the TPU {self.name} is gone ({state}); create it again")
            raise UserError(f"the {what} on {self.name} failed with status {status}; the reason stands above")


def check_request(request: Request) -> Request:
    """Returns a request whose texts are all of the expected form; raises UserError for another."""
    check_name(
        "--accelerator-type",
        request.accelerator_type,
        r"v\d[a-z0-9]*-\d+",
        "a type and a size, such as v5litepod-8",
    )
    plain = r"[A-Za-z0-9][A-Za-z0-9@._:/-]*"
    for what in ("runtime_version", "service_account", "network", "subnetwork"):
        if text := getattr(request, what):
            check_name(f"--{what.replace('_', '-')}", text, plain, "a name of letters, digits and @._:/-")
    if text := request.valid_until_duration:
        check_name("--valid-until-duration", text, r"(\d+[dhms])+", "a duration, such as 6h or 1d12h")
    if request.spot and request.reserved:
        raise UserError("--spot and --reserved exclude each other; leave one out")
    return request


def check_resource(name: str) -> str:
    """Returns the name of a queued resource; raises UserError for one that Google Cloud does not take."""
    form = "up to 40 lower-case letters, digits and dashes, beginning with a letter"
    return check_name("the name", name, r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", form)


def _explained(reason: str) -> str:
    """Returns what the service says of a failed request, with what to do."""
    if not reason:
        return "the service gives no reason; it may have waited longer than --valid-until-duration"
    return f"{reason} ({failure_in(reason).advice})"
