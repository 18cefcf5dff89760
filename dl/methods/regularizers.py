"""What keeps a model from fitting noise: penalties, modules that drop parts of it, mixtures of examples.

Label smoothing is an option of `losses.classification`, weight decay one of the optimizers, augmentation of
single images stands in `data.augment`, and a moving average of the parameters is `Experiment.ema_decay`.

Shapes: B examples, C classes, D inputs, F features; H height, W width.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.kinds import like
from dl.metrics import Mean
from dl.ranges import BELOW_ONE, NON_NEGATIVE, PROBABILITY, STEPS, check, check_count
from dl.sharding import path_name
from dl.types import Aux, Batch, Key, LossFn, ModelState, Params

UNDECAYED = re.compile(
    "bias|scale|(cls|class|dist|distillation|mask|register)_tokens?|positions?|pos_embed(ding)?s?|"
    "position(al)?_embeddings?"
)

Penalty = Callable[[Params], jax.Array]
Mix = Callable[[Key, Batch], Batch]


def kernels(params: Params) -> Params:
    """Returns a tree of bools, True on what weight decay applies to: leaves with two dimensions or more.

    Biases and the scales of norms are vectors; to shrink them buys no regularisation. They are left out by
    name too, for under `nn.scan` or with several heads they have more dimensions. So are class tokens and
    positions, as in the code of DeiT and timm.
    """

    def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim >= 2 and not UNDECAYED.fullmatch(path_name(path[-1:]))

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def l1(weight: float, mask: Callable[[Params], Params] = kernels) -> Penalty:
    """Returns the penalty λ Σ|θ| over the parameters that the mask selects; its gradient is λ sign(θ).

    λ is `weight`, at least 0.
    """
    check("weight", weight, NON_NEGATIVE)
    return lambda params: weight * _sum(jnp.abs, params, mask)


def l2(weight: float, mask: Callable[[Params], Params] = kernels) -> Penalty:
    """Returns the penalty λ Σθ², without ½: its gradient is 2 λ θ.

    Under SGD it equals `weight_decay` = 2 λ; under Adam it does not (Loshchilov & Hutter 2019).
    """
    check("weight", weight, NON_NEGATIVE)
    return lambda params: weight * _sum(jnp.square, params, mask)


def with_penalty(loss_fn: LossFn, *penalties: Penalty) -> LossFn:
    """Returns the loss plus penalties of the parameters, which do not depend on the batch.

    The metric `loss` stays the data's, so that curves can be compared; `penalty` is the sum of the others.
    """

    def penalized(
        params: Params, model_state: ModelState, batch: Batch, key: Key | None
    ) -> tuple[jax.Array, Aux]:
        loss, aux = loss_fn(params, model_state, batch, key)
        penalty = sum((penalty(params) for penalty in penalties), start=jnp.zeros(()))
        metrics = {**aux.metrics, "penalty": Mean.of(penalty[None], better="min")}
        return loss + penalty, Aux(aux.model_state, metrics)

    return like(penalized, loss_fn)


class Dropout(nn.Dropout):
    """Linen's dropout (Srivastava et al. 2014), which refuses a rate that is no probability."""

    def __post_init__(self) -> None:
        check("dropout rate", self.rate, PROBABILITY)
        super().__post_init__()


class SpatialDropout(nn.Module):
    """Dropout of whole channels: neighbouring pixels agree, so to drop single ones drops little.

    Tompson et al. 2015, 3.2. Input B × … × C; every example draws its own channels, which are kept with
    probability 1 − rate and then divided by it. The identity unless `train`.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        places = tuple(range(1, x.ndim - 1))
        return Dropout(self.rate, broadcast_dims=places, deterministic=not train)(x)


class StochasticDepth(nn.Module):
    """Drops a residual branch whole: `x + StochasticDepth(0.1)(branch(x), train=train)`.

    Huang et al. 2016, eq. 2. Every example draws for itself; a branch that is kept is divided by 1 − rate, so
    that evaluation needs no scaling. Keras and timm call this "drop connect" too.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        rest = tuple(range(1, x.ndim))
        return Dropout(self.rate, broadcast_dims=rest, deterministic=not train)(x)


class DropConnectDense(nn.Module):
    """A dense layer whose single weights, not units, are dropped in training (Wan et al. 2013, 3).

    The output is x (M ∘ W) / (1 − rate) + b. The mask M is Bernoulli, of the kernel's shape, and one per
    example, which the paper finds necessary (3.1); it takes B·D·F numbers. Evaluation uses the mean weights
    W: no connection is dropped.

    Attributes:
      features: F.
      rate: the probability that a weight is dropped.
      use_bias: whether b is added; it is never dropped.
      dtype: of the computation. None: of inputs and parameters.
    """

    features: int
    rate: float
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BD: jax.Array, *, train: bool) -> jax.Array:
        """Returns an array of shape B × F; the mask comes from the stream `dropout`."""
        check("rate", self.rate, BELOW_ONE)
        shape = (x_BD.shape[-1], self.features)
        kernel_DF = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias_F = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x_BD, kernel_DF = nn.dtypes.promote_dtype(x_BD, kernel_DF, dtype=self.dtype)
        if train and self.rate > 0:
            mask_BDF = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x_BD.shape[0], *shape))
            kernel_BDF = jnp.where(mask_BDF, kernel_DF[None] / (1 - self.rate), 0)
            y_BF = jnp.einsum("bd,bdf->bf", x_BD, kernel_BDF)
        else:
            y_BF = x_BD @ kernel_DF
        return y_BF if bias_F is None else y_BF + bias_F.astype(y_BF.dtype)[None]


def with_mixing(loss_fn: LossFn, mix: Mix) -> LossFn:
    """Returns the loss of batches that are mixed in training, by `mixup` or `cutmix`; evaluation is not.

    Under `accumulated_gradient` examples mix within their micro-batch.
    """

    def mixed(
        params: Params, model_state: ModelState, batch: Batch, key: Key | None
    ) -> tuple[jax.Array, Aux]:
        if key is not None:
            mix_key, key = jax.random.split(key)
            batch = mix(mix_key, batch)
        return loss_fn(params, model_state, batch, key)

    return like(mixed, loss_fn)


def mixup(alpha: float, num_classes: int, name: str = "image") -> Mix:
    """Returns a mixing of pairs: λ x + (1 − λ) x', and the same of their labels (Zhang et al. 2018, eq. 1).

    λ ~ Beta(α, α), one for the batch, as in the paper's code. Every valid example is paired with another one
    in a random order over the whole batch, so that the number of devices changes nothing; padding stays as it
    is. The soft labels stand in `target`, shape B × C, which `losses.classification` reads.

    Args:
      alpha: α; 0.1 to 0.4 for images; 0 for no mixing: the targets are one-hot.
      num_classes: C.
      name: the feature that is mixed.

    Raises:
      UserError: α is negative or not finite, or there are no classes.
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
    """Returns a mixing that pastes a box of one image into another (Yun et al. 2019, 3.1).

    The box has the image's proportions and the fraction 1 − λ of its area, λ ~ Beta(α, α), one for the batch;
    its centre is uniform, and what lies outside is cut off. The labels are mixed by the areas that are seen.
    Pairs, padding, `target` and an α of 0 are as in `mixup`; the paper's α is 1.
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
    if alpha == 0:  # the limit of Beta(α, α) is 0 or 1 with equal chances: nothing is mixed
        return jnp.ones(())
    # Beta(1, 1) is uniform; the general sampler is a loop, slow to compile.
    return jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)


def _partners(key: Key, mask_B: jax.Array) -> jax.Array:
    """Returns for each valid example the next one in a random order, and for padding itself."""
    order_B = jnp.argsort(jnp.where(mask_B, jax.random.uniform(key, mask_B.shape), 2.0))
    places_B = jnp.arange(mask_B.size)
    num_valid = mask_B.sum()
    next_B = jnp.where(places_B < num_valid, (places_B + 1) % jnp.maximum(num_valid, 1), places_B)
    return jnp.zeros_like(order_B).at[order_B].set(order_B[next_B])


def _mixed_targets(batch: Batch, partner_B: jax.Array, ratio: jax.Array, num_classes: int) -> jax.Array:
    target_BC = (
        batch["target"] if "target" in batch else jax.nn.one_hot(batch["label"].reshape(-1), num_classes)
    )
    return ratio * target_BC + (1 - ratio) * target_BC[partner_B]


def _sum(
    function: Callable[[jax.Array], jax.Array], params: Params, mask: Callable[[Params], Params]
) -> jax.Array:
    sums = jax.tree.map(
        # In float32 at least, whatever the precision of the run.
        lambda leaf, use: (
            function(leaf).sum(dtype=jnp.promote_types(leaf.dtype, jnp.float32)) if use else 0.0
        ),
        params,
        mask(params),
    )
    return sum(jax.tree.leaves(sums), start=jnp.zeros(()))
