"""SLURM: `python -m launch.slurm NAME [options] -- COMMAND`."""

import dataclasses
import shlex
from collections.abc import Sequence

from launch.cli import Parser, add_dry_run, run_as_command, split, whole_number
from launch.command import Command, check_command, check_name
from launch.errors import UserError
from launch.steps import FOLDER, Steps

ABOUT = """Submit a command to SLURM as a batch job. The job saves before its time limit and when it is
preempted, returns to the queue, and goes on in its --workdir.

examples:
  python -m launch.slurm mnist --time 1:00:00 --gpus-per-node 1 \\
    -- python -m experiments.mnist_cnn --workdir runs/mnist
  python -m launch.slurm tune --time 4:00:00 --workers 8 \\
    -- python -m dl sweep mnist_mlp learning_rate=log:1e-4:1e-1 --workdir runs/tune --worker

The submission folder and the --workdir must be on a file system that all nodes share. The job runs in the
environment of the shell that submits it: activate the virtual environment first."""

# A run that SIGTERM stopped has status 143: it has saved, and the same command resumes. One that lost a
# process has status 75, or 137 where srun reports the SIGKILL of that process, and resumes from its last
# checkpoint; if that repeats, another try is of no use. SLURM itself requeues a preempted job. The tasks of
# a step end each other: a kill by srun could hit one that still saves. One job of an array has the number of
# the whole array, and `scontrol requeue` would take it for all jobs.
_MAX_RESTARTS = 10  # of a job in all, after which a lost process ends it
_ALONE, _IN_ARRAY = "$SLURM_JOB_ID", "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
_BODY = """
set -u

# shellcheck disable=SC2016  # the words of the command stand for themselves
srun --kill-on-bad-exit=0 --wait=0 {command}
status=$?
if [ "$status" -eq 143 ]; then
  echo "stopped at $(date): saved; the job goes back into the queue" >&2
  scontrol requeue "{job}"
elif [[ "$status" =~ ^(75|137)$ && "${{SLURM_RESTART_COUNT:-0}}" -lt {max_restarts} ]]; then
  echo "lost a process at $(date): the job goes back into the queue, and resumes" >&2
  scontrol requeue "{job}"
fi
exit "$status"
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A batch job.

    Attributes:
      name: the name of the job.
      command: what each process runs.
      time: the time limit, as SLURM writes it.
      nodes: number of nodes.
      gpus_per_node: number of GPUs of each node; 0 for none.
      tasks_per_node: number of processes of each node; 0 for one for each GPU, and one without GPUs.
      cpus_per_task: number of CPU cores of each process; 0 for the default of the cluster.
      memory: memory of each node, such as `64G`; empty for the default of the cluster.
      partition: the partition; empty for the default one.
      account: the account that is charged; empty for the default one.
      qos: the quality of service; empty for the default one.
      workers: number of jobs of an array that all run the same command; 0 for a job that is not an array.
      save_seconds: how long before the time limit SIGTERM is sent.
    """

    name: str
    command: Command
    time: str
    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int = 0
    cpus_per_task: int = 0
    memory: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    workers: int = 0
    save_seconds: int = 120


def script_of(job: Job) -> str:
    """Returns the batch script of a job, for `sbatch`.

    JAX gives each process of a node the GPU with the number of the process, so that there is one process for
    each GPU. `--signal` without `B:` sends the signal to the steps, not to this script.
    """
    tasks = job.tasks_per_node or job.gpus_per_node or 1
    log = "%x-%A_%a.log" if job.workers else "%x-%j.log"
    options = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": job.gpus_per_node,
        "cpus-per-task": job.cpus_per_task,
        "mem": job.memory,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "array": f"0-{job.workers - 1}" if job.workers else "",
        "output": f"{FOLDER}/{log}",
        "open-mode": "append",
        "signal": f"TERM@{job.save_seconds}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    body = _BODY.format(
        command=shlex.join(job.command),
        job=_IN_ARRAY if job.workers else _ALONE,
        max_restarts=_MAX_RESTARTS,
    )
    return "\n".join(["#!/bin/bash", *lines, "#SBATCH --requeue", body])


def check_job(job: Job) -> Job:
    """Returns a job whose texts are all of the expected form; raises UserError for another."""
    name = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
    check_name("the name", job.name, name, "up to 64 letters, digits, dots, dashes and underscores")
    plain = r"[A-Za-z0-9_][A-Za-z0-9_.,+-]*"
    for what in ("partition", "account", "qos"):
        if text := getattr(job, what):
            check_name(f"--{what}", text, plain, "a name of letters, digits and _.,+-")
    if job.memory:
        check_name("--memory", job.memory, r"\d+[KMGT]?", "a number with K, M, G or T, such as 64G")
    seconds = _seconds(job.time)
    if seconds <= job.save_seconds:
        raise UserError(
            f"--time {job.time} is not longer than --save-seconds {job.save_seconds}; make it longer"
        )
    if job.workers and job.nodes > 1:
        raise UserError(
            f"--workers {job.workers} with --nodes {job.nodes} is not possible; a worker has one node"
        )
    if job.workers and "--worker" not in job.command:
        raise UserError("--workers starts the same command many times; add --worker to python -m dl sweep …")
    return job


def _seconds(text: str) -> int:
    """Returns the seconds of a time limit: minutes, or [days-]hours:minutes:seconds."""
    form = "a time such as 4:00:00 or 1-12:00:00"
    check_name("--time", text, r"(\d+-)?\d+:\d\d:\d\d|\d+", form)
    if text.isdigit():
        return 60 * int(text)
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def main(argv: Sequence[str]) -> int:
    """Writes the batch script of a job and submits it. Returns the exit status of `sbatch`."""
    own, words = split(argv)
    parser = _parser()
    options = vars(parser.parse_args(own or ["--help"]))
    steps = Steps(options.pop("dry_run"))
    job = check_job(Job(command=check_command(words), **options))
    path = FOLDER / f"{job.name}.sbatch"
    steps.write(path, script_of(job))
    return steps.run(["sbatch", str(path)]).status


def _parser() -> Parser:
    parser = Parser(
        "python -m launch.slurm",
        usage="python -m launch.slurm NAME [options] -- COMMAND",
        description=ABOUT,
    )
    parser.add_argument("name", metavar="NAME", help="Name of the job.")
    parser.add_argument(
        "--time", required=True, metavar="TIME", help="Time limit, such as 4:00:00 or 1-12:00:00."
    )
    number = whole_number(1)
    parser.add_argument("--nodes", metavar="N", type=number, default=1, help="Number of nodes. Default: 1.")
    parser.add_argument(
        "--gpus-per-node", metavar="N", type=whole_number(0), default=0, help="GPUs of each node. Default: 0."
    )
    parser.add_argument(
        "--tasks-per-node",
        metavar="N",
        type=number,
        default=0,
        help="Processes of each node. Default: one for each GPU, and one without GPUs.",
    )
    parser.add_argument(
        "--cpus-per-task", metavar="N", type=number, default=0, help="CPU cores of each process."
    )
    parser.add_argument("--memory", metavar="SIZE", default="", help="Memory of each node, such as 64G.")
    parser.add_argument("--partition", metavar="NAME", default="", help="Partition of the cluster.")
    parser.add_argument("--account", metavar="NAME", default="", help="Account that is charged.")
    parser.add_argument("--qos", metavar="NAME", default="", help="Quality of service.")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=number,
        default=0,
        help="Number of jobs that share a sweep. They form an array and run the same command.",
    )
    parser.add_argument(
        "--save-seconds",
        metavar="N",
        type=number,
        default=120,
        help="Seconds between SIGTERM and the time limit, in which the run saves. Default: 120.",
    )
    add_dry_run(parser)
    return parser


if __name__ == "__main__":
    run_as_command(main)
