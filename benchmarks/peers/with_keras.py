"""The networks in Keras 3, trained by `fit`. The environment variable KERAS_BACKEND chooses the backend."""

import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from benchmarks.peers.networks import (
    Activation,
    Affine,
    BothSigns,
    Conv,
    Decoder,
    Dense,
    Dropout,
    Flatten,
    Layer,
    Network,
    Norm,
    Pool,
    Residual,
)
from benchmarks.peers.reference import Reference
from benchmarks.peers.turns import Turns


def sequence(x: Any, of: Sequence[Layer], weights: dict[Any, list[str]]) -> Any:
    """Applies layers to a symbolic tensor, and notes the names of the weights of each."""
    for layer in of:
        match layer:
            case Conv():
                x = _conv(x, layer, weights)
            case Dense():
                made = layers.Dense(layer.width, use_bias=layer.bias)
                weights[made] = [f"{layer.name}/kernel"] + [f"{layer.name}/bias"] * layer.bias
                x = made(x)
            case Norm():
                made = layers.BatchNormalization(epsilon=layer.epsilon, momentum=0.9, scale=layer.has_scale)
                weights[made] = [f"{layer.name}/scale"] * layer.has_scale + [f"{layer.name}/bias"]
                x = made(x)
            case Activation(kind="gelu"):
                x = layers.Activation(lambda x: keras.activations.gelu(x, approximate=True))(x)
            case Activation():
                x = layers.Activation(layer.kind)(x)
            case Pool(kind="max2"):
                x = layers.MaxPooling2D()(x)
            case Pool():
                x = (layers.GlobalMaxPooling2D if layer.kind == "max" else layers.GlobalAveragePooling2D)()(x)
            case Affine():
                x = layers.Rescaling(layer.factor, layer.offset)(x)
            case BothSigns():
                x = layers.Concatenate()([x, layers.Rescaling(-1.0)(x)])
            case Flatten():
                x = layers.Flatten()(x)
            case Dropout():
                x = layers.Dropout(layer.rate)(x)
            case Residual():
                x = layers.Add()([sequence(x, layer.shortcut, weights), sequence(x, layer.body, weights)])
    return x


def _conv(x: Any, layer: Conv, weights: dict[Any, list[str]]) -> Any:
    padding = layer.padding.lower() if isinstance(layer.padding, str) else "valid"
    if isinstance(layer.padding, int):
        if layer.strides == 1:
            padding = "same"
        else:
            x = layers.ZeroPadding2D(layer.padding)(x)
    options = {"strides": layer.strides, "padding": padding, "use_bias": layer.bias}
    if layer.is_depthwise:
        made = layers.DepthwiseConv2D(layer.kernel, **options)
    else:
        made = layers.Conv2D(layer.channels, layer.kernel, **options)
    weights[made] = [f"{layer.name}/kernel"] + [f"{layer.name}/bias"] * layer.bias
    x = made(x)
    if layer.is_frozen:
        made.kernel.trainable = False
    return x


class _Attention(layers.Layer):
    """Causal attention with rotary positions."""

    def __init__(self, sizes: Decoder):
        super().__init__()
        self.num_heads = sizes.num_heads
        self.qkv, self.out = (layers.Dense(n * sizes.dim, use_bias=False) for n in (3, 1))
        half = sizes.dim // sizes.num_heads // 2
        angles = np.arange(sizes.length)[:, None] * 10_000.0 ** (-np.arange(half) / half)
        self._cos, self._sin = (f(angles)[:, None].astype(np.float32) for f in (np.cos, np.sin))

    def build(self, shape: Any) -> None:
        self.qkv.build(shape)
        self.out.build(shape)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def call(self, x: Any) -> Any:
        _, length, dim = x.shape
        parts = ops.reshape(self.qkv(x), (-1, length, 3, self.num_heads, dim // self.num_heads))
        query, key, value = (parts[:, :, part] for part in range(3))
        attended = ops.dot_product_attention(self._turned(query), self._turned(key), value, is_causal=True)
        return self.out(ops.reshape(attended, (-1, length, dim)))

    def _turned(self, x: Any) -> Any:
        first, second = ops.split(x, 2, axis=-1)
        cos, sin = self._cos, self._sin
        return ops.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _decoder(tokens: Any, sizes: Decoder, weights: dict[Any, list[str]]) -> Any:
    def norm(name: str) -> Any:
        made = layers.RMSNormalization(epsilon=sizes.epsilon)
        weights[made] = [f"{name}/scale"]
        return made

    def dense(width: int, name: str) -> Any:
        made = layers.Dense(width, use_bias=False)
        weights[made] = [f"{name}/kernel"]
        return made

    embedding = keras.layers.ReversibleEmbedding(sizes.vocab_size, sizes.dim)
    weights[embedding] = ["token_embedding/embedding"]
    x = embedding(tokens)
    for number in range(sizes.num_layers):
        name = f"layers/layer{number}"
        attention = _Attention(sizes)
        x = x + attention(norm(f"{name}/attention_norm")(x))
        weights[attention.qkv] = [
            " ".join(f"{name}/attention/{part}/kernel" for part in ("query", "key", "value"))
        ]
        weights[attention.out] = [f"{name}/attention/out/kernel"]
        y = norm(f"{name}/feed_forward_norm")(x)
        gate = dense(sizes.hidden_dim, f"{name}/feed_forward/gate")(y)
        hidden = dense(sizes.hidden_dim, f"{name}/feed_forward/in")(y)
        hidden = layers.Multiply()([layers.Activation("silu")(gate), hidden])
        x = x + dense(sizes.dim, f"{name}/feed_forward/out")(hidden)
    return embedding(norm("final_norm")(x), reverse=True)


def model_of(network: Network, reference: Reference) -> Any:
    """Returns a network with the weights of the reference."""
    weights: dict[Any, list[str]] = {}
    if isinstance(network.layers, Decoder):
        inputs = keras.Input(network.input_shape, dtype="int32")
        outputs = _decoder(inputs, network.layers, weights)
    else:
        inputs = keras.Input(network.input_shape)
        outputs = sequence(inputs, network.sequence, weights)
    for layer, names in weights.items():
        for variable, name in zip(layer.weights, names, strict=False):  # statistics follow the parameters
            value = np.concatenate([reference.param(part) for part in name.split()], -1)
            if isinstance(layer, layers.DepthwiseConv2D):
                value = value.transpose(0, 1, 3, 2)
            variable.assign(value.reshape(variable.shape))
    return keras.Model(inputs, outputs)


def optimizer_of(network: Network) -> Any:
    """Returns the optimizer of a network."""
    of = network.optimizer
    options: dict[str, Any] = {"learning_rate": of.learning_rate, "global_clipnorm": of.clip_norm}
    if of.kind == "sgd":
        return keras.optimizers.SGD(momentum=of.momentum, nesterov=bool(of.momentum), **options)
    if of.kind == "adam":
        return keras.optimizers.Adam(epsilon=1e-8, **options)
    optimizer = keras.optimizers.AdamW(epsilon=1e-8, weight_decay=of.weight_decay, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma", "scale"])
    return optimizer


class _Timer(keras.callbacks.Callback):
    """Ends `fit` after a number of seconds, at the end of an epoch.

    The first epoch is not timed, because `fit` then builds the iterator of its examples.

    Attributes:
      elapsed: seconds of the timed epochs.
      epochs: number of timed epochs.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self._seconds = seconds
        self.elapsed, self.epochs = 0.0, -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1
        if epoch:
            self.elapsed = time.perf_counter() - self._started
            self.model.stop_training = self.elapsed >= self._seconds


def compiled_model(
    network: Network, reference: Reference, *, is_jitted: bool, steps_per_execution: int
) -> Any:
    """Returns a network that `fit` can train."""
    model = model_of(network, reference)
    model.compile(
        optimizer_of(network),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=is_jitted,
        steps_per_execution=steps_per_execution,
    )
    return model


def run(network: Network, reference: Reference, variant: str, turns: Turns) -> None:
    """Compares a network with its reference, and trains it whenever it has the turn.

    Args:
      network: the network.
      reference: its reference.
      variant: the backend, `jitted` or not, and the number of steps in a call of the compiled function.
      turns: the turns.

    Raises:
      Different: the network is not that of the reference.
    """
    keras.utils.set_random_seed(0)
    words = variant.split()
    options = {"is_jitted": "jitted" in words}
    inputs, labels = network.examples()
    if network.is_image:
        inputs = inputs.astype(np.float32) / 255
    model = compiled_model(network.without_dropout, reference, steps_per_execution=1, **options)
    losses = []
    for rows in reference.rows:
        # `train_on_batch` returns the mean since the last reset.
        model.reset_metrics()
        losses.append(float(model.train_on_batch(inputs[rows], labels[rows])))
    reference.check(model.count_params() - _num_statistics(model), losses)
    steps = next((int(word) for word in words if word.isdigit()), 1)
    if network.has_dropout or steps > 1:
        model = compiled_model(network, reference, steps_per_execution=steps, **options)
    fit = {"batch_size": network.batch_size, "epochs": 10**6, "verbose": 0}
    model.fit(inputs, labels, **{**fit, "epochs": 1})
    while True:
        timer = _Timer(turns.begin())
        model.fit(inputs, labels, callbacks=[timer], **fit)
        turns.end(timer.epochs * len(labels), timer.elapsed)


def _num_statistics(model: Any) -> int:
    """Returns the number of running statistics of a model."""
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    return sum(
        int(np.prod(variable.shape))
        for norm in norms
        for variable in (norm.moving_mean, norm.moving_variance)
    )
