"""The first network of a PyTorch tutorial: python torch_mnist.py MNIST.npz TARGET.

It trains in epochs until the validation accuracy reaches TARGET, for ten epochs at most, and prints the test
accuracy. The file holds `x_train`, `y_train`, `x_val`, `y_val`, `x_test` and `y_test`.
"""

import json
import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    path, target = sys.argv[1], float(sys.argv[2])
    with np.load(path) as data:
        sets = {
            split: TensorDataset(
                torch.from_numpy(data[f"x_{split}"]).permute(0, 3, 1, 2).float() / 255,
                torch.from_numpy(data[f"y_{split}"]).long(),
            )
            for split in ("train", "val", "test")
        }
    train = DataLoader(sets["train"], batch_size=128, shuffle=True)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 26 * 26, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer, criterion = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()

    def accuracy(split: str) -> float:
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in DataLoader(sets[split], batch_size=500):
                correct += int((model(images).argmax(1) == labels).sum())
        return correct / len(sets[split])

    best, epochs = 0.0, 0
    while epochs < 10 and best < target:
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        epochs += 1
        best = max(best, accuracy("val"))
        print(f"epoch {epochs}: validation accuracy {best:.4f}")
    print(json.dumps({"validation": best, "test": accuracy("test"), "epochs": epochs}))


if __name__ == "__main__":
    main()
