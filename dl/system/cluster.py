"""The place of a process in a run of several processes.

All processes start the same command, one on each host or for each device. Where they run is read from options
or from the environment: `DL_COORDINATOR`, `DL_NUM_PROCESSES` and `DL_PROCESS_ID`, which launchers set, or the
variables of SLURM and Open MPI and the metadata of Cloud TPU, which JAX reads.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dl.errors import UserError

COORDINATOR = "DL_COORDINATOR"
NUM_PROCESSES = "DL_NUM_PROCESSES"
PROCESS_ID = "DL_PROCESS_ID"

_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # number of processes of a job step
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_DETECTION_TIMEOUT = 60  # seconds


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The place of this process among the processes of a run.

    Attributes:
      host: host of process 0.
      port: port at which process 0 waits for the others.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      local_device_ids: the devices of this process on its host. `None` means all.
    """

    host: str
    port: int
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def find_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Cluster | None:
    """Returns the place that the arguments or the environment describe; `None` for a single process.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      environment: environment variables. `None` means those of this process.

    Raises:
      UserError: the description is not complete or not valid.
    """
    environment = os.environ if environment is None else environment
    given = {
        COORDINATOR: coordinator or environment.get(COORDINATOR),
        NUM_PROCESSES: environment.get(NUM_PROCESSES) if num_processes is None else num_processes,
        PROCESS_ID: environment.get(PROCESS_ID) if process_id is None else process_id,
    }
    missing = [name for name, value in given.items() if value in (None, "")]
    if len(missing) == len(given):
        return _detected() if _is_detectable(environment) else None
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be given too; a run of several processes needs --coordinator "
            "HOST:PORT, --num-processes N and --process-id K, or the environment variables "
            f"{COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID}"
        )
    host, port = _address(str(given[COORDINATOR]))
    count, number = (_whole(name, given[name]) for name in (NUM_PROCESSES, PROCESS_ID))
    if not 0 <= number < count:
        raise UserError(
            f"process_id={number} is out of range; with num_processes={count} it must be between 0 and "
            f"{max(count - 1, 0)}"
        )
    return Cluster(host, port, count, number) if count > 1 else None


def _address(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise UserError(
            f"coordinator={text!r:.100} is not an address; write HOST:PORT, such as 10.0.0.2:8476, with a "
            "port that is free on the host of process 0"
        )
    return match[1].strip("[]"), int(match[2])


def _whole(name: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise UserError(f"{name}={value!r:.100} is not a whole number; write one, such as 2") from None


def _is_detectable(environment: Mapping[str, str]) -> bool:
    """Whether the environment is one in which JAX finds the other processes."""
    if any(environment.get(name, "1") not in ("", "1") for name in _COUNTS):
        return True
    if environment.get("JAX_PLATFORMS", "").split(",")[0] not in ("", "tpu"):
        return False
    return importlib.util.find_spec("libtpu") is not None and any(
        Path(device).exists() for device in _TPU_DEVICES
    )


def _detected() -> Cluster | None:
    # JAX has no public function for this. `jax.distributed.initialize` would connect at once, and ends the
    # process without an explanation where another one is missing.
    from jax._src.clusters import ClusterEnv

    try:
        address, count, number, device_ids = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, _DETECTION_TIMEOUT
        )
        host, port = _address(str(address))
        count, number = _whole("number of processes", count), _whole("number of this process", number)
    except Exception as error:  # of requests, of a missing variable, of a host that is not known
        raise UserError(
            f"the other processes of this job cannot be found ({type(error).__name__}: {str(error)[:200]}); "
            "give --coordinator HOST:PORT, --num-processes N and --process-id K"
        ) from None
    return Cluster(host, port, count, number, device_ids) if count > 1 else None
