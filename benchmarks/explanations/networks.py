"""The networks that are explained: one of digits, one of random labels, and one of digits in clutter."""

from typing import NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

import dl
from dl.data import ArraySource, ArraySplits, image_classification
from dl.data.synthetic.clutter import add_clutter
from dl.models.cnn import CNN
from dl.training.result import Result
from dl.types import Variables

NUM_TRAIN = 20_000
NUM_RANDOM = 1_000  # examples whose labels are random; a network learns few of them by heart fast
NUM_TEST = 2_000
SIDE = 60  # of the canvas with clutter, in pixels
LAYERS = ("Dense_1", "Dense_0", "Conv_2", "Conv_1", "Conv_0")  # from the last to the first


class Explained(NamedTuple):
    """A trained network with the examples that it is explained on.

    Attributes:
      model: the network.
      result: its run.
      images: pixels in [0, 1], shape (N, H, W, 1).
      labels: classes, shape (N,).
      regions: where the digit is, bool (N, H, W).
    """

    model: CNN
    result: Result
    images: np.ndarray
    labels: np.ndarray
    regions: np.ndarray

    @property
    def variables(self) -> Variables:
        return jax.tree.map(np.asarray, self.result.variables)

    def score(self, variables: Variables) -> Partial:
        return Partial(self.model.apply, variables)

    def fresh(self) -> Variables:
        """Returns the variables of the same network as initialised with another seed."""
        return self.model.init(jax.random.key(1), self.images[:1])


def digits(num_explained: int) -> Explained:
    """Returns a network of digits."""
    train, test = _read()
    return _trained("digits", train, test, num_explained, num_steps=900)


def random_labels(num_explained: int) -> Explained:
    """Returns the same network after it learnt random labels of few digits by heart."""
    train, test = _read()
    part = {name: values[:NUM_RANDOM] for name, values in train.items()}
    part["label"] = np.random.default_rng(0).permutation(part["label"])
    return _trained("random labels", part, test, num_explained, num_steps=2_500)


def clutter(num_explained: int) -> Explained:
    """Returns a network of digits at a random place on a larger canvas with fragments of other digits."""
    parts, regions = [], np.zeros(0)
    for seed, part in enumerate(_read()):
        images, regions = add_clutter(part["image"], SIDE, seed=seed)
        parts.append({**part, "image": images})
    return _trained("clutter", *parts, num_explained, num_steps=2_000)._replace(
        regions=regions[:num_explained]
    )


def _read() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    data = image_classification("mnist")
    return data.train[np.arange(NUM_TRAIN)], data.evaluations["test"][np.arange(NUM_TEST)]


def _trained(
    name: str, train: dict[str, np.ndarray], test: dict[str, np.ndarray], num_explained: int, num_steps: int
) -> Explained:
    model = CNN(channels=(16, 32, 32), hidden=(64,), num_classes=10, pool=True, padding="SAME")
    data = ArraySplits(name, ArraySource(train), {"test": ArraySource(test)})
    schedule = dl.optimizers.cosine(2e-3, num_steps, warmup_steps=num_steps // 10)
    experiment = dl.Experiment(
        data=data,
        task=dl.task.classification(model),
        tx=dl.optimizers.adam(schedule),
        num_steps=num_steps,
        batch_size=64,
        eval_every=num_steps,
    )
    images = test["image"][:num_explained] / np.float32(255)
    return Explained(
        model,
        dl.train(experiment),
        images,
        test["label"][:num_explained].astype(np.int32),
        images[..., 0] > 0.25,
    )
