"""What classical models reach on tables that no experiment reads, as `python -m dl baseline` measures them.

    python -m benchmarks.classical [SET ...]

The sets are wine_quality/white, wine_quality/red and penguins/processed; by default all of them. They are
read from TFDS_DATA_DIR, and split at random: 70 % for training, 15 % for validation, 15 % for the test. Wines
occur several times, so that copies of training examples are among the test examples.
"""

import sys

import numpy as np

from benchmarks.baselines import read
from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP
from dl.runs.console import print_table
from dl.studies.classical import measure_classical

SETS = ("wine_quality/white", "wine_quality/red", "penguins/processed")


def experiment(name: str) -> Experiment:
    """Returns an experiment on a table, whose network is not trained."""
    [columns] = read(name).values()
    is_wine = name.startswith("wine")
    if is_wine:
        rows = columns["features"]
        x = np.array([[row[key] for key in sorted(row)] for row in rows], np.float32)
        target = np.array(columns["quality"], np.float32)
    else:
        x, target = np.array(columns["features"], np.float32), np.array(columns["species"], np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    parts = np.split(order, [int(0.7 * len(x)), int(0.85 * len(x))])
    key = "target" if is_wine else "label"
    train, validation, test = (ArraySource({"x": x[part], key: target[part]}) for part in parts)
    model = MLP(hidden=(32,), num_classes=1 if is_wine else 3)
    return Experiment(
        data=ArraySplits(name, train, {"validation": validation, "test": test}),
        task=task.regression(model, input_name="x")
        if is_wine
        else task.classification(model, input_name="x"),
        tx=optimizers.adam(1e-3),
        num_steps=1,
        batch_size=32,
    )


def main() -> None:
    for name in sys.argv[1:] or SETS:
        found = measure_classical(experiment(name))
        print(name)
        print_table(found.table.to_rich())
        print("\n".join(found.lines))


if __name__ == "__main__":
    main()
