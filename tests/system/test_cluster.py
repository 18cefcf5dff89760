"""Where a process finds its place among the processes of a run."""

import pytest

from dl.errors import UserError
from dl.system.cluster import find_cluster

ENVIRONMENT = {"DL_COORDINATOR": "10.0.0.2:8476", "DL_NUM_PROCESSES": "4", "DL_PROCESS_ID": "3"}


def test_a_process_alone_has_no_cluster():
    assert find_cluster(environment={}) is None
    assert find_cluster("localhost:1", 1, 0, {}) is None


def test_options_go_before_the_environment():
    found = find_cluster(environment=ENVIRONMENT)
    assert (found.host, found.port, found.num_processes, found.process_id) == ("10.0.0.2", 8476, 4, 3)
    found = find_cluster("[::1]:99", 8, 0, ENVIRONMENT)
    assert (found.host, found.port, found.num_processes, found.process_id) == ("::1", 99, 8, 0)


def test_the_variables_of_slurm_are_enough():
    environment = {
        "SLURM_JOB_ID": "71234",
        "SLURM_STEP_NODELIST": "tiger[05-06,11]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_NTASKS": "3",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        found = find_cluster()
    assert (found.host, found.num_processes, found.process_id) == ("tiger05", 3, 2)
    assert 0 < found.port < 2**16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"DL_PROCESS_ID": ""}, "DL_PROCESS_ID must be given too"),
        ({"DL_COORDINATOR": "10.0.0.2"}, "HOST:PORT"),
        ({"DL_COORDINATOR": "$(reboot):80"}, "HOST:PORT"),
        ({"DL_COORDINATOR": "host:99999"}, "HOST:PORT"),
        ({"DL_NUM_PROCESSES": "two"}, "not a whole number"),
        ({"DL_PROCESS_ID": "4"}, "between 0 and 3"),
        ({"DL_PROCESS_ID": "-1"}, "between 0 and 3"),
    ],
)
def test_a_description_that_cannot_be_is_one_line(changes, said):
    with pytest.raises(UserError, match=said) as caught:
        find_cluster(environment={**ENVIRONMENT, **changes})
    assert "\n" not in str(caught.value)
