"""Every test runs on eight virtual CPU devices, with implicit broadcasting of ranks forbidden."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test compiles, the others load, in this process and in those that tests start. The folder is new in
# each session, so that nothing of another version is ever loaded. The workers of pytest-xdist share it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several workers plan for TPUs at the same time
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# LLVM optimises less, which compiles faster. All programs that were compared had the same bits.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

import jax
import pytest

# In the background or under nohup, Python ignores these, and the runs of the tests would leave them alone.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionfinish():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def mesh8():
    from dl.sharding import make_mesh

    return make_mesh({"data": 8})


@pytest.fixture(scope="session")
def mesh1():
    from dl.sharding import make_mesh

    return make_mesh({"data": 1})


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder that holds a prepared MNIST; tests that need it are skipped without one."""
    folder = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not list(folder.glob("mnist/*/dataset_info.json")):
        pytest.skip("needs prepared MNIST: set TFDS_DATA_DIR")
    return folder


@pytest.fixture
def bucket_server(monkeypatch):
    """The address of a stand-in for Google Cloud Storage, which has a bucket `stand-in`."""
    from tests.bucket_server import serve

    yield from serve(monkeypatch)


@pytest.fixture
def dl(capsys, monkeypatch):
    """Runs `python -m dl ARGUMENTS` in this process; returns its status, output and errors."""
    from dl.cli.commands import main

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["dl", *argv])
        with pytest.raises(SystemExit) as exit_:
            main(argv)
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, printed.err

    return run
