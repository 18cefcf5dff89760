"""The time of whole commands that train on MNIST to the same accuracy.

All train the same convolutional network; `dl` also trains the perceptron that reaches the accuracy first. A
command is timed from its start to its exit: imports, data, compilation, training, evaluation and, for `dl`,
the report of the run. With a cold cache there are no compiled programs; with a warm one the same command has
run before. The images are decoded before: for `dl` in its cache, and for the others in one file of arrays.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.contestants import ALLOCATOR, OURS
from benchmarks.peers.process import ROOT, num_cores
from dl.data import image_classification
from dl.errors import UserError

TARGET = 0.98
SAME = f"{OURS}, same network"
FASTEST = f"{OURS}, mnist_mlp"
FASTEST_OPTIONS = ["--hidden", "512", "--num-epochs", "4", "--learning-rate", "0.002", "--schedule", "cosine"]
CACHES = ("cold", "warm")
LIMIT_SECONDS = 1800.0
PROGRAMS = Path(__file__).parent / "programs"


@dataclasses.dataclass
class Commands:
    """What was measured.

    Attributes:
      seconds: seconds of each round by command and by cache.
      accuracies: validation and test accuracy, and the epochs, of each run of a command.
      left_out: the reason for each command that was not measured.
    """

    seconds: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    accuracies: dict[str, list[dict[str, float]]] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON."""
        return dataclasses.asdict(self)


def time_commands(frameworks: Collection[str], num_rounds: int, tell: Callable[[str], None]) -> Commands:
    """Runs every command with a cold and then with a warm cache, in each of some rounds.

    Args:
      frameworks: the frameworks beside `dl`.
      num_rounds: number of rounds.
      tell: prints a line of progress.

    Raises:
      UserError: MNIST is not prepared and cannot be downloaded.
    """
    found = Commands()
    with tempfile.TemporaryDirectory(prefix="dl-peers-") as name:
        folder = Path(name)
        with _cache_in(folder / "data"):
            _write_mnist(folder / "mnist.npz")
        commands = {
            SAME: _experiment("mnist_cnn", "--network", "classic"),
            FASTEST: _experiment("mnist_mlp", *FASTEST_OPTIONS),
            "PyTorch": _program("torch_mnist.py", folder),
            "Keras, TensorFlow": _program("keras_mnist.py", folder),
            "Keras, JAX": _program("keras_mnist.py", folder),
        }
        kept = {
            label: words for label, words in commands.items() if label.split(",")[0] in (OURS, *frameworks)
        }
        found.seconds = {label: {cache: [] for cache in CACHES} for label in kept}
        found.accuracies = {label: [] for label in kept}
        for number in range(num_rounds):
            for label, words in kept.items():
                own = folder / f"{label}-{number}".replace(", ", "-")
                for cache in CACHES:
                    if label not in found.left_out:
                        _time(found, label, words, own, cache, tell)
    return found


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Returns a context in which decoded images are kept in a folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def _experiment(name: str, *options: str) -> list[str]:
    chosen = ("--dataset", "mnist", "--target-accuracy", str(TARGET))
    return [sys.executable, "-m", f"experiments.{name}", *options, *chosen]


def _is_ours(label: str) -> bool:
    return label.split(",")[0] == OURS


def _program(name: str, folder: Path) -> list[str]:
    return [sys.executable, str(PROGRAMS / name), str(folder / "mnist.npz"), str(TARGET)]


def _time(
    found: Commands, label: str, words: Sequence[str], folder: Path, cache: str, tell: Callable[[str], None]
) -> None:
    """Runs one command, and adds its time and its accuracy."""
    run = folder / cache
    words = [*words, "--workdir", str(run)] if _is_ours(label) else list(words)
    started = time.perf_counter()
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=_environment(os.environ, label, folder / "cache", folder.parent / "data"),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            found.left_out[label] = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        else:
            result = _of_run(run) if _is_ours(label) else json.loads(done.stdout.strip().splitlines()[-1])
            found.seconds[label][cache].append(seconds)
            found.accuracies[label].append(result)
            tell(f"{label}, {cache} cache: {seconds:.1f} s, test accuracy {result['test']:.2%}")
            if result["validation"] < TARGET:
                found.left_out[label] = f"validation accuracy {result['validation']:.2%} after ten epochs"
        return
    found.left_out[label] = f"it took more than {LIMIT_SECONDS:.0f} s"


def _environment(of: Mapping[str, str], label: str, cache: Path, decoded: Path) -> dict[str, str]:
    made = {name: value for name, value in of.items() if name not in ALLOCATOR}
    cores = str(num_cores())
    made |= {"XDG_CACHE_HOME": str(cache), "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    if _is_ours(label):
        made |= {"XDG_CACHE_HOME": str(decoded), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    if label.startswith("Keras"):
        backend = "jax" if label.endswith("JAX") else "tensorflow"
        made |= {"KERAS_BACKEND": backend, "KERAS_HOME": str(cache), "TF_CPP_MIN_LOG_LEVEL": "3"}
    # As the users of the others may do, where it helps; `dl` is measured as it is.
    return made if _is_ours(label) else {**made, **ALLOCATOR, "OMP_NUM_THREADS": cores}


def _of_run(folder: Path) -> dict[str, float]:
    """Returns the accuracies and the epochs of a finished run of `dl`."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    metrics = result["metrics"]
    return {
        "validation": metrics["validation"]["accuracy"],
        "test": metrics["test"]["accuracy"],
        "epochs": result["epochs"],
    }


def _write_mnist(path: Path) -> None:
    """Writes the splits that `dl` uses as arrays."""
    data = image_classification("mnist")
    if "test" not in data.evaluations:
        raise UserError("the set mnist has no test split; prepare the official MNIST")
    arrays = {}
    for name, source in {"train": data.train, "val": data.validation, "test": data.test}.items():
        part = source[np.arange(len(source))]
        arrays |= {f"x_{name}": part["image"], f"y_{name}": part["label"]}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def command_table(found: Commands) -> str:
    """Returns a table in Markdown: median seconds, the ratios of `dl` to them, and the mean test accuracy."""
    lines = [
        "| command | cold cache, s | warm cache, s | test accuracy | epochs |",
        "|---|---:|---:|---:|---:|",
    ]
    kept = {label: of for label, of in found.seconds.items() if label not in found.left_out}
    ours = {
        cache: [statistics.median(of[cache]) for label, of in kept.items() if _is_ours(label) and of[cache]]
        for cache in CACHES
    }
    for label, of in kept.items():
        cells = []
        for cache in CACHES:
            median = statistics.median(of[cache])
            ratios = [f"{seconds / median:.2f}" for seconds in ours[cache]]
            beside = f" ({', '.join(ratios)})" if ratios and not _is_ours(label) else ""
            cells.append(f"{median:.1f}{beside}")
        test = statistics.mean(one["test"] for one in found.accuracies[label])
        epochs = statistics.median(one["epochs"] for one in found.accuracies[label])
        lines.append(f"| {label} | {' | '.join(cells)} | {100 * test:.2f} % | {epochs:.0f} |")
    lines += [f"left out: {label} ({reason})" for label, reason in found.left_out.items()]
    return "\n".join(lines)
