"""Every experiment: it builds, trains, is killed without warning, resumes, and ends in the same bits.

Each run is a process of its own on one core: with several threads the CPU compiler's sums may differ from
run to run in the last bit. The processes are forked from one that has imported everything and started
nothing, so that none has to import it again.
"""

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dl.runs.find import known_experiments

ROOT = Path(__file__).parent.parent
NAMES = sorted(known_experiments())
WITH_ONEDNN = {"mnist_cnn", "char_gpt"}  # its calls are compiled in each run anew; one network of each kind

# Reads jobs, one in a line. Forks a process for each, and prints its exit status.
SERVER = """
import os
cores = sorted(os.sched_getaffinity(0))
worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
os.sched_setaffinity(0, {cores[worker % len(cores)]})
import dataclasses, functools, importlib, inspect, json, pathlib, signal, sys, traceback, warnings
import optax, orbax.checkpoint, tensorflow_datasets
import jax
import dl.report
from dl.runs.console import Console
from dl.training.loop import train_run
from dl.runs.definition import Definition
from dl.models import mobilenet
from dl.runs.run import Run
from dl.sharding import make_mesh
warnings.filterwarnings("ignore", message=".*fork.*")  # JAX is imported, and has started no thread

class Killing(Console):
    is_live = True
    kill_at = 0
    def start(self, num_steps): pass
    def progress(self, step, description, figures):
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

def work(name, folders, kill_at, has_onednn):
    if not has_onednn:  # its calls cannot be loaded from the cache of programs
        jax.config.update("jax_default_matmul_precision", "default")
    few = mobilenet.V2_STAGES[:2]  # a block of each kind, in place of seventeen, which compile for a minute
    mobilenet.mobilenet_v2 = functools.partial(mobilenet.mobilenet_v2, stages=few)
    experiment_fn = importlib.import_module(f"experiments.{name}").experiment
    parameters = inspect.signature(experiment_fn).parameters
    small = {"dataset": "digits", "backbone": "random", "smoke": True, "num_epochs": 1}
    small |= {"dim": 32, "num_layers": 1, "num_heads": 2, "sequence_length": 16, "max_length": 16}
    options = {option: value for option, value in small.items() if option in parameters}
    if "tokenizer" in parameters or name == "finetune_gpt":
        options["dataset"] = "auto"  # without prepared sets, texts that come with Python
    if "image_size" in parameters:
        options["image_size"] = min(32, parameters["image_size"].default)
    kind = str(getattr(parameters.get("tokenizer"), "default", "")).partition(":")[0]
    if kind in ("bpe", "wordpiece"):
        options["tokenizer"] = f"{kind}:400"
    experiment = dataclasses.replace(
        experiment_fn(**options), num_steps=6, batch_size=8, eval_batch_size=180, eval_every=4
    )
    console = Killing(is_quiet=True)
    console.kill_at, console.is_live = kill_at, kill_at > 0
    definition = Definition(lambda **options: experiment, options, name)
    how = {"log_every": 1, "save_every": 0, "with_baseline": False}
    for folder in folders:
        train_run(Run(pathlib.Path(folder), definition), make_mesh({"data": 1}), console=console, **how)

for line in sys.stdin:
    job = json.loads(line)
    printed = job.pop("printed")
    child = os.fork()
    if child == 0:
        status = 1
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            work(**job)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that trains a few steps of an experiment on small batches, in each of some folders.

    At a step above 0 the process kills itself. It returns its exit status and what it printed.
    """
    folder = tmp_path_factory.mktemp("data")
    environment = dict(os.environ)
    environment |= {"TFDS_DATA_DIR": str(folder), "JAX_PLATFORMS": "cpu"}
    # Most of the time of this test is compilation. So LLVM does not optimise, which does not matter to what
    # is tested, and what the killed process compiles, the other loads.
    environment |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / ".compiled")}
    server = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVER],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    stdin, stdout = server.stdin, server.stdout

    def call(name, folders, kill_at=0):
        printed = folder / "printed.txt"
        job = {"name": name, "folders": list(map(str, folders)), "kill_at": kill_at, "printed": str(printed)}
        stdin.write(json.dumps({**job, "has_onednn": name in WITH_ONEDNN}) + "\n")
        stdin.flush()
        return int(stdout.readline()), printed.read_text()

    with server:  # which closes its pipes and waits
        yield call
    assert server.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_ends_in_the_same_bits(name, tmp_path, run):
    status, printed = run(name, [tmp_path / "killed"], kill_at=5)
    assert status == -signal.SIGKILL, printed
    # Without a complete checkpoint the second start would begin anew, and prove nothing.
    assert [p for p in (tmp_path / "killed" / "checkpoints").iterdir() if p.name.isdigit()]
    status, printed = run(name, [tmp_path / "killed", tmp_path / "whole"])
    assert status == 0, printed
    results = [json.loads((tmp_path / folder / "result.json").read_text()) for folder in ("whole", "killed")]
    assert results[0]["params_digest"] == results[1]["params_digest"]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert len(json.loads((tmp_path / "killed" / "run.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_small_and_says_how_to_run_it(name):
    text = (ROOT / "experiments" / f"{name}.py").read_text()
    tree = ast.parse(text)
    assert f"python -m experiments.{name}" in (ast.get_docstring(tree) or "")
    lines = {k for k, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    assert len(lines) < 60
    assert "locals()" not in text  # options are named, so that a reader sees which ones go on
