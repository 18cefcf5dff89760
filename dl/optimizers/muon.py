"""Muon, in two versions: Nesterov momentum whose update is replaced by an orthogonal matrix.

Source: Keller Jordan, github.com/KellerJordan/Muon, `muon.py`; Jordan et al. 2024, "Muon: An optimizer for
hidden layers in neural networks".

Shapes: I inputs, O outputs of a kernel.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from dl.optimizers.transforms import Rate, check_moments, decay_weights, recipe
from dl.penalties import kernels
from dl.ranges import BELOW_ONE, NON_NEGATIVE, POSITIVE, check
from dl.sharding import path_name
from dl.types import Params

HEADS = r"(^|/)(head|lm_head|classifier|logits|output)/"


class LookAheadState(NamedTuple):
    """The moving average of the gradients."""

    mean: Params


def look_ahead(momentum: float) -> optax.GradientTransformation:
    """Returns m ← μ m + (1 − μ) g with the update μ m + (1 − μ) g (Nesterov), without bias correction."""

    def init(params: Params) -> LookAheadState:
        return LookAheadState(optax.tree.zeros_like(params))

    def update(gradient: Params, state: LookAheadState, params: Any = None) -> tuple[Params, LookAheadState]:
        mean = optax.tree.update_moment(gradient, state.mean, momentum, 1)
        return optax.tree.update_moment(gradient, mean, momentum, 1), LookAheadState(mean)

    return optax.GradientTransformation(init, update)


def orthogonal_momentum(momentum: float, eps: float, bias_correction: bool) -> optax.GradientTransformation:
    """Returns the transformation to approximately U Vᵀ, where U S Vᵀ is the Nesterov average of a gradient.

    A gradient of shape (…, O) is read as a matrix of shape (I, O). With `bias_correction`, m is divided by
    1 − μ^(t + 1) and g by 1 − μ^t before they are added, as in optax.
    """

    def dims(params: Params) -> Params:
        return jax.tree.map(
            lambda leaf: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1),
            params,
        )

    if bias_correction:
        return optax.contrib.scale_by_muon(beta=momentum, eps=eps, weight_dimension_numbers=dims)
    # With momentum 0 optax's transformation corrects nothing, and its state need not be kept.
    stateless = optax.contrib.scale_by_muon(beta=0.0, eps=eps, nesterov=False, weight_dimension_numbers=dims)
    return optax.chain(
        look_ahead(momentum),
        optax.stateless(lambda updates, _: stateless.update(updates, stateless.init(updates))[0]),
    )


def hidden_kernels(params: Params) -> Params:
    """Returns a tree of bools, True for the parameters that Muon suits: all kernels except the head's.

    A kernel is a parameter of that name with at least two dimensions. The head is a module `head`, `lm_head`,
    `classifier`, `logits` or `output`. If there is none, it is the last of the outermost modules `Dense_0`,
    `Dense_1`, …. Embeddings, positions, biases and scales are not kernels.
    """
    shapes = {path_name(path): leaf.ndim for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    names = [name for name, ndim in shapes.items() if ndim >= 2 and name.rpartition("/")[2] == "kernel"]
    heads = {name for name in names if re.search(HEADS, name)} or _last_dense(names)
    hidden = set(names) - heads
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) in hidden, params)


def _last_dense(names: list[str]) -> set[str]:
    found = [name for name in names if re.search(r"(^|/)Dense_\d+/kernel$", name)]
    outermost = min((name.count("/") for name in found), default=0)
    numbered = {
        int(name.split("/")[-2].partition("_")[2]): name for name in found if name.count("/") == outermost
    }
    return {numbered[max(numbered)]} if numbered else set()


def muon(
    learning_rate: Rate = 0.02,
    momentum: float = 0.95,
    *,
    matrices: Callable[[Params], Params] = hidden_kernels,
    adam_ratio: float = 0.015,
    update_rms: float | None = None,
    bias_correction: bool = False,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-7,
    adam_eps: float = 1e-10,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Muon for hidden matrices and AdamW for the other parameters (Jordan et al. 2024).

    m ← μ m + (1 − μ) g, u = μ m + (1 − μ) g (Nesterov). Then u is replaced by the nearest orthogonal matrix,
    by five steps of X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X from X = u / (‖u‖ + ε), (a, b, c) = (3.4445, −4.7750,
    2.0315). θ ← θ − α (√max(1, fan-out / fan-in) X + λ θ). The other parameters use AdamW with the rate 0.015
    α, which is 3·10⁻⁴ for α = 0.02 as in the author's code. That code iterates in bfloat16. This one keeps
    the dtype of the gradient.

    The last dimension of a kernel is its output. The others, flattened, are its input, also for convolutions.
    (For convolutions the author's code uses the factor √max(1, height / width) of the kernel, which is 1.)
    Exclude a kernel with several output dimensions by `matrices`.

    Args:
      learning_rate: learning rate α of the matrices.
      momentum: momentum μ, in [0, 1).
      matrices: function from the parameters to a tree of bools, True for those that are orthogonalised.
      adam_ratio: learning rate of AdamW divided by α.
      update_rms: root mean square of the entries of Muon's step, divided by α, for matrices of any shape. Liu
        et al. 2025, eq. 4, use 0.2, as AdamW has. `None` means the factor √max(1, fan-out / fan-in).
      bias_correction: whether m is divided by 1 − μ^(t + 1) and g by 1 − μ^t before they are added, as in
        optax.
      b1: β₁ of AdamW.
      b2: β₂ of AdamW.
      eps: ε of Muon.
      adam_eps: ε of AdamW.
      weight_decay: weight decay λ of all kernels, including those that use AdamW.
      clip_norm: largest global norm of the gradient. A longer gradient is scaled down to it first.
    """
    check("momentum", momentum, BELOW_ONE)
    check("adam_ratio", adam_ratio, NON_NEGATIVE)
    if update_rms is not None:
        check("update_rms", update_rms, POSITIVE)
    check_moments(b1, b2, eps)
    check("adam_eps", adam_eps, NON_NEGATIVE)

    def label(params: Params) -> Params:
        return jax.tree.map(lambda is_matrix: "matrix" if is_matrix else "rest", matrices(params))

    def rescale(update: jax.Array, _: jax.Array | None) -> jax.Array:
        fan_in, fan_out = update.size // update.shape[-1], update.shape[-1]
        factor = max(1.0, fan_out / fan_in) ** 0.5
        if update_rms is not None:
            factor = update_rms * max(fan_in, fan_out) ** 0.5
        return factor * update

    orthogonal = orthogonal_momentum(momentum, eps, bias_correction)
    decay = decay_weights(weight_decay)
    parts = {
        "matrix": optax.chain(orthogonal, optax.stateless_with_tree_map(rescale), decay),
        "rest": optax.chain(optax.scale_by_adam(b1, b2, adam_eps), decay, optax.scale(adam_ratio)),
    }
    return recipe(clip_norm, optax.partition(parts, label), learning_rate=learning_rate)


def muon_like_adamw(
    learning_rate: Rate,
    momentum: float = 0.95,
    *,
    matrices: Callable[[Params], Params] = kernels,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns `muon` with steps as long as those of AdamW, so that both use the same rate and weight decay.

    It differs from the author's Muon. The root mean square of the entries of a step is 0.2 α (Liu et al.
    2025, eq. 4). Momentum and gradient have separate bias corrections. All kernels are orthogonalised,
    including that of the head.

    Args:
      learning_rate: learning rate α of all parameters.
      momentum: momentum μ, in [0, 1).
      matrices: function from the parameters to a tree of bools, True for those that are orthogonalised.
      eps: ε of Muon and of AdamW.
      weight_decay: weight decay λ of kernels.
      clip_norm: largest global norm of the gradient. A longer gradient is scaled down to it first.
    """
    return muon(
        learning_rate,
        momentum,
        matrices=matrices,
        adam_ratio=1.0,
        update_rms=0.2,
        bias_correction=True,
        eps=eps,
        adam_eps=eps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )
