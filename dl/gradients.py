"""The `grad_fn` seam: how a loss function becomes a gradient.

Everything that changes what "the gradient" means plugs in here and nowhere else.
"""

import jax
import jax.numpy as jnp
import optax

from dl.metrics import Mean
from dl.ranges import NON_NEGATIVE, STEPS, check, check_count
from dl.types import Aux, Batch, GradFn, Key, LossFn, ModelState, Params

LossAndGradient = tuple[tuple[jax.Array, Aux], Params]


def mean_gradient(loss_fn: LossFn):  # type: ignore[no-untyped-def]
    """Returns the gradient of the mean loss over the batch."""
    return jax.value_and_grad(loss_fn, has_aux=True)


def accumulated_gradient(num_micro_batches: int) -> GradFn:
    """Returns a grad_fn that sees the batch in equal parts, one after the other.

    The result equals the full batch's: each part is weighted by its number of valid examples, so padding
    does not skew it. Memory for activations falls by `num_micro_batches`. Running statistics are updated
    part by part.

    Args:
      num_micro_batches: must divide the batch size.
    """
    num_micro_batches = check_count("num_micro_batches", num_micro_batches, STEPS)

    def grad_fn(loss_fn: LossFn):  # type: ignore[no-untyped-def]
        def accumulated(
            params: Params, model_state: ModelState, batch: Batch, key: Key | None
        ) -> LossAndGradient:
            batch_size = batch["mask"].shape[0]
            if batch_size % num_micro_batches:
                raise ValueError(
                    f"num_micro_batches={num_micro_batches} does not divide the batch size "
                    f"{batch_size}; choose a divisor"
                )
            total = jnp.maximum(batch["mask"].sum(), 1)

            def weighted(params, model_state, part, part_key):  # type: ignore[no-untyped-def]
                loss, aux = loss_fn(params, model_state, part, part_key)
                return loss * (part["mask"].sum() / total), aux

            def body(carry, part_and_index):  # type: ignore[no-untyped-def]
                gradient, loss, model_state = carry
                part, index = part_and_index
                part_key = None if key is None else jax.random.fold_in(key, index)
                (part_loss, aux), part_gradient = jax.value_and_grad(weighted, has_aux=True)(
                    params, model_state, part, part_key
                )
                gradient = jax.tree.map(jnp.add, gradient, part_gradient)
                return (gradient, loss + part_loss, aux.model_state), aux.metrics

            # Every part takes each num_micro_batches-th example, so that a batch sharded over devices
            # is split within each device and nothing moves between them.
            parts = jax.tree.map(
                lambda x: x.reshape(-1, num_micro_batches, *x.shape[1:]).swapaxes(0, 1), batch
            )
            start = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), model_state)
            (gradient, loss, model_state), metrics = jax.lax.scan(
                body, start, (parts, jnp.arange(num_micro_batches))
            )
            joined = {name: _join(mean, batch_size) for name, mean in metrics.items()}
            return (loss, Aux(model_state, joined)), gradient

        return accumulated

    return grad_fn


def _join(parts: Mean, batch_size: int) -> Mean:
    """Returns a metric of the whole batch from those of its parts, along a leading axis."""
    each = None
    if parts.each is not None and parts.each[0].size == batch_size:
        totals_B, counts_B = (x.swapaxes(0, 1).reshape(-1) for x in parts.each)  # as the parts were cut
        each = totals_B, counts_B
    return Mean(parts.total.sum(0), parts.count.sum(0), each, parts.better)


def sharpness_aware_gradient(rho: float = 0.05, grad_fn: GradFn = mean_gradient) -> GradFn:
    """Returns a grad_fn that finds flat minima: the gradient at the worst point nearby (SAM).

    Foret et al. 2021, algorithm 1: g = ∇L(θ), then ∇L(θ + ρ g / ‖g‖), with the norm over all parameters.
    Loss, metrics and running statistics are those at θ; both passes draw the same dropout. A step costs two.

    Args:
      rho: ρ, how far away the worst point is sought.
      grad_fn: how each of the two gradients is taken, for example `accumulated_gradient(4)`.
    """
    check("rho", rho, NON_NEGATIVE)

    def sharpness_aware(loss_fn: LossFn):  # type: ignore[no-untyped-def]
        inner = grad_fn(loss_fn)

        def at_the_worst_point(
            params: Params, model_state: ModelState, batch: Batch, key: Key | None
        ) -> LossAndGradient:
            loss_and_aux, gradient = inner(params, model_state, batch, key)
            norm = optax.tree.norm(gradient)
            length = rho / jnp.where(norm > 0, norm, 1.0)
            worst = jax.tree.map(lambda p, g: p + (length * g).astype(p.dtype), params, gradient)
            _, gradient = inner(worst, model_state, batch, key)
            return loss_and_aux, gradient

        return at_the_worst_point

    return sharpness_aware
