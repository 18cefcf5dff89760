import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import optimizers
from dl.data.images.augment import of_image
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.diagnostics.preview import augmented_examples, contact_sheet
from dl.errors import UserError
from dl.experiment import Experiment
from dl.metrics import Mean
from dl.runs.console import Console
from dl.task import Task
from dl.types import Aux
from tests.helpers import train_in

NUM_EXAMPLES, NUM_EPOCHS = 5, 3


def reporting_loss(params, model_state, batch, key):
    """A loss whose metrics tell the first pixel that each example had when the step saw it."""
    loss = params["w"] * 0.0
    metrics = {"loss": Mean.of(loss[None])}
    for index in range(NUM_EXAMPLES):
        pixels = jnp.where((batch["index"] == index) & batch["mask"], batch["image"][:, 0, 0, 0], 0.0)
        metrics[f"pixel_{index}"] = Mean.of(pixels.sum()[None])
    return Mean.of(loss), Aux(model_state, metrics)


images = np.random.default_rng(0).integers(0, 256, (NUM_EXAMPLES, 2, 3, 1), np.uint8)
EXPERIMENT = Experiment(
    data=ArraySplits(
        "noise", train=ArraySource({"image": images, "label": np.arange(NUM_EXAMPLES, dtype=np.int32)})
    ),
    task=Task(lambda key, batch: {"params": {"w": jnp.zeros(())}}, reporting_loss),
    tx=optimizers.sgd(0.1),
    augment=of_image(lambda key, image: image + jax.random.uniform(key)),
    num_steps=3 * NUM_EPOCHS,
    batch_size=2,
    seed=3,
)


@pytest.mark.slow
def test_draws_are_those_of_the_run(tmp_path, mesh1):
    train_in(tmp_path / "run", mesh1, EXPERIMENT, log_every=1, console=Console(is_quiet=True))
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["kind"] == "train"]
    stored, drawn = augmented_examples(EXPERIMENT, num_examples=4, num_draws=NUM_EPOCHS)
    # Two examples only: the first batch has no more.
    assert (stored.shape, drawn.shape) == ((2, 2, 3, 1), (2, NUM_EPOCHS, 2, 3, 1))
    for row, image in enumerate(stored):
        (index,) = (i for i in range(NUM_EXAMPLES) if (images[i] == image).all())
        for epoch in range(NUM_EPOCHS):
            seen = sum(line[f"pixel_{index}"] for line in steps[3 * epoch : 3 * epoch + 3])
            assert drawn[row, epoch, 0, 0, 0] == pytest.approx(seen, rel=1e-6)
    assert len({float(x) for x in drawn[0, :, 0, 0, 0]}) == NUM_EPOCHS


def test_what_cannot_be_shown_is_said():
    with pytest.raises(UserError, match="no augmentation"):
        augmented_examples(dataclasses.replace(EXPERIMENT, augment=None))
    with pytest.raises(UserError, match=r"input label has the shape \(\)"):
        augmented_examples(dataclasses.replace(EXPERIMENT, task=EXPERIMENT.task._replace(input_name="label")))


def test_the_sheet_has_a_row_an_example_and_a_column_a_draw():
    stored = np.full((2, 4, 4, 3), 10, np.uint8)
    drawn = np.stack([np.full((3, 8, 8, 3), 0.5), np.full((3, 8, 8, 3), 1.0)]).astype(np.float32)
    sheet = np.asarray(contact_sheet(stored, drawn))
    pitch = 96 + 4
    assert sheet.shape == (2 * pitch + 4 + 16, 4 * pitch + 4, 3)
    middles = sheet[16 + 52 :: pitch, 52::pitch]
    np.testing.assert_array_equal(middles[0, :, 0], [10, 128, 128, 128])
    np.testing.assert_array_equal(middles[1, :, 0], [10, 255, 255, 255])


def test_values_of_another_range_are_stretched_and_grey_stays_grey():
    drawn = np.array([-1.0, 0.0, 3.0]).reshape(1, 3, 1, 1, 1).astype(np.float32)
    sheet = np.asarray(contact_sheet(np.zeros((1, 1, 1, 1), np.uint8), drawn))
    np.testing.assert_array_equal(sheet[16 + 52, 52::100], [[0] * 3, [0] * 3, [64] * 3, [255] * 3])
