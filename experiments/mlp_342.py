"""The 3-4-2 perceptron: gradient descent on a toy problem that fits on one screen."""

import numpy as np

from dl import Experiment, PositiveFloat, PositiveInt, Seed, losses, main, optimizers
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP


def experiment(
    num_steps: PositiveInt = 1000,
    steps_log: PositiveInt = 100,
    num_examples: PositiveInt = 200,
    learning_rate: PositiveFloat = 0.01,
    seed: Seed = 0,
) -> Experiment:
    random = np.random.default_rng(0)
    features = random.normal(size=(num_examples, 3)).astype(np.float32)
    labels = (features.sum(axis=1) > 0).astype(np.int32)
    source = ArraySource({"features": features, "label": labels})
    model = MLP(hidden=(4,), num_classes=2)
    return Experiment(
        data=ArraySplits("halfspace", train=source, evaluations={"train_set": source}),
        model=model,
        input_name="features",
        loss_fn=losses.classification(model, input_name="features"),
        tx=optimizers.sgd(learning_rate),
        num_steps=num_steps,
        batch_size=num_examples,
        report_every=steps_log,
        report_start=True,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
