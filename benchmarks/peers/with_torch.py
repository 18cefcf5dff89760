"""The networks in PyTorch, trained by the loop that its users write, with fused optimizers."""

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.networks import Decoder, Network
from benchmarks.peers.reference import Reference
from benchmarks.peers.torch_layers import LanguageModel, sequence
from benchmarks.peers.turns import Turns


def optimizer_of(network: Network, model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer of a network."""
    of = network.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if of.kind == "sgd":
        return torch.optim.SGD(trained, of.learning_rate, of.momentum, nesterov=bool(of.momentum), fused=True)
    if of.kind == "adam":
        return torch.optim.Adam(trained, of.learning_rate, fused=True)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": of.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, of.learning_rate, fused=True)


class Training:
    """A network with its optimizer and its examples."""

    def __init__(self, network: Network, reference: Reference, *, is_compiled: bool, is_channels_last: bool):
        """Builds the network.

        Args:
          network: the network.
          reference: its initial weights.
          is_compiled: whether the loss is compiled by `torch.compile`.
          is_channels_last: whether images and kernels are in the memory format `channels_last`.
        """
        self._network = network
        inputs, labels = network.examples()
        stored = torch.from_numpy(inputs)
        self._labels = torch.from_numpy(labels).long()
        if isinstance(network.layers, Decoder):
            self.model: nn.Module = LanguageModel(network.layers, reference)
        elif network.is_image:
            height, width, channels = network.input_shape
            self.model, _ = sequence(network.sequence, (channels, height, width), reference)
            if not is_channels_last:
                stored = stored.permute(0, 3, 1, 2).contiguous()
        else:
            self.model, _ = sequence(network.sequence, network.input_shape, reference)
        self._inputs = stored
        if is_channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.model.train()
        self._clip_norm = network.optimizer.clip_norm
        self._optimizer = optimizer_of(network, self.model)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

        def loss(stored: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            if network.is_image:
                stored = stored.permute(0, 3, 1, 2) if is_channels_last else stored
                stored = stored.float() / 255
            return functional.cross_entropy(self.model(stored), labels.flatten())

        self._loss = torch.compile(loss) if is_compiled else loss

    @property
    def num_parameters(self) -> int:
        """Number of parameters, trained and frozen."""
        constant = {
            id(module.weight)
            for module in self.model.modules()
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad
        }
        return sum(p.numel() for p in self.model.parameters() if id(p) not in constant)

    def step(self, rows: torch.Tensor) -> torch.Tensor:
        """Makes one step on some rows of the examples, and returns the loss before it."""
        loss = self._loss(self._inputs[rows], self._labels[rows])
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        self._optimizer.step()
        return loss.detach()

    def losses(self, rows: np.ndarray) -> list[float]:
        """Makes a step on each row of `rows`, and returns the losses."""
        return [float(self.step(torch.from_numpy(of_step).long())) for of_step in rows]

    def epoch(self) -> int:
        """Makes an epoch in a random order, and returns its number of examples."""
        for rows in torch.randperm(len(self._labels)).split(self._network.batch_size):
            self.step(rows)
        return len(self._labels)


def run(network: Network, reference: Reference, variant: str, threads: int, turns: Turns) -> None:
    """Compares a network with its reference, and trains it whenever it has the turn.

    Args:
      network: the network.
      reference: its reference.
      variant: words of `compiled` and `channels-last`, or `eager`.
      threads: number of threads.
      turns: the turns.

    Raises:
      Different: the network is not that of the reference.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    words = variant.split()
    options = {"is_compiled": "compiled" in words, "is_channels_last": "channels-last" in words}
    training = Training(network.without_dropout, reference, **options)
    reference.check(training.num_parameters, training.losses(reference.rows))
    if network.has_dropout:
        training = Training(network, reference, **options)
    training.epoch()
    while True:
        seconds, examples, started = turns.begin(), 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            examples += training.epoch()
        turns.end(examples, time.perf_counter() - started)
