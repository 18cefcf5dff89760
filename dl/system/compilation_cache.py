"""The persistent compilation cache of JAX, in the user's cache folder: no run compiles what another has.

What lies there is machine code that is loaded and run. So the folder belongs to its user alone, and each
version of jaxlib and each set of CPU features has a subfolder: code for another CPU may hold instructions
that this one does not have.
"""

import hashlib
import os
import platform
import re
import shutil
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import jax

from dl.errors import UserError

MAX_BYTES = 2**30  # of a subfolder; JAX then removes what was not used for longest
MAX_AGE = 30 * 24 * 3600.0  # seconds after which the subfolder of another version or CPU is removed
MIN_SECONDS = 0.1  # programs that compile faster are not kept


def use_compilation_cache(cache: Path) -> str:
    """Makes JAX keep what this process compiles, and returns why it does not; empty if it does.

    To be called before the first compilation. A folder that the user chose (JAX_COMPILATION_CACHE_DIR, or
    `jax.config`) and JAX_ENABLE_COMPILATION_CACHE=false are left alone.

    Args:
      cache: the user's cache folder of `dl`.
    """
    is_chosen = jax.config.jax_compilation_cache_dir is not None  # type: ignore[attr-defined]
    if is_chosen or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return ""
    try:
        folder = _prepare(compiled_folder(cache.absolute()))
    except (OSError, UserError) as error:
        return str(error)
    # No result depends on the cache, so nobody needs to read that it could not be written.
    warnings.filterwarnings(
        "ignore", "Error (reading|writing) persistent compilation cache|Cache value for key"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    return ""


def compiled_folder(cache: Path) -> Path:
    """Returns the folder of this version of jaxlib and this CPU in the cache folder of `dl`."""
    features = hashlib.sha256(_cpu_features().encode()).hexdigest()[:12]
    return cache / "compiled" / f"jaxlib-{version('jaxlib')}-{features}"


def _prepare(folder: Path) -> Path:
    """Makes the folder, for its user alone, and returns it.

    Raises:
      OSError: it cannot be made.
      UserError: it belongs to somebody else.
    """
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for own in (folder.parent, folder):
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid != os.geteuid():
            raise UserError(f"{own} belongs to another user")
        own.chmod(0o700)
    os.utime(folder)
    for other in folder.parent.iterdir():
        if time.time() - other.stat().st_mtime > MAX_AGE:
            shutil.rmtree(other, ignore_errors=True)
    for entry in folder.glob("*-cache"):
        # JAX was killed between the two files of an entry. Without the second one it never writes again.
        entry.with_name(entry.name.removesuffix("-cache") + "-atime").touch()
    return folder


def _cpu_features() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # macOS
        text = ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return " ".join([platform.machine(), *sorted(found[1].split())] if found else [platform.processor()])
