"""Starts a command in several processes on this machine, which train one run together.

    python -m launch.local 2 -- python -m experiments.mnist_cnn --workdir runs/two
    python -m launch.local 4 --devices 2 -- python -m experiments.mnist_mlp --mesh data=4,fsdp=2

Each process sees the devices of all. On a CPU, --devices 2 gives each process two virtual devices. Ctrl-C and
SIGTERM are passed on to all processes, which save and stop at the same step.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from dl.errors import UserError
from dl.system.cluster import COORDINATOR, NUM_PROCESSES, PROCESS_ID

GRACE = 30.0  # seconds in which the others end after the first failure; a stopped process never does
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
            environment = _environment(f"127.0.0.1:{port}", num_processes, number, num_devices)
            # A group of its own, so that Ctrl-C in a terminal reaches it once, from here.
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
    except OSError as error:
        for process in processes:
            process.kill()
        raise UserError(f"{command[0]} cannot be started ({error.strerror}); check its path") from None
    with _passing_signals_to(processes):
        return _status(_wait(processes))


def _environment(coordinator: str, count: int, number: int, num_devices: int | None) -> dict[str, str]:
    environment = {**os.environ, COORDINATOR: coordinator, NUM_PROCESSES: str(count), PROCESS_ID: str(number)}
    if num_devices is not None:
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={num_devices}".strip()
        environment["JAX_PLATFORMS"] = "cpu"
    return environment


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s N [--devices D] -- COMMAND …",
    )
    parser.add_argument("num_processes", metavar="N", type=int, help="Number of processes.")
    parser.add_argument(
        "--devices", metavar="D", type=int, help="Number of virtual CPU devices of each process."
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and runs it; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, command = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    options = _parser().parse_args(own)
    try:
        if not command:
            raise UserError(
                "the command is missing; write it after --, as in -- python -m experiments.mnist_mlp"
            )
        for name, value in (("N", options.num_processes), ("devices", options.devices)):
            if value is not None and value < 1:
                raise UserError(f"{name}={value} is out of range; it must be at least 1")
        return run_locally(command, options.num_processes, options.devices)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
