"""Gradient functions (`grad_fn`): each one turns a loss function into a gradient.

A method that changes the meaning of "the gradient", such as SAM, is written as a `grad_fn`.
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
    """Returns a `grad_fn` that processes the batch in equal parts, one after the other.

    The result equals the gradient of the full batch. Each part is weighted by what its loss counts, such as
    valid examples or tokens, so neither padding nor sequences of unequal length bias the result. The memory
    for activations shrinks by the factor `num_micro_batches`. Running statistics are updated after each part.

    Args:
      num_micro_batches: number of parts. It must divide the batch size.

    Raises:
      UserError: `num_micro_batches` is not a positive whole number.
      ValueError: it does not divide the batch size, when the gradient is computed.
    """
    num_micro_batches = check_count("num_micro_batches", num_micro_batches, STEPS)

    def grad_fn(loss_fn: LossFn):  # type: ignore[no-untyped-def]
        differentiate = jax.value_and_grad(mean_and_loss(loss_fn), has_aux=True)

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
                # This is the gradient of the mean over all parts so far. A sum could overflow where a loss
                # scale makes the gradients large.
                gradient = jax.tree.map(
                    lambda old, new: (
                        old * (before.divisor / loss.divisor).astype(old.dtype)
                        + new * (part_loss.divisor / loss.divisor).astype(new.dtype)
                    ),
                    gradient,
                    part_gradient,
                )
                return (gradient, loss, aux.model_state), aux.metrics

            # Each part takes every num_micro_batches-th example. A batch that is sharded over devices is
            # then split within each device, and no data moves between devices.
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
    """Returns a function that returns the mean loss, whose gradient is taken, and the `Aux` of the loss."""
    both = mean_and_loss(loss_fn)

    def mean_loss(*args: Any) -> tuple[jax.Array, Aux]:
        mean, (_, aux) = both(*args)
        return mean, aux

    return mean_loss


def mean_and_loss(loss_fn: LossFn) -> Callable[..., tuple[jax.Array, tuple[Mean, Aux]]]:
    """Returns a function that also returns the loss as a `Mean` without `better` and `each`.

    Such a `Mean` can be added up over the parts of a batch.
    """

    def both(*args: Any) -> tuple[jax.Array, tuple[Mean, Aux]]:
        loss, aux = loss_fn(*args)
        if not isinstance(loss, Mean):
            raise TypeError(
                f"the loss is a {type(loss).__name__}; it must be a dl.metrics.Mean: return "
                'Mean.of(loss_B, batch["mask"]) with one loss per example'
            )
        # If a gradient flowed through the count, the gradients of parts would not add up to the batch's.
        loss = Mean(loss.total, jax.lax.stop_gradient(loss.count))
        return loss.compute(), (loss, aux)

    return both


def _join(parts: Mean, batch_size: int) -> Mean:
    """Returns a metric of the whole batch from the metric of its parts, stacked along a leading axis."""
    each = None
    if parts.each is not None and parts.each[0].size == batch_size:
        totals_B, counts_B = (x.swapaxes(0, 1).reshape(-1) for x in parts.each)  # as the parts were cut
        each = totals_B, counts_B
    return Mean(parts.total.sum(0), parts.count.sum(0), each, parts.better)


def sharpness_aware_gradient(rho: float = 0.05, grad_fn: GradFn = mean_gradient) -> GradFn:
    """Returns a `grad_fn` for sharpness-aware minimisation (SAM), which prefers flat minima.

    It computes g = ∇L(θ) and returns ∇L(θ + ρ g / ‖g‖), with the norm over all parameters. Loss, metrics and
    running statistics are those at θ. Both passes use the same dropout masks. A step costs two gradients.

    Source: Foret et al. 2021, algorithm 1.

    Args:
      rho: ρ, distance from θ to the point whose gradient is used, at least 0.
      grad_fn: `grad_fn` that computes each of the two gradients, for example `accumulated_gradient(4)`.

    Raises:
      UserError: `rho` is out of range.
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
