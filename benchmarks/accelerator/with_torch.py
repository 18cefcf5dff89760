"""ResNet-18 and ViT-S in PyTorch at its best: compiled, channels-last, autocast, fused optimizers."""

import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from benchmarks.accelerator.sizes import Size


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """Returns ResNet-18 for small images."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        layers += [Block(before, channels, 2 if stage else 1), Block(channels, channels, 1)]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class ViT(nn.Module):
    """A Vision Transformer with a class token and learned positions; its attention is PyTorch's fused one."""

    def __init__(self, size: Size):
        super().__init__()
        self.patches = nn.Conv2d(3, size.dim, size.patch_size, size.patch_size)
        self.token = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.positions = nn.Parameter(torch.zeros(1, (size.side // size.patch_size) ** 2 + 1, size.dim))
        layer = nn.TransformerEncoderLayer(
            size.dim, size.num_heads, 4 * size.dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, size.num_layers, nn.LayerNorm(size.dim), enable_nested_tensor=False
        )
        self.head = nn.Linear(size.dim, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


def measure(name: str, size: Size, seconds: float) -> float:
    """Returns the examples a second of training a network for some seconds, after its first steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model = (resnet18() if name == "resnet18" else ViT(size)).to(device, memory_format=torch.channels_last)
    if name == "resnet18":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), 0.1, 0.9, nesterov=True, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1, fused=True)
    shape = (4 * size.batch_size, 3, size.side, size.side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (len(images),)).to(device)

    @torch.compile
    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return functional.cross_entropy(model(images.float() / 127.5 - 1), labels)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield from torch.randperm(len(images), device=device).split(size.batch_size)

    def wait() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    step, first, started, begun = 0, 0, 0.0, wait()
    for rows in batches():
        loss = loss_of(images[rows], labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if not started:
            if step >= 8 and wait() - begun > seconds / 4:
                first, started = step, wait()
        elif step % 8 == 0 and wait() - started > seconds:
            break
    return (step - first) * size.batch_size / (wait() - started)
