"""Starts a command in several processes on this machine, which train one run together.

    python -m launch.local 2 -- python -m experiments.mnist_cnn --workdir runs/two
    python -m launch.local 4 --devices 2 -- python -m experiments.mnist_mlp --mesh data=4,fsdp=2

Each process sees the devices of all. On a CPU, --devices 2 gives each process two virtual devices. Ctrl-C and
SIGTERM are passed on to all processes, which save and stop at the same step.
"""

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from launch.cli import Parser, add_dry_run, run_as_command, split, whole_number
from launch.command import EXAMPLE
from launch.errors import UserError

ABOUT = __doc__
GRACE = 10.0  # seconds in which the others end after the first failure; a stopped process never does
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_locally(command: Sequence[str], num_processes: int, num_devices: int | None = None) -> int:
    """Runs a command in several processes on this machine, and returns the exit status of the run.

    It is 0 if all processes succeed, and else the status of the first process that failed by itself: not by a
    signal, if there is one.

    Args:
      command: the program and its arguments.
      num_processes: number of processes.
      num_devices: number of virtual CPU devices of each process. `None` means that JAX finds the devices.

    Raises:
      UserError: the program does not exist.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(num_processes):
            added = _environment(f"127.0.0.1:{port}", num_processes, number, num_devices, os.environ)
            environment = {**os.environ, **added}
            # A group of its own, so that Ctrl-C in a terminal reaches it once, from here.
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
    except OSError as error:
        for process in processes:
            process.kill()
        raise UserError(f"{command[0]} cannot be started ({error.strerror}); check its path") from None
    with _passing_signals_to(processes):
        return _status(_wait(processes))


def _environment(
    coordinator: str, count: int, number: int, num_devices: int | None, before: Mapping[str, str]
) -> dict[str, str]:
    """Returns the environment variables that a process gets in addition."""
    added = {"DL_COORDINATOR": coordinator, "DL_NUM_PROCESSES": str(count), "DL_PROCESS_ID": str(number)}
    if num_devices is not None:
        flags = f"{before.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
        added |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    return added


@contextlib.contextmanager
def _passing_signals_to(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Returns the statuses of all processes in the order in which they ended."""
    statuses: list[int] = []
    left = list(processes)
    deadline: float | None = None
    while left:
        for process in [process for process in left if process.poll() is not None]:
            left.remove(process)
            statuses.append(process.returncode)
        if any(statuses) and deadline is None:
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for process in left:
                process.kill()
        time.sleep(0.05)
    return statuses


def _status(statuses: Sequence[int]) -> int:
    failed = [status for status in statuses if status]
    by_itself = [status for status in failed if status > 0]
    return (by_itself or [128 - status for status in failed] or [0])[0]


def main(argv: Sequence[str]) -> int:
    """Reads the command line and runs it; returns the exit status."""
    own, command = split(argv)
    options = _parser().parse_args(own)
    if not command:
        raise UserError(f"there is no command; end the line with {EXAMPLE}")
    if options.dry_run:
        for number in range(options.num_processes):
            added = _environment("127.0.0.1:PORT", options.num_processes, number, options.devices, {})
            print(shlex.join(["env", *(f"{name}={value}" for name, value in added.items()), *command]))
        return 0
    return run_locally(command, options.num_processes, options.devices)


def _parser() -> argparse.ArgumentParser:
    usage = "python -m launch.local N [options] -- COMMAND"
    parser = Parser("python -m launch.local", usage=usage, description=ABOUT)
    parser.add_argument("num_processes", metavar="N", type=whole_number(1), help="Number of processes.")
    parser.add_argument(
        "--devices",
        metavar="D",
        type=whole_number(1),
        help="Number of virtual CPU devices of each process. Default: the devices that JAX finds.",
    )
    add_dry_run(parser)
    return parser


if __name__ == "__main__":
    run_as_command(main)
