"""The `grad_fn` seam: how a loss function becomes a gradient.

Everything that changes what "the gradient" means plugs in here and nowhere else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dl.metrics import Mean
from dl.ranges import NON_NEGATIVE, STEPS, check, check_count
from dl.types import Aux, Batch, GradFn, Key, LossFn, ModelState, Params

LossAndGradient = tuple[tuple[jax.Array, Aux], Params]


def mean_gradient(loss_fn: LossFn):  # type: ignore[no-untyped-def]
    """Returns the gradient of the mean loss over the batch."""
    return jax.value_and_grad(_mean_loss(loss_fn), has_aux=True)


def accumulated_gradient(num_micro_batches: int) -> GradFn:
    """Returns a grad_fn that sees the batch in equal parts, one after the other.

    The result equals the full batch's: each part is weighted by what its loss counts, such as valid examples
    or tokens, so that neither padding nor sequences of unequal length skew it. Memory for activations falls
    by `num_micro_batches`. Running statistics are updated part by part.

    Args:
      num_micro_batches: must divide the batch size.
    """
    num_micro_batches = check_count("num_micro_batches", num_micro_batches, STEPS)

    def grad_fn(loss_fn: LossFn):  # type: ignore[no-untyped-def]
        differentiate = jax.value_and_grad(_mean_and_loss(loss_fn), has_aux=True)

        def accumulated(
            params: Params, model_state: ModelState, batch: Batch, key: Key | None
        ) -> LossAndGradient:
            batch_size = batch["mask"].shape[0]
            if batch_size % num_micro_batches:
                raise ValueError(
                    f"num_micro_batches={num_micro_batches} does not divide the batch size "
                    f"{batch_size}; choose a divisor"
                )

            def body(carry, part_and_index):  # type: ignore[no-untyped-def]
                gradient, before, model_state = carry
                part, index = part_and_index
                part_key = None if key is None else jax.random.fold_in(key, index)
                (_, (part_loss, aux)), part_gradient = differentiate(params, model_state, part, part_key)
                loss = before.merge(part_loss)
                # The gradient of the mean over all parts so far. Sums would overflow where a loss scale
                # makes gradients large.
                gradient = jax.tree.map(
                    lambda old, new: (
                        old * (before.divisor / loss.divisor).astype(old.dtype)
                        + new * (part_loss.divisor / loss.divisor).astype(new.dtype)
                    ),
                    gradient,
                    part_gradient,
                )
                return (gradient, loss, aux.model_state), aux.metrics

            # Every part takes each num_micro_batches-th example, so that a batch sharded over devices
            # is split within each device and nothing moves between them.
            parts = jax.tree.map(
                lambda x: x.reshape(-1, num_micro_batches, *x.shape[1:]).swapaxes(0, 1), batch
            )
            start = (jax.tree.map(jnp.zeros_like, params), Mean(jnp.zeros(()), jnp.zeros(())), model_state)
            (gradient, loss, model_state), metrics = jax.lax.scan(
                body, start, (parts, jnp.arange(num_micro_batches))
            )
            joined = {name: _join(mean, batch_size) for name, mean in metrics.items()}
            return (loss.compute(), Aux(model_state, joined)), gradient

        return accumulated

    return grad_fn


def _mean_loss(loss_fn: LossFn) -> Callable[..., tuple[jax.Array, Aux]]:
    """Returns the function whose gradient is taken: the mean, and what comes with it."""
    mean_and_loss = _mean_and_loss(loss_fn)

    def mean_loss(*args: Any) -> tuple[jax.Array, Aux]:
        mean, (_, aux) = mean_and_loss(*args)
        return mean, aux

    return mean_loss


def _mean_and_loss(loss_fn: LossFn) -> Callable[..., tuple[jax.Array, tuple[Mean, Aux]]]:
    """Returns the same with the loss as a `Mean` without direction or examples, which adds up over parts."""

    def mean_and_loss(*args: Any) -> tuple[jax.Array, tuple[Mean, Aux]]:
        loss, aux = loss_fn(*args)
        if not isinstance(loss, Mean):
            raise TypeError(
                f"the loss is a {type(loss).__name__}; it must be a dl.metrics.Mean, which "
                'Mean.of(loss_B, batch["mask"]) makes of one loss an example'
            )
        # Through the count too, the gradients of parts would not add up to the batch's.
        loss = Mean(loss.total, jax.lax.stop_gradient(loss.count))
        return loss.compute(), (loss, aux)

    return mean_and_loss


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
