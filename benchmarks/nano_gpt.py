"""A small language model at nanoGPT's setting for a CPU: our loss and time beside those of PyTorch.

    python -m benchmarks.nano_gpt [NUM_STEPS] [ROUNDS]

The setting is 4 layers, 4 heads, 128 wide, 64 characters of context, batch 12 and 2,000 steps on tiny
Shakespeare, for which nanoGPT states a validation loss of 1.88. PyTorch trains nanoGPT's network by its
recipe: AdamW with β₂ = 0.99, a learning rate of 1e-3 that falls to 1e-4, weight decay 0.1, gradients clipped
at 1, no dropout. We train the network of `char_gpt` with Muon in 0.3 times as many steps. A step of ours has
about 1.7 times the products of one of PyTorch, as Muon makes matrices orthogonal: about half in all.
Both are trained by turns in processes of their own, and are evaluated on the same rows: the last tenth of
the text in windows of 64 characters. The time of PyTorch is that of its steps alone; ours is that of
`dl.train` as a whole, with compilation and evaluation. It needs the extra `peers`.
"""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

import dl
from dl.data import language_modeling
from experiments import char_gpt

CONTEXT, BATCH, DIM, LAYERS, HEADS, STEPS = 64, 12, 128, 4, 4, 2000
SHARE = 0.3  # of the steps of PyTorch that we take


def text() -> Any:
    return language_modeling("tiny_shakespeare", sequence_length=CONTEXT, stride=1, join_held_out=True)


def ours(num_steps: int) -> dict[str, float]:
    """Trains our network by the trainer, and returns its loss, its time and its steps."""
    num_steps = math.floor(num_steps * SHARE)
    made = char_gpt.experiment(
        "tiny_shakespeare",
        sequence_length=CONTEXT,
        dim=DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        dropout=0.0,
        batch_size=BATCH,
        num_steps=num_steps,
        learning_rate=4e-3,
    )
    experiment = dataclasses.replace(made, data=text(), baseline=None, sample_prompts=())
    started = time.perf_counter()
    result = dl.train(experiment, log_every=num_steps)
    seconds = time.perf_counter() - started
    return {"loss": float(result.metrics["test"]["loss"]), "seconds": seconds, "steps": num_steps}


def theirs(num_steps: int) -> dict[str, float]:
    """Trains nanoGPT's network in PyTorch, and returns its loss and the time of its steps."""
    import torch
    import torch.nn as nn
    from torch.nn import functional

    torch.manual_seed(0)
    data = text()
    vocab_size, train = data.vocab_size, data.train.head(2**30).astype(np.int64)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(DIM, bias=False), nn.LayerNorm(DIM, bias=False)
            self.qkv, self.project = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
            self.widen, self.narrow = nn.Linear(DIM, 4 * DIM, bias=False), nn.Linear(4 * DIM, DIM, bias=False)

        def forward(self, x: Any) -> Any:
            batch, length, _ = x.shape
            parts = self.qkv(self.norm_1(x)).split(DIM, 2)
            split = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in parts)
            attended = functional.scaled_dot_product_attention(*split, is_causal=True)
            x = x + self.project(attended.transpose(1, 2).reshape(batch, length, DIM))
            return x + self.narrow(functional.gelu(self.widen(self.norm_2(x))))

    class NanoGPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(vocab_size, DIM), nn.Embedding(CONTEXT, DIM)
            self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
            self.norm = nn.LayerNorm(DIM, bias=False)
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    narrow = name.endswith(("project.weight", "narrow.weight"))
                    nn.init.normal_(parameter, std=0.02 / (2 * LAYERS) ** 0.5 if narrow else 0.02)

        def forward(self, tokens: Any) -> Any:
            x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.token.weight.T

    model = NanoGPT()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    random, tokens, warmup = np.random.default_rng(0), torch.from_numpy(train), min(100, num_steps // 4)
    started = time.perf_counter()
    for step in range(num_steps):
        share = (step - warmup) / max(1, num_steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        rate = 1e-3 * (step + 1) / (warmup + 1) if step < warmup else 1e-4 + cosine * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = random.integers(0, len(train) - CONTEXT, BATCH)
        rows = torch.stack([tokens[start : start + CONTEXT + 1] for start in starts])
        loss = functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - started
    source, total, count = data.evaluations["test"], 0.0, 0
    with torch.no_grad():
        for start in range(0, len(source), 128):
            rows = source[np.arange(start, min(start + 128, len(source)))]
            targets = torch.from_numpy(rows["targets"].astype(np.int64)).flatten()
            logits = model(torch.from_numpy(rows["tokens"].astype(np.int64))).flatten(0, 1)
            kept = targets >= 0
            total += float(functional.cross_entropy(logits[kept], targets[kept], reduction="sum"))
            count += int(kept.sum())
    return {"loss": total / count, "seconds": seconds, "steps": num_steps}


def main() -> None:
    if len(sys.argv) == 4:  # a process of one training
        print(json.dumps({"ours": ours, "theirs": theirs}[sys.argv[3]](int(sys.argv[1]))))
        return
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        for name, of_name in found.items():
            words = [sys.executable, "-m", "benchmarks.nano_gpt", str(num_steps), "1", name]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            of_name.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}, {name}: {of_name[-1]}", flush=True)
    times = {name: statistics.median(one["seconds"] for one in each) for name, each in found.items()}
    losses = {name: statistics.median(one["loss"] for one in each) for name, each in found.items()}
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(found["ours"], found["theirs"], strict=True)]
    print(f"loss {losses['ours']:.4f}, PyTorch {losses['theirs']:.4f} nats a character")
    faster = f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"{times['ours']:.0f} s, PyTorch {times['theirs']:.0f} s: {faster}")


if __name__ == "__main__":
    main()
