"""Where a run comes from: the code, the software and the machine that made it."""

import ast
import hashlib
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "chex",
    "tensorflow-datasets",
    "numpy",
)


def code_digest(path: Path) -> str:
    """Returns a SHA-256 of a Python file that comments, docstrings and formatting do not change."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                child.value.value = ""  # a docstring, or another constant that nobody reads
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def software() -> dict[str, Any]:
    """Versions and the commit of the code, where it is a git checkout."""

    def git(*words: str) -> str:
        place = Path(__file__).parent
        return subprocess.run(
            ["git", *words], cwd=place, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is some other repository
        commit, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        commit, changed = None, None
    versions = {name: version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit,
        "uncommitted_changes": changed,
    }


def machine() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": jax.process_count(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def peak_memory(mesh: Mesh) -> dict[str, int]:
    """Returns the most memory that was in use, in bytes: `host`, of this process, and `device` where told."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    if used := [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]:
        peak["device"] = max(used)
    return peak


def describe_devices(mesh: Mesh) -> list[str]:
    """Returns the kind of each device of a mesh, such as `NVIDIA H100` or `cpu`."""
    return [device.device_kind for device in mesh.devices.flat]
