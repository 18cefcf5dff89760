"""The networks in PyTorch, with the weights of a reference."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

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
    Norm,
    Pool,
    Residual,
)
from benchmarks.peers.reference import Reference

Shape = tuple[int, ...]  # of an example: channels, height and width; or a vector


class _Function(nn.Module):
    """A function without parameters."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.body(x)


def sequence(layers: Sequence[Layer], shape: Shape, reference: Reference) -> tuple[nn.Sequential, Shape]:
    """Returns layers with the weights of the reference, and the shape of their output."""
    modules: list[nn.Module] = []
    image: Shape | None = None  # shape of the image that was flattened
    for layer in layers:
        match layer:
            case Conv():
                made, shape = _conv(layer, shape, reference)
                modules += made
            case Dense():
                kernel = reference.param(f"{layer.name}/kernel")
                if image is not None:  # ours is flattened in the order height, width, channels
                    channels, height, width = image
                    kernel = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
                    kernel = kernel.reshape(len(kernel) * height * width, -1)
                dense = nn.Linear(shape[0], layer.width, layer.bias)
                _assign(dense.weight, kernel.T)
                if layer.bias:
                    _assign(dense.bias, reference.param(f"{layer.name}/bias"))
                modules.append(dense)
                shape, image = (layer.width,), None
            case Norm():
                norm = nn.BatchNorm2d(shape[0], layer.epsilon)
                _assign(norm.bias, reference.param(f"{layer.name}/bias"))
                if layer.has_scale:
                    _assign(norm.weight, reference.param(f"{layer.name}/scale"))
                else:
                    norm.weight.requires_grad_(False)  # it stays 1, and is not a parameter
                modules.append(norm)
            case Activation(kind="gelu"):
                modules.append(nn.GELU(approximate="tanh"))
            case Activation():
                modules.append(nn.ReLU6() if layer.kind == "relu6" else nn.ReLU())
            case Pool(kind="max2"):
                modules.append(nn.MaxPool2d(2))
                shape = (shape[0], shape[1] // 2, shape[2] // 2)
            case Pool():
                is_max = layer.kind == "max"
                modules.append(_Function(lambda x: x.amax((2, 3))) if is_max else _Function(_mean))
                shape = shape[:1]
            case Affine(factor=factor, offset=offset):
                modules.append(_Function(lambda x, factor=factor, offset=offset: factor * x + offset))
            case BothSigns():
                modules.append(_Function(lambda x: torch.cat([x, -x], 1)))
                shape = (2 * shape[0], *shape[1:])
            case Flatten():
                modules.append(nn.Flatten())
                image = shape if len(shape) == 3 else None
                shape = (int(np.prod(shape)),)
            case Dropout():
                modules.append(nn.Dropout(layer.rate))
            case Residual():
                body, after = sequence(layer.body, shape, reference)
                shortcut, _ = sequence(layer.shortcut, shape, reference)
                modules.append(_Residual(body, shortcut))
                shape = after
    return nn.Sequential(*modules), shape


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


def _conv(layer: Conv, shape: Shape, reference: Reference) -> tuple[list[nn.Module], Shape]:
    """Returns a convolution, after a module that pads if the sides of an axis are padded differently."""
    channels, *sides = shape
    size, strides = layer.kernel, layer.strides
    if layer.padding == "SAME":
        totals = [max((-(-side // strides) - 1) * strides + size - side, 0) for side in sides]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(0, 0) if layer.padding == "VALID" else (layer.padding, layer.padding)] * 2
    is_even = all(before == after for before, after in pads)
    conv = nn.Conv2d(
        channels,
        layer.channels,
        size,
        strides,
        tuple(before for before, _ in pads) if is_even else 0,
        groups=channels if layer.is_depthwise else 1,
        bias=layer.bias,
    )
    kernel = reference.param(f"{layer.name}/kernel").reshape(size, size, -1, layer.channels)
    _assign(conv.weight, kernel.transpose(3, 2, 0, 1))
    conv.weight.requires_grad_(not layer.is_frozen)
    if layer.bias:
        _assign(conv.bias, reference.param(f"{layer.name}/bias"))
    outputs = [(side + sum(pad) - size) // strides + 1 for side, pad in zip(sides, pads, strict=True)]
    padding = [] if is_even else [nn.ZeroPad2d((*pads[1], *pads[0]))]
    return [*padding, conv], (layer.channels, *outputs)


def _assign(parameter: Any, value: np.ndarray) -> None:
    with torch.no_grad():
        if parameter.shape != value.shape:
            raise ValueError(f"a parameter has the shape {tuple(parameter.shape)}, not {value.shape}")
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


class _Block(nn.Module):
    """Attention and SwiGLU, each after an RMSNorm and beside a residual."""

    def __init__(self, sizes: Decoder, number: int, reference: Reference):
        super().__init__()
        self.num_heads = sizes.num_heads
        self.norms = nn.ModuleList([nn.RMSNorm(sizes.dim, sizes.epsilon) for _ in range(2)])
        self.qkv = nn.Linear(sizes.dim, 3 * sizes.dim, bias=False)
        self.out = nn.Linear(sizes.dim, sizes.dim, bias=False)
        self.gate_in = nn.Linear(sizes.dim, 2 * sizes.hidden_dim, bias=False)
        self.down = nn.Linear(sizes.hidden_dim, sizes.dim, bias=False)

        def param(name: str) -> np.ndarray:
            return reference.param(f"layers/layer{number}/{name}")

        def kernels(*names: str) -> np.ndarray:
            return np.concatenate([param(f"{name}/kernel") for name in names], 1).T

        _assign(self.norms[0].weight, param("attention_norm/scale"))
        _assign(self.norms[1].weight, param("feed_forward_norm/scale"))
        _assign(self.qkv.weight, kernels("attention/query", "attention/key", "attention/value"))
        _assign(self.out.weight, kernels("attention/out"))
        _assign(self.gate_in.weight, kernels("feed_forward/gate", "feed_forward/in"))
        _assign(self.down.weight, kernels("feed_forward/out"))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, dim = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, dim))
        gate, hidden = self.gate_in(self.norms[1](x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * hidden)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class LanguageModel(nn.Module):
    """A decoder, which returns logits of shape (rows · tokens) × vocabulary."""

    def __init__(self, sizes: Decoder, reference: Reference):
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocab_size, sizes.dim)
        self.blocks = nn.ModuleList([_Block(sizes, n, reference) for n in range(sizes.num_layers)])
        self.norm = nn.RMSNorm(sizes.dim, sizes.epsilon)
        _assign(self.embedding.weight, reference.param("token_embedding/embedding"))
        _assign(self.norm.weight, reference.param("final_norm/scale"))
        half = sizes.dim // sizes.num_heads // 2
        angles = torch.arange(sizes.length)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return functional.linear(self.norm(x), self.embedding.weight).flatten(0, 1)
