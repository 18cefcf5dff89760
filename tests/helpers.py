"""What several test files share: a small problem, its experiment, its runs, and an experiment as a file."""

import functools
import os
import signal
from types import SimpleNamespace

import jax
import numpy as np

from dl import optimizers, task
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.experiment import Experiment
from dl.models.mlp import MLP
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.log import read_metrics
from dl.runs.run import Run
from dl.training.loop import train_run

# A network that runs once is compiled faster without optimisation.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

REAL_DATA = os.environ.get("TFDS_DATA_DIR", "")


def source_of(size, seed):
    random = np.random.default_rng(seed)
    features = random.normal(size=(size, 3)).astype(np.float32)
    return ArraySource({"features": features, "label": np.int32(features.sum(1) > 0)})


MODEL = MLP(hidden=(8,), num_classes=2, dropout=0.2)
DATA = ArraySplits(
    "halfspace",
    train=source_of(50, 0),
    evaluations={"validation": source_of(21, 1), "test": source_of(13, 2)},
)
EXPERIMENT = Experiment(
    data=DATA,
    task=task.classification(MODEL, input_name="features"),
    tx=optimizers.adam(optimizers.linear(1e-2, 12)),
    num_steps=12,
    batch_size=16,
    eval_batch_size=8,
)


def definition_of(experiment=EXPERIMENT, options=None, name="experiments.test"):
    """Returns the definition of an experiment whose function has the options that are given."""
    return Definition(lambda **options: experiment, options or {"num_steps": 12}, name)


def run_in(folder, options=None, name="experiments.test", experiment=EXPERIMENT, **how):
    return Run(folder, definition_of(experiment, options, name), **how)


def train_in(folder, mesh, experiment=EXPERIMENT, options=None, name="experiments.test", **kwargs):
    """Trains in a folder, and returns what result.json says."""
    kwargs = {"log_every": 1, "console": Console(is_quiet=True), **kwargs}
    return train_run(run_in(folder, options, name, experiment), mesh, **kwargs).record


def replace_training(monkeypatch, train):
    """Replaces the training of the runs of a study by a function that returns the content of result.json."""

    def train_run(run, mesh, *, population, console, with_baseline=False):
        return SimpleNamespace(record=train(run.definition.build(), run, mesh, population, console))

    monkeypatch.setattr("dl.studies.runs.train_run", train_run)


def losses_of(folder):
    return {
        line["step"]: line["loss"]
        for line in read_metrics(folder / "metrics.jsonl")
        if line["kind"] == "train"
    }


def without_timing(folder):
    timing = ("seconds", "examples_per_second")
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: v for name, v in line.items() if name not in timing} for line in lines]


def step_of(folder):
    """Returns the step of the newest checkpoint; a signal is seen a few steps after it came."""
    return max(int(path.name) for path in (folder / "checkpoints").iterdir())


class SignallingConsole(Console):
    """A console that sends a signal once a step's metrics were recorded, as a user would."""

    def __init__(self, step, number=signal.SIGTERM):
        super().__init__(is_quiet=True)
        self.is_live = True
        self._at, self._number = step, number

    def start(self, num_steps):
        pass

    def progress(self, step, description, figures):
        if step == self._at:
            os.kill(os.getpid(), self._number)


# An experiment as the text of a file, for commands that take the path of one.
PLANE = '''
"""Three weights and a bias learn a plane, by plain gradient descent."""
import dataclasses

import numpy as np

from dl import Experiment, NonNegativeFloat, PositiveFloat, PositiveInt, Seed, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP
from dl.penalties import l2, with_penalty


class Unreadable(ArraySource):
    def __getitem__(self, indices):
        raise AssertionError("the test split was read")

    @property
    def arrays(self):
        return {"features": np.zeros((4, 3), np.float32), "label": np.zeros(4, np.int32)}

    def __init__(self):
        pass


def source(size, seed):
    features = np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)
    return ArraySource({"features": features, "label": np.int32(features.sum(1) > 0)})


def experiment(
    learning_rate: PositiveFloat = 0.1,
    decay: NonNegativeFloat = 0.0,
    batch_size: PositiveInt = 16,
    num_epochs: PositiveInt = 1,
    wide: bool = False,
    seed: Seed = 0,
) -> Experiment:
    """Trains.

    Args:
      decay: of the weights, in the loss.
    """
    model = MLP(hidden=(8,) if wide else (), num_classes=2)
    learned = task.classification(model, input_name="features")
    return Experiment(
        data=ArraySplits(
            "plane", train=source(32, 0), evaluations={"validation": source(24, 1), "test": Unreadable()}
        ),
        task=with_penalty(learned, l2(decay)),
        tx=optimizers.sgd(learning_rate),
        num_steps=num_epochs * max(32 // batch_size, 1),
        batch_size=batch_size,
        eval_batch_size=24,
        seed=seed,
    )
'''
