"""The allocator keeps freed memory, and leaves the settings of the environment alone."""

import os
import platform
import subprocess
import sys

import pytest

from dl.system import allocator

PROGRAM = """
import resource, sys
import numpy as np
from dl.system import allocator

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

print(allocator.state())
if "keep" in sys.argv:
    print(allocator.keep_memory())
before = resident()
np.ones(100_000_000, np.int8)
print(allocator.state())
print(resident() - before)
"""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run(*words):
    environment = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout.splitlines()


@only_glibc
def test_freed_memory_stays_in_the_process():
    *states, kept = run("keep")
    assert states == ["default", "keeps memory", "keeps memory"]
    assert int(kept) > 90_000_000
    *states, kept = run()
    assert states == ["default", "default"]
    assert int(kept) < 50_000_000


@only_glibc
def test_a_program_gets_the_same_memory_at_every_call():
    """A block of 100 MB does not fit into the heap of a thread of XLA."""
    program = """if True:
        import resource, sys
        from dl.system import allocator
        if "keep" in sys.argv:
            allocator.keep_memory()
        import jax, jax.numpy as jnp
        step = jax.jit(lambda array: array + 1)
        array = jnp.zeros(25_000_000)
        for _ in range(3):
            step(array).block_until_ready()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            step(array).block_until_ready()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    environment = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"}
    faults = [
        int(subprocess.check_output([sys.executable, "-c", program, *words], env=environment))
        for words in ([], ["keep"])
    ]
    assert faults[1] < faults[0] / 4  # the heap may still grow once


@only_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_ARENA_MAX", "4"),
        ("MALLOC_TRIM_THRESHOLD_", "1000000"),
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=4"),
    ],
)
def test_settings_of_the_environment_are_left_alone(name, value, monkeypatch):
    monkeypatch.setattr(allocator, "_state", allocator.state())  # which is put back
    monkeypatch.setenv(name, value)
    assert allocator.keep_memory() == "default (the environment has settings)"
    assert allocator.state() == "default (the environment has settings)"


def test_other_systems_say_that_they_have_no_such_setting(monkeypatch):
    monkeypatch.setattr(allocator, "_state", allocator.state())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert allocator.keep_memory() == "default (darwin has no such setting)"
