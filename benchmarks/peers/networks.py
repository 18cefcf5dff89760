"""The networks that are compared, as lists of layers that each framework builds in its own way.

A layer has the name of its parameters in the network of `dl`, such as `stage0_block0/conv0/conv`, so that all
frameworks start from the same weights. This module imports no framework.

Shapes: images are height × width × channels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution. `padding` is SAME or VALID as in TensorFlow, or a number of pixels on each side."""

    name: str
    channels: int
    kernel: int = 3
    strides: int = 1
    padding: Literal["SAME", "VALID"] | int = "SAME"
    bias: bool = True
    is_depthwise: bool = False
    is_frozen: bool = False  # the kernel, not the bias


@dataclasses.dataclass(frozen=True)
class Dense:
    """A dense layer."""

    name: str
    width: int
    bias: bool = True


@dataclasses.dataclass(frozen=True)
class Norm:
    """Batch normalisation."""

    name: str
    epsilon: float = 1e-5
    has_scale: bool = True


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation. GELU is its approximation by tanh."""

    kind: Literal["relu", "relu6", "gelu"]


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pool: the maximum of 2×2 windows, or the maximum or the mean of all pixels."""

    kind: Literal["max2", "max", "mean"]


@dataclasses.dataclass(frozen=True)
class Affine:
    """x ↦ factor · x + offset."""

    factor: float
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class BothSigns:
    """x ↦ (x, -x), twice as many channels."""


@dataclasses.dataclass(frozen=True)
class Flatten:
    """All values of an example as a vector, in the order height, width, channels."""


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Dropout; it is off where losses are compared."""

    rate: float


@dataclasses.dataclass(frozen=True)
class Residual:
    """shortcut(x) + body(x), where an empty shortcut is the identity."""

    body: Sequence["Layer"]
    shortcut: Sequence["Layer"] = ()


Layer = Conv | Dense | Norm | Activation | Pool | Affine | BothSigns | Flatten | Dropout | Residual


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A language model: RMSNorm, rotary positions, causal attention, SwiGLU, a tied head, no biases."""

    vocab_size: int = 65
    length: int = 64
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    hidden_dim: int = 352
    epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with a constant learning rate.

    Weight decay is decoupled, and is applied to matrices and kernels only. `clip_norm` is the largest global
    norm of the gradient.
    """

    kind: Literal["sgd", "adam", "adamw"]
    learning_rate: float
    momentum: float = 0.0  # Nesterov, as in PyTorch
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.kind} {self.learning_rate:g}"]
        parts += [f"Nesterov {self.momentum:g}"] if self.momentum else []
        parts += [f"decay {self.weight_decay:g}"] if self.weight_decay else []
        return ", ".join(parts + ([f"clip {self.clip_norm:g}"] if self.clip_norm else []))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and how it is trained.

    Attributes:
      layers: the layers, or the sizes of a language model.
      input_shape: shape of an example: an image of bytes, a vector of floats, or a row of tokens.
      num_classes: number of classes of the labels.
      batch_size: number of examples in a step.
      steps: number of steps in an epoch, which takes about a second or less on two cores.
      optimizer: the optimizer. The learning rate has no influence on the time of a step. Where that of the
        experiment would make the loss of random examples unstable, it is smaller.
    """

    layers: Sequence[Layer] | Decoder
    input_shape: tuple[int, ...]
    num_classes: int
    batch_size: int
    steps: int
    optimizer: Optimizer

    @property
    def is_image(self) -> bool:
        """Whether the input is an image."""
        return len(self.input_shape) == 3

    @property
    def has_dropout(self) -> bool:
        """Whether a layer drops values."""
        return any(isinstance(layer, Dropout) for layer in self.sequence)

    @property
    def sequence(self) -> Sequence[Layer]:
        """The layers; none for a language model."""
        return () if isinstance(self.layers, Decoder) else self.layers

    @property
    def without_dropout(self) -> "Network":
        """The same network without dropout."""
        kept = tuple(layer for layer in self.sequence if not isinstance(layer, Dropout))
        return dataclasses.replace(self, layers=kept) if self.has_dropout else self

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the inputs and labels of an epoch, the same in every process.

        They are random, because the time of a step does not depend on them: images of bytes, or normal
        vectors, with random classes; or rows of random tokens, each with the next token as its label.
        """
        rng = np.random.default_rng(0)
        size = self.batch_size * self.steps
        if isinstance(self.layers, Decoder):
            tokens = rng.integers(0, self.num_classes, (size, self.input_shape[0] + 1), dtype=np.int32)
            return tokens[:, :-1].copy(), tokens[:, 1:].copy()
        labels = rng.integers(0, self.num_classes, size, dtype=np.int32)
        if self.is_image:
            return rng.integers(0, 256, (size, *self.input_shape), dtype=np.uint8), labels
        return rng.normal(size=(size, *self.input_shape)).astype(np.float32), labels


def _conv_norm(
    name: str,
    channels: int,
    kernel: int = 3,
    strides: int = 1,
    padding: Literal["SAME"] | int = "SAME",
    *,
    activation: Literal["relu", "relu6"] | None = "relu",
    epsilon: float = 1e-5,
    is_depthwise: bool = False,
) -> list[Layer]:
    conv = Conv(f"{name}/conv", channels, kernel, strides, padding, bias=False, is_depthwise=is_depthwise)
    return [conv, Norm(f"{name}/norm", epsilon), *([Activation(activation)] if activation else [])]


def _perceptron(widths: Sequence[int], num_classes: int) -> list[Layer]:
    hidden: list[Layer] = []
    for number, width in enumerate(widths):
        hidden += [Dense(f"Dense_{number}", width), Activation("relu")]
    return [Flatten(), *hidden, Dense(f"Dense_{len(widths)}", num_classes)]


def _convolutions(
    channels: Sequence[int], hidden: int, *, pool: bool, padding: Literal["SAME", "VALID"]
) -> list[Layer]:
    layers: list[Layer] = []
    for number, width in enumerate(channels):
        layers += [Conv(f"Conv_{number}", width, padding=padding), Activation("relu")]
        layers += [Pool("max2")] if pool else []
    return [*layers, *_perceptron([hidden], 10)]


def _pyramid() -> list[Layer]:
    gelu = Activation("gelu")
    layers: list[Layer] = [Conv("Conv_0", 32, 5, 2), gelu]
    for number, width in ((1, 64), (3, 128)):
        layers += [Conv(f"Conv_{number}", width, 3, 2), gelu]
        layers += [Residual([Conv(f"Conv_{number + 1}", width), gelu])]
    return [*layers, Flatten(), Dropout(0.3), Dense("Dense_0", 10)]


def _resnet18() -> list[Layer]:
    layers: list[Layer] = [Affine(2, -1), *_conv_norm("stem", 64)]
    for stage in range(4):
        for index in range(2):
            name, width = f"stage{stage}_block{index}", 64 * 2**stage
            strides = 2 if stage and not index else 1
            body = [
                *_conv_norm(f"{name}/conv0", width, 3, strides, 1),
                *_conv_norm(f"{name}/conv1", width, 3, 1, 1, activation=None),
            ]
            shortcut = _conv_norm(f"{name}/shortcut", width, 1, strides, activation=None)
            layers += [Residual(body, shortcut if strides == 2 else ()), Activation("relu")]
    return [*layers, Pool("mean"), Dense("head", 10)]


def _mobilenet_v2() -> list[Layer]:
    stages = (  # those of `dl.models.mobilenet`, which would import JAX here
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    layers: list[Layer] = [Affine(2, -1), *_conv_norm("stem", 32, 3, 2, activation="relu6", epsilon=1e-3)]
    number, width = 0, 32
    for expansion, channels, repeats, first_strides in stages:
        for index in range(repeats):
            name, inner = f"block{number}", expansion * width
            strides = 1 if index else first_strides
            body = _conv_norm(f"{name}/expand", inner, 1, activation="relu6", epsilon=1e-3)
            body = [] if expansion == 1 else body
            body += _conv_norm(
                f"{name}/depthwise", inner, 3, strides, activation="relu6", epsilon=1e-3, is_depthwise=True
            )
            body += _conv_norm(f"{name}/project", channels, 1, activation=None, epsilon=1e-3)
            layers += [Residual(body)] if strides == 1 and channels == width else body
            number, width = number + 1, channels
    layers += _conv_norm("last", 1280, 1, activation="relu6", epsilon=1e-3)
    return [*layers, Pool("mean"), Dense("head", 10)]


def _airbench() -> list[Layer]:
    gelu = Activation("gelu")
    layers: list[Layer] = [Conv("whiten", 12, 2, padding="VALID", is_frozen=True), BothSigns(), gelu]
    for stage, width in enumerate((32, 96, 128)):
        for number in range(2):
            layers += [Conv(f"stage{stage}_conv{number}", width, bias=False)]
            layers += [] if number else [Pool("max2")]
            layers += [Norm(f"stage{stage}_norm{number}", has_scale=False), gelu]
    return [*layers, Pool("max"), Dense("head", 10, bias=False), Affine(1 / 9)]


NETWORKS: Mapping[str, Network] = {
    "mlp_342": Network(_perceptron([4], 2), (3,), 2, 200, 1000, Optimizer("sgd", 0.01)),
    "mnist_mlp": Network(_perceptron([128, 64], 10), (28, 28, 1), 10, 128, 250, Optimizer("adam", 1e-3)),
    "pyramid": Network(
        _pyramid(), (28, 28, 1), 10, 128, 16, Optimizer("adamw", 3e-3, weight_decay=0.05, clip_norm=1.0)
    ),
    "classic": Network(
        _convolutions([32], 128, pool=False, padding="VALID"),
        (28, 28, 1),
        10,
        128,
        16,
        Optimizer("adam", 1e-4),
    ),
    "net_sgd": Network(
        _convolutions([32, 64], 512, pool=True, padding="VALID"),
        (28, 28, 1),
        10,
        64,
        32,
        Optimizer("sgd", 0.01),
    ),
    "cifar10_net": Network(
        _convolutions([64, 128], 1000, pool=True, padding="SAME"),
        (32, 32, 3),
        10,
        128,
        4,
        Optimizer("adam", 1e-4),
    ),
    "resnet18": Network(_resnet18(), (32, 32, 3), 10, 32, 2, Optimizer("sgd", 0.001, momentum=0.9)),
    "mobilenetv2": Network(
        _mobilenet_v2(), (96, 96, 3), 10, 16, 4, Optimizer("adamw", 2e-5, weight_decay=0.05, clip_norm=1.0)
    ),
    "airbench": Network(_airbench(), (32, 32, 3), 10, 500, 1, Optimizer("sgd", 0.01, momentum=0.85)),
    "gpt": Network(Decoder(), (64,), 65, 12, 25, Optimizer("adamw", 1e-3, weight_decay=0.1, clip_norm=1.0)),
}
