"""The provenance of a run: the code, the software and the machine that made it."""

import ast
import hashlib
import inspect
import platform
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any

import jax
from jax.sharding import Mesh

from dl.experiment import Experiment
from dl.runs.find import stem_of_file
from dl.system.cores import num_cores

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
    """Returns a SHA-256 of the code in a Python file.

    Comments, docstrings, formatting and the version of Python do not change it.
    """

    def canonical(node: object) -> str:
        if isinstance(node, list):
            return f"[{','.join(map(canonical, node))}]"
        if not isinstance(node, ast.AST):
            return f"{type(node).__name__} {node!a}"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return "Expr"  # a docstring, or another constant that is not used
        if isinstance(node, ast.JoinedStr):  # versions of Python split the text of an f-string differently
            parts = [
                part.value.encode("utf-8", "surrogatepass").hex()
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                else f"({canonical(part)})"
                for part in node.values
            ]
            return f"JoinedStr {''.join(parts)}"
        fields = [
            f"{name}={canonical(value)}"
            for name, value in ast.iter_fields(node)
            if name not in ("kind", "type_ignores")
            and value is not None
            and value != []  # newer versions of Python have more fields
        ]
        return f"{type(node).__name__}({','.join(fields)})"

    return hashlib.sha256(canonical(ast.parse(path.read_bytes())).encode()).hexdigest()


def legacy_code_digest(path: Path) -> str:
    """Returns the digest of code in runs without an `id`, which depends on the version of Python."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                child.value.value = ""
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def function_digest(function: Callable[..., Any]) -> str:
    """Returns a SHA-256 of a function without a file, as in a notebook: of its source or bytecode."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return hashlib.sha256(repr(_facts_of(function.__code__)).encode()).hexdigest()
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _facts_of(code: CodeType) -> tuple[Any, ...]:
    constants = [_facts_of(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return (code.co_name, code.co_names, code.co_varnames, constants, code.co_code)


def software() -> dict[str, Any]:
    """Returns the versions of packages, and the commit of the code if it is a git checkout."""

    def git(*words: str) -> str:
        place = Path(__file__).parent
        return subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=place,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else the file is inside another repository
        commit, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        commit, changed = None, None
    versions = {name: version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit,
        "uncommitted_changes": changed,
    }


def numerics() -> dict[str, Any]:
    """Returns the settings of JAX that change random draws and dtypes. A resumed run must not change them."""
    return {
        "jax_threefry_partitionable": bool(jax.config.jax_threefry_partitionable),  # type: ignore[attr-defined]
        "jax_enable_x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
    }


def machine() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": num_cores(),
        "processes": jax.process_count(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def peak_memory(mesh: Mesh) -> dict[str, int]:
    """Returns the peak memory in bytes: `host` of this process, and `device` if it is known."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    if used := [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]:
        peak["device"] = max(used)
    return peak


def describe_devices(mesh: Mesh) -> list[str]:
    """Returns the kind of each device of a mesh, such as `NVIDIA H100` or `cpu`."""
    return [device.device_kind for device in mesh.devices.flat]


def module_name(experiment_fn: Callable[..., Experiment]) -> str:
    """Returns `experiments.NAME`, also for the module `__main__`; for a file its name without .py."""
    if experiment_fn.__module__ != "__main__":
        return stem_of_file(experiment_fn.__module__) or experiment_fn.__module__
    main_module = sys.modules["__main__"]
    spec = getattr(main_module, "__spec__", None)
    # A notebook and `python -c` do not have a file.
    return spec.name if spec else Path(getattr(main_module, "__file__", None) or experiment_fn.__name__).stem


def code_of(experiment_fn: Callable[..., Experiment]) -> str:
    """Returns the digest of the file that defines an experiment, or of the function if there is no file."""
    path = _file_of(experiment_fn)
    return code_digest(path) if path else function_digest(experiment_fn)


def legacy_code_of(experiment_fn: Callable[..., Experiment]) -> str:
    """Returns the digest as runs without an `id` recorded it."""
    path = _file_of(experiment_fn)
    return legacy_code_digest(path) if path else ""


def _file_of(experiment_fn: Callable[..., Experiment]) -> Path | None:
    try:
        path = inspect.getsourcefile(experiment_fn)
    except TypeError:  # a class or function of an interactive session
        return None
    return Path(path) if path and Path(path).is_file() else None
