"""Mixing: mixup and CutMix train on mixtures of two examples and of their labels.

Shapes: B examples, C classes; H height, W width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dl.metrics import Mean
from dl.ranges import NON_NEGATIVE, STEPS, check, check_count
from dl.task import Task
from dl.types import Aux, Batch, Key, ModelState, Params

Mix = Callable[[Key, Batch], Batch]


def with_mixing(task: Task, mix: Mix) -> Task:
    """Returns the task with batches that `mixup` or `cutmix` mixes in training, but not in evaluation.

    With `accumulated_gradient`, examples are mixed within their micro-batch.
    """

    def mixed(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
        if key is not None:
            mix_key, key = jax.random.split(key)
            batch = mix(mix_key, batch)
        return task.loss(params, model_state, batch, key)

    return task._replace(loss=mixed)


def mixup(alpha: float, num_classes: int, name: str = "image") -> Mix:
    """Returns a function that mixes pairs of examples as λ x + (1 − λ) x', and their labels in the same way.

    There is one λ ~ Beta(α, α) for each batch, as in the paper's code. Every valid example is paired with
    another one in a random order over the whole batch, so the result does not depend on the number of
    devices. Padding is not changed. The soft labels are the feature `target`, shape B × C, which
    `task.classification` reads.

    Source: Zhang et al. 2018, eq. 1.

    Args:
      alpha: α. Values from 0.1 to 0.4 are usual for images. 0 means no mixing, with one-hot targets.
      num_classes: number of classes, C.
      name: name of the feature that is mixed.

    Raises:
      UserError: α is negative or not finite, or `num_classes` is not a positive whole number.
    """
    check("alpha", alpha, NON_NEGATIVE)
    num_classes = check_count("num_classes", num_classes, STEPS)

    def mix(key: Key, batch: Batch) -> Batch:
        pair_key, ratio_key = jax.random.split(key)
        partner_B = _partners(pair_key, batch["mask"])
        ratio = _draw_ratio(ratio_key, alpha)
        x = batch[name]
        return {
            **batch,
            name: (ratio * x + (1 - ratio) * x[partner_B]).astype(x.dtype),
            "target": _mixed_targets(batch, partner_B, ratio, num_classes),
        }

    return mix


def cutmix(alpha: float, num_classes: int, name: str = "image") -> Mix:
    """Returns a function that pastes a box of one image into another image.

    The box has the proportions of the image and the fraction 1 − λ of its area. There is one λ ~ Beta(α, α)
    for each batch. The centre of the box is uniform, and the part outside the image is cut off. The labels
    are mixed in proportion to the visible areas. Pairs, padding and `target` are those of `mixup`.

    Source: Yun et al. 2019, section 3.1.

    Args:
      alpha: α. The paper uses 1. 0 means no mixing, with one-hot targets.
      num_classes: number of classes, C.
      name: name of the feature that holds the images.

    Raises:
      UserError: α is negative or not finite, or `num_classes` is not a positive whole number.
    """
    check("alpha", alpha, NON_NEGATIVE)
    num_classes = check_count("num_classes", num_classes, STEPS)

    def mix(key: Key, batch: Batch) -> Batch:
        pair_key, ratio_key, box_key = jax.random.split(key, 3)
        partner_B = _partners(pair_key, batch["mask"])
        side = jnp.sqrt(1 - _draw_ratio(ratio_key, alpha))
        image_BHWC = batch[name]
        size = jnp.array(image_BHWC.shape[1:3])
        centre = jax.random.uniform(box_key, (2,)) * size
        low = jnp.round(jnp.clip(centre - side * size / 2, 0, size))
        high = jnp.round(jnp.clip(centre + side * size / 2, 0, size))
        in_rows_H, in_columns_W = (
            (jnp.arange(size) >= low[axis]) & (jnp.arange(size) < high[axis])
            for axis, size in enumerate(image_BHWC.shape[1:3])
        )
        is_pasted_HW = in_rows_H[:, None] & in_columns_W[None]
        return {
            **batch,
            name: jnp.where(is_pasted_HW[None, :, :, None], image_BHWC[partner_B], image_BHWC),
            "target": _mixed_targets(batch, partner_B, 1 - is_pasted_HW.mean(), num_classes),
        }

    return mix


def _draw_ratio(key: Key, alpha: float) -> jax.Array:
    if alpha == 0:  # The limit of Beta(α, α) is 0 or 1 with equal probability, so nothing is mixed.
        return jnp.ones(())
    # Beta(1, 1) is uniform. The general sampler is a loop, which is slow to compile.
    return jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)


def _partners(key: Key, mask_B: jax.Array) -> jax.Array:
    """Returns the partner of each example: the next valid one in a random order. Padding has no partner."""
    order_B = jnp.argsort(jnp.where(mask_B, jax.random.uniform(key, mask_B.shape), 2.0))
    indices_B = jnp.arange(mask_B.size)
    num_valid = mask_B.sum()
    next_B = jnp.where(indices_B < num_valid, (indices_B + 1) % jnp.maximum(num_valid, 1), indices_B)
    return jnp.zeros_like(order_B).at[order_B].set(order_B[next_B])


def _mixed_targets(batch: Batch, partner_B: jax.Array, ratio: jax.Array, num_classes: int) -> jax.Array:
    target_BC = (
        batch["target"] if "target" in batch else jax.nn.one_hot(batch["label"].reshape(-1), num_classes)
    )
    return ratio * target_BC + (1 - ratio) * target_BC[partner_B]
