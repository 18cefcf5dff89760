"""A contact sheet of augmentation: a few examples as the training step sees them in each epoch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, ImageDraw

from dl.data.pipeline import Batches
from dl.errors import UserError
from dl.experiment import Experiment
from dl.metrics import Mean
from dl.sharding import make_mesh
from dl.training.state import init_state
from dl.training.step import with_inputs
from dl.types import Aux, Batch

CELL = 96  # pixels: approximate length of the longer side to which a smaller image is enlarged
GAP = 4
HEADING = 16
LABEL = 96  # pixels beside the rows, where they have labels


def augmented_examples(
    experiment: Experiment, num_examples: int = 8, num_draws: int = 7
) -> tuple[np.ndarray, np.ndarray]:
    """Returns examples as they are stored, and as the training step augments them with the keys of the run.

    Mixtures of several examples are a part of the loss, and are not applied.

    Args:
      experiment: an experiment with images and an `augment`.
      num_examples: E, the number of examples, from the start of the first training batch.
      num_draws: D, the number of epochs.

    Returns:
      The stored images, shape E × H × W × C, and the augmented images, shape E × D × h × w × c.

    Raises:
      UserError: the experiment has no augmentation, or its input is not an image.
    """
    if experiment.augment is None:
        raise UserError("this experiment has no augmentation; pass augment= to its Experiment")
    name, source = experiment.task.input_name, experiment.data.train
    shape = source.spec[name].shape
    if len(shape) != 3:
        raise UserError(f"the input {name} has the shape {shape}; only images, (H, W, C), can be shown")
    mesh = make_mesh({"data": 1})
    batches = Batches(source, experiment.batch_size, mesh, seed=experiment.seed)
    num_examples = min(num_examples, experiment.batch_size, len(source))
    examples = {feature: values[:num_examples] for feature, values in batches[0].items()}
    index_E = np.asarray(examples["index"])
    steps_ED = np.stack([_steps_of(batches, index_E, epoch) for epoch in range(num_draws)], axis=1)
    # Does not depend on the model.
    rng = init_state(lambda key, batch: {}, optax.identity(), {}, experiment.seed).rng
    seen = with_inputs(
        lambda params, state, batch, key: (Mean.of(jnp.zeros(())), Aux({name: batch[name]}, {})),
        experiment.preprocess,
        experiment.augment,
    )

    def draw(example: Batch, step: jax.Array) -> jax.Array:
        batch = {feature: value[None] for feature, value in example.items()}
        return seen({}, {}, batch, jax.random.fold_in(rng, step))[1].model_state[name][0]

    drawn = jax.jit(jax.vmap(jax.vmap(draw, (None, 0))))(examples, jnp.asarray(steps_ED))
    return np.asarray(examples[name]), np.asarray(drawn)


def contact_sheet(
    stored: np.ndarray, drawn: np.ndarray, headings: Sequence[str] = (), labels: Sequence[str] = ()
) -> Image.Image:
    """Draws a row of enlarged images for each example: the stored image, then the augmented images.

    Floats in [0, 1] are shown unchanged. Other ranges are scaled to [0, 1], equally for all images.

    Args:
      stored: the stored images, shape E × H × W × C.
      drawn: the augmented images, shape E × D × h × w × c.
      headings: the heading of each column. Default: `stored`, then the epochs.
      labels: the text beside each row. Default: no text.
    """
    columns = [_to_bytes(stored), *_to_bytes(drawn).swapaxes(0, 1)]
    sides = [max(column.shape[1:3]) for column in columns]
    factors = [max(1, CELL // side) for side in sides]
    pitch = max(side * factor for side, factor in zip(sides, factors, strict=True)) + GAP
    margin = LABEL if labels else 0
    size = (margin + pitch * len(columns) + GAP, pitch * len(stored) + GAP + HEADING)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for y, label in enumerate(labels):
        pen.text((GAP, HEADING + GAP + y * pitch + pitch // 2), label, fill="black", anchor="lm")
    for x, column in enumerate(columns):
        heading = headings[x] if headings else "stored" if x == 0 else f"epoch {x}"
        pen.text((margin + GAP + x * pitch, 2), heading, fill="black")
        for y, pixels in enumerate(column):
            image = Image.fromarray(pixels)
            size = (image.width * factors[x], image.height * factors[x])
            corner = (margin + GAP + x * pitch, HEADING + GAP + y * pitch)
            sheet.paste(image.resize(size, Image.Resampling.NEAREST).convert("RGB"), corner)
    return sheet


def _steps_of(batches: Batches, index_E: np.ndarray, epoch: int) -> np.ndarray:
    """Returns the step of an epoch whose batch contains each example."""
    start = epoch * batches.steps_per_epoch
    rows = [batches.rows(step)[0] for step in range(start, start + batches.steps_per_epoch)]
    # Padding repeats examples at the end, so the first occurrence counts.
    return start + np.stack([(np.concatenate(rows) == i).argmax() for i in index_E]) // batches.batch_size


def _to_bytes(images: np.ndarray) -> np.ndarray:
    """Returns images as uint8, shape … × H × W (grey) or … × H × W × 3."""
    if images.dtype != np.uint8:
        low, high = min(images.min(), 0.0), max(images.max(), 1.0)
        images = np.round((images - low) / (high - low) * 255).astype(np.uint8)
    if images.shape[-1] == 3:
        return images
    return images.mean(-1).astype(np.uint8)
