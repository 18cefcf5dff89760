"""A SLURM cluster of one node on this machine, from the programs of the packages `slurm-wlm` and `munge`.

Everything lies in one folder: the configuration, the key, the socket, the state and the logs. No file of a
cluster that this machine belongs to is read or changed.
"""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
URGENT = "urgent"  # the partition whose jobs take the nodes from those of the other one
NUM_CPUS = 8  # declared, so that all jobs of an array run at once on fewer cores

_CONFIGURATION = """\
ClusterName=dl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits for so many seconds; 120 without it.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName={urgent} Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing_programs() -> list[str]:
    """Returns the programs that are not installed."""
    return [name for name in PROGRAMS if not _path_of(name)]


def _path_of(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


class Cluster:
    """A context in which SLURM runs. At its end all jobs are cancelled and all daemons ended."""

    def __init__(self, folder: Path):
        """Takes an existing folder of a short path, because the socket's path is limited to 107 bytes."""
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.call("scancel", "--user", _user())
        wait_for(lambda: not self.call("squeue", "--noheader").strip(), 90)
        self._stop()

    def _start(self) -> None:
        munge = self.folder / "munge"
        for folder in (munge, self.folder / "state", self.folder / "spool"):
            folder.mkdir(mode=0o700)
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        (munge / "key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        text = _CONFIGURATION.format(
            host=host, ports=_free_ports(2), user=_user(), folder=self.folder, cpus=NUM_CPUS, urgent=URGENT
        )
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        (self.folder / "cgroup.conf").write_text("", encoding="utf-8")  # no plugin above reads it
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        paths = [f"--{option}={munge / name}" for option, name in files.items()]
        self._run("munged", "--foreground", "--force", f"--log-file={munge / 'log'}", *paths)
        if not wait_for((munge / "socket").exists, 10):
            raise RuntimeError(f"munged does not start:\n{self.logs()}")
        self._run("slurmctld", "-D")
        self._run("slurmd", "-D", "-N", host)
        if not wait_for(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"), 60):
            raise RuntimeError(f"SLURM does not start:\n{self.logs()}")

    def _run(self, name: str, *options: str) -> None:
        program = _path_of(name)
        assert program, name
        with (self.folder / f"{name}.out").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *options],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def call(self, *words: str) -> str:
        """Returns what a program of SLURM prints, also where it fails."""
        done = subprocess.run(
            words,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def about(self, job: str) -> dict[str, str]:
        """Returns what SLURM knows of a job, such as its `JobState`."""
        fields = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return {name: value for name, equals, value in (field.partition("=") for field in fields) if equals}

    def state(self, job: str) -> str:
        """Returns the state of a job, such as `RUNNING`; empty if SLURM does not know the job."""
        return self.about(job).get("JobState", "")

    def tasks(self, job: str) -> list[int]:
        """Returns the process ids of the tasks of a job: the trainers, without the script and `srun`."""
        rows = [line.split() for line in self.call("scontrol", "listpids", job).splitlines()[1:]]
        return [int(row[0]) for row in rows if len(row) == 5 and row[2].isdigit() and row[3].isdigit()]

    def logs(self) -> str:
        """Returns the ends of the logs of all daemons."""
        paths = sorted(
            [*self.folder.glob("*.out"), *self.folder.glob("*.log"), *self.folder.glob("munge/log")]
        )
        texts = [f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths]
        return "\n".join(texts)


def wait_for(is_true: Callable[[], object], seconds: float, every: float = 0.1) -> bool:
    """Waits until something is true; returns whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
