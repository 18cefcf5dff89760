"""The first network of a Keras tutorial: python keras_mnist.py MNIST.npz TARGET.

It trains in epochs until the validation accuracy reaches TARGET, for ten epochs at most, and prints the test
accuracy. The file holds `x_train`, `y_train`, `x_val`, `y_val`, `x_test` and `y_test`.
"""

import json
import sys

import keras
import numpy as np
from keras import layers


class StopAt(keras.callbacks.Callback):
    """Ends the training as soon as the validation accuracy reaches a value."""

    def __init__(self, target: float):
        super().__init__()
        self.target = target

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.model.stop_training = (logs or {})["val_accuracy"] >= self.target


def main() -> None:
    path, target = sys.argv[1], float(sys.argv[2])
    with np.load(path) as data:
        images = {split: data[f"x_{split}"].astype("float32") / 255 for split in ("train", "val", "test")}
        labels = {split: data[f"y_{split}"] for split in images}
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        images["train"],
        labels["train"],
        batch_size=128,
        epochs=10,
        validation_data=(images["val"], labels["val"]),
        callbacks=[StopAt(target)],
        verbose=2,
    )
    _, accuracy = model.evaluate(images["test"], labels["test"], verbose=0)
    best = max(history.history["val_accuracy"])
    print(json.dumps({"validation": best, "test": accuracy, "epochs": len(history.epoch)}))


if __name__ == "__main__":
    main()
