"""The networks in `dl`, trained by its trainer: the reference of the others, and rounds that are timed."""

import dataclasses
import math
import tempfile
import time
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
import optax

import dl
from benchmarks.peers.networks import NETWORKS, Decoder, Network
from benchmarks.peers.reference import NUM_STEPS, Reference
from benchmarks.peers.turns import Turns
from dl import optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.data.pipeline import rows_of_step
from dl.experiment import stored_batch
from dl.models.airbench import Airbench
from dl.models.cnn import CNN, ConvNet
from dl.models.llama import Llama
from dl.models.mlp import MLP
from dl.models.mobilenet import mobilenet_v2
from dl.models.resnet import resnet18
from dl.models.scaling import minus_one_to_one
from dl.runs.console import Console
from dl.system.allocator import keep_memory
from dl.training.state import num_params

ENDLESS = 10**8  # steps of a training that ends with its process
WHITEN = "whiten/kernel"


def model_of(name: str, *, has_dropout: bool) -> nn.Module:
    """Returns the module that the experiment of a name trains, with or without its dropout."""
    models: dict[str, nn.Module] = {
        "mlp_342": MLP(hidden=(4,), num_classes=2),
        "mnist_mlp": MLP(hidden=(128, 64), num_classes=10),
        "pyramid": ConvNet(num_classes=10, dropout=0.3 if has_dropout else 0.0),
        "classic": CNN(channels=(32,), hidden=(128,), num_classes=10),
        "net_sgd": CNN(channels=(32, 64), hidden=(512,), num_classes=10, pool=True),
        "cifar10_net": CNN((64, 128), (1000,), 10, pool=True, padding="SAME"),
        "resnet18": resnet18(10, small_images=True, scaling=minus_one_to_one),
        "mobilenetv2": mobilenet_v2(10, momentum=0.9, dropout=0.0),
        "airbench": Airbench(10, (32, 96, 128)),
        "gpt": Llama(65, 128, 4, 4, is_tied=True),
    }
    return models[name]


def experiment_of(name: str, *, has_dropout: bool = True) -> dl.Experiment:
    """Returns the experiment: the module of a name on the examples of the comparison."""
    network = NETWORKS[name]
    model = model_of(name, has_dropout=has_dropout)
    inputs, labels = network.examples()
    if isinstance(network.layers, Decoder):
        features, learned = {"tokens": inputs, "targets": labels}, task.language_model(model)
    else:
        features, learned = {"image": inputs, "label": labels}, task.classification(model)
    return dl.Experiment(
        data=ArraySplits("random", train=ArraySource(features)),
        task=learned,
        tx=optimizer_of(network),
        num_steps=ENDLESS,
        batch_size=network.batch_size,
        frozen=(f"^{WHITEN}",) if name == "airbench" else (),
    )


def optimizer_of(network: Network) -> optax.GradientTransformation:
    """Returns the optimizer of a network."""
    of = network.optimizer
    if of.kind == "sgd":
        return optimizers.sgd(
            of.learning_rate, of.momentum, nesterov=bool(of.momentum), clip_norm=of.clip_norm
        )
    if of.kind == "adam":
        return optimizers.adam(of.learning_rate, clip_norm=of.clip_norm)
    return optimizers.adamw(of.learning_rate, weight_decay=of.weight_decay, clip_norm=of.clip_norm)


def make_reference(name: str) -> Reference:
    """Returns the reference of a network, from four steps of the trainer without dropout."""
    experiment = dataclasses.replace(experiment_of(name, has_dropout=False), num_steps=NUM_STEPS)
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), stored_batch(experiment, 2))
    variables = jax.device_get(jax.jit(experiment.init)(jax.random.key(0), batch))
    result = dl.train(
        dataclasses.replace(experiment, warm_start=variables), log_every=1, console=Console(is_quiet=True)
    )
    losses = [row["loss"] for row in result.history if row["kind"] == "train"]
    size = len(experiment.data.train)
    rows = [rows_of_step(size, experiment.batch_size, experiment.seed, step)[0] for step in range(NUM_STEPS)]
    weights = flax.traverse_util.flatten_dict(variables, sep="/")
    return Reference(weights, np.stack(rows), losses, num_params(variables["params"]))


class _Pacer(Console):
    """A silent console that hands over the turn after an epoch, when the trainer writes its line.

    No step is in flight then, because the trainer has the metrics of all of them.
    """

    def __init__(self, turns: Turns, examples_per_epoch: int):
        super().__init__(is_quiet=True)
        self._turns = turns
        self._examples_per_epoch = examples_per_epoch
        self._seconds = self._started = math.nan  # before the first turn
        self._examples = 0

    def line(self, text: str) -> None:
        if not text.startswith("epoch "):
            return
        elapsed = time.perf_counter() - self._started
        self._examples += self._examples_per_epoch
        if elapsed < self._seconds:
            return
        if not math.isnan(elapsed):
            self._turns.end(self._examples, elapsed)
        self._examples, self._seconds = 0, self._turns.begin()
        self._started = time.perf_counter()


def run(name: str, turns: Turns) -> None:
    """Trains a network by `dl.train`, whenever it has the turn, in the way of `python -m experiments.NAME`.

    The metrics of every step are fetched, and are written to the log of the run every ten steps. No
    checkpoint is saved, and nothing is evaluated.
    """
    keep_memory()
    experiment = experiment_of(name)
    console = _Pacer(turns, len(experiment.data.train))
    with tempfile.TemporaryDirectory() as folder:
        dl.train(experiment, Path(folder) / "run", save_every=math.inf, console=console)
