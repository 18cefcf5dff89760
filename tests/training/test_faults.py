"""The short form of the campaign of injected faults."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_no_fault_is_silent_loses_a_run_or_ends_in_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--short"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
