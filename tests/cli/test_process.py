"""What a command sets up in its process: `result.json` states it, and each part can be left out."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("is_on", [True, False])
def test_a_run_states_what_its_allocator_does_and_keeps_what_it_compiled(tmp_path, is_on):
    inherited = {
        k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR" and "MALLOC" not in k
    }
    off = [] if is_on else ["--no-keep-memory", "--no-compilation-cache"]
    words = ["--num-epochs", "1", "--dataset", "digits", "--no-report", "--no-baseline", "--workdir"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments.mnist_mlp", *words, str(tmp_path / "run"), *off],
        cwd=ROOT,
        env={**inherited, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    allocator = json.loads((tmp_path / "run" / "result.json").read_text())["allocator"]
    if platform.libc_ver()[0] == "glibc":
        assert allocator == ("keeps memory" if is_on else "default")
    # The program of the initial state: that of a step cannot be written if it calls oneDNN.
    assert bool(list(tmp_path.glob("dl/compiled/jaxlib-*/jit__init-*-cache"))) == is_on
