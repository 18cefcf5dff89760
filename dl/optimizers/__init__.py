"""Optimizer recipes over optax.

A recipe is a function that returns a `GradientTransformation`; its state tells the current learning rate
under the name `learning_rate`. The rate is a number or a schedule (`dl.schedules`, whose names stand here
too). θ are the parameters, g the gradient, α the rate. Options of most recipes: `clip_norm`, the global norm
that a gradient is scaled down to before all else, and `weight_decay`, λ, which spares biases and the scales
of norms and is decoupled (θ ← θ − α λ θ beside the step) unless the recipe says otherwise.

Sharpness-aware minimisation is no recipe but a `grad_fn`: `gradients.sharpness_aware_gradient`.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dl.errors import UserError
from dl.optimizers.muon import hidden_kernels, muon, muon_like_adamw
from dl.optimizers.transforms import Rate, check_moments, decay_weights, recipe
from dl.penalties import kernels
from dl.ranges import BELOW_ONE, NON_NEGATIVE, POSITIVE, STEPS, Range, check, check_count
from dl.schedules import Plateau, Schedule, constant, cosine, linear, plateau, step, wsd
from dl.sharding import path_name
from dl.types import Params

__all__ = [
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "by_path",
    "constant",
    "cosine",
    "hidden_kernels",
    "kernels",
    "lamb",
    "lars",
    "linear",
    "lion",
    "muon",
    "muon_like_adamw",
    "plateau",
    "rmsprop",
    "schedule_free_adamw",
    "sgd",
    "step",
    "wsd",
]


def sgd(
    learning_rate: Rate,
    momentum: float = 0.0,
    *,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns stochastic gradient descent: v ← μ v + g, θ ← θ − α v (α (g + μ v) with Nesterov).

    Args:
      learning_rate: α.
      momentum: μ; 0 keeps no velocity.
      nesterov: look ahead along the velocity (Sutskever et al. 2013, as PyTorch states it).
      weight_decay: λ, added to the gradient of kernels as λ θ (L2, coupled).
      clip_norm: the global norm that a gradient is scaled down to before all else.
    """
    check("momentum", momentum, BELOW_ONE)
    return recipe(
        clip_norm,
        decay_weights(weight_decay),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        learning_rate=learning_rate,
    )


def adam(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Adam with bias correction (Kingma & Ba 2015, algorithm 1).

    m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − α m̂ / (√v̂ + ε).
    """
    check_moments(b1, b2, eps)
    return recipe(clip_norm, optax.scale_by_adam(b1, b2, eps), learning_rate=learning_rate)


def adamw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: float = 1e-2,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    θ ← θ − α (m̂ / (√v̂ + ε) + λ θ), where λ = `weight_decay` on kernels and 0 on biases and the scales of
    norms: a parameter that gets no gradient shrinks by exactly (1 − α λ) a step.
    """
    check_moments(b1, b2, eps)
    return recipe(
        clip_norm,
        optax.scale_by_adam(b1, b2, eps),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )


def adagrad(
    learning_rate: Rate,
    initial_accumulator: float = 0.0,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns AdaGrad (Duchi et al. 2011, fig. 1, diagonal): s ← s + g², θ ← θ − α g / √s.

    Where s is 0 no gradient was ever seen and nothing moves, so no ε is needed. A parameter with rare
    gradients keeps a large step: made for sparse features.

    Args:
      initial_accumulator: s before the first step; above 0 the first steps are damped.
    """
    check("initial_accumulator", initial_accumulator, NON_NEGATIVE)
    return recipe(
        clip_norm,
        optax.scale_by_rss(initial_accumulator, eps=0.0),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )


def rmsprop(
    learning_rate: Rate,
    decay: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns RMSprop (Tieleman & Hinton 2012, lecture 6e): v ← ρ v + (1 − ρ) g², θ ← θ − α g / (√v + ε).

    ε outside the root, as in PyTorch; no bias correction, so that the first steps are 1/√(1 − ρ) long.

    Args:
      decay: ρ.
      eps: ε.
      momentum: of a velocity over the scaled gradients; 0 keeps none.
    """
    check("decay", decay, BELOW_ONE)
    check("eps", eps, NON_NEGATIVE)
    check("momentum", momentum, BELOW_ONE)
    return recipe(
        clip_norm,
        optax.scale_by_rms(decay, eps, eps_in_sqrt=False),
        optax.trace(momentum) if momentum else optax.identity(),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )


def lion(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.99,
    *,
    weight_decay: float = 0.1,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Lion (Chen et al. 2023, algorithm 2): θ ← θ − α (sign(β₁ m + (1 − β₁) g) + λ θ).

    Then m ← β₂ m + (1 − β₂) g. Every entry moves by α: the rate is 3 to 10 times lower than Adam's, the
    decay as many times higher (5).
    """
    check_moments(b1, b2, 0.0)
    return recipe(
        clip_norm,
        optax.scale_by_lion(b1, b2),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )


def lamb(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    *,
    weight_decay: float = 1e-2,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns LAMB, Adam whose step is in proportion to each kernel's norm (You et al. 2020, algorithm 2).

    u = m̂ / (√v̂ + ε) + λ θ, θ ← θ − α u ‖θ‖ / ‖u‖, norms per parameter. Biases and norms, which the paper's
    code exempts too, and parameters that are 0 take the step α u.
    """
    check_moments(b1, b2, eps)
    return recipe(
        clip_norm,
        optax.scale_by_adam(b1, b2, eps),
        decay_weights(weight_decay),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        learning_rate=learning_rate,
    )


def lars(
    learning_rate: Rate,
    momentum: float = 0.9,
    *,
    trust_coefficient: float = 1e-3,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns LARS, momentum with a rate per kernel (You et al. 2017, algorithm 1).

    u = g + λ θ, v ← μ v + α η u ‖θ‖ / ‖u‖, θ ← θ − v. The paper divides by ‖g‖ + λ ‖θ‖, which bounds ‖u‖ from
    above; its successors divide by ‖u‖ itself, as here. λ is coupled.
    Biases and norms take plain momentum, undecayed.

    Args:
      learning_rate: α; inside the velocity, so that a change of rate acts on new gradients alone.
      momentum: μ.
      trust_coefficient: η.
    """
    check("momentum", momentum, BELOW_ONE)
    check("trust_coefficient", trust_coefficient, POSITIVE)
    descend = recipe(
        clip_norm,
        decay_weights(weight_decay),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), kernels),
        learning_rate=learning_rate,
    )
    return optax.chain(descend, optax.trace(momentum))


def adafactor(
    learning_rate: Rate | None = None,
    *,
    decay_exponent: float = 0.8,
    clip_threshold: float = 1.0,
    min_factored_dim: int = 128,
    relative_step: bool = True,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Adafactor, whose second moments take a row and a column per matrix (Shazeer & Stern 2018).

    Algorithm 4 with β₁ = 0: R ← β R + (1 − β) mean of (g² + 10⁻³⁰) over columns, C over rows, β = 1 − t^−0.8;
    V = R Cᵀ / mean(R), u = g / √V, u ← u / max(1, RMS(u) / d), θ ← θ − α max(10⁻³, RMS(θ)) u.

    Args:
      learning_rate: α. None: the paper's min(10⁻², 1/√t), which caps the relative step (algorithm 6). A rate
        that is given is taken as it is, without that cap.
      decay_exponent: of t in β.
      clip_threshold: d, of each parameter's step.
      min_factored_dim: matrices with a smaller side keep all second moments.
      relative_step: scale α by the root mean square of each parameter, 10⁻³ at least.
    """
    check("decay_exponent", decay_exponent, Range(0, 1, above_low=True))
    check("clip_threshold", clip_threshold, POSITIVE)
    min_factored_dim = check_count("min_factored_dim", min_factored_dim, STEPS)

    def decay_rate(count: jax.Array, exponent: float) -> jax.Array:
        return 1.0 - (count + 1.0) ** (-exponent)  # optax's own is float32 at most

    def capped(count: jax.Array | int) -> jax.Array:
        return jnp.minimum(1e-2, (count + 1.0) ** -0.5)

    return recipe(
        clip_norm,
        optax.scale_by_factored_rms(
            decay_rate=decay_exponent, min_dim_size_to_factor=min_factored_dim, decay_rate_fn=decay_rate
        ),
        optax.clip_by_block_rms(clip_threshold),
        optax.scale_by_param_block_rms() if relative_step else optax.identity(),
        decay_weights(weight_decay),
        learning_rate=capped if learning_rate is None else learning_rate,
    )


def schedule_free_adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: float = 1e-2,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns AdamW that averages instead of lowering its rate (Defazio et al. 2024, algorithm 1).

    Gradients are taken at y = (1 − β₁) z + β₁ x, which is what `state.params` holds; z makes Adam's steps
    without momentum; x is the average of z weighted by the squared rate, and `state.eval_params` returns it:
    that is what is evaluated. β₁ > 0. Give a constant rate with warm-up. The weight decays at y.
    """
    if isinstance(learning_rate, Plateau):
        raise UserError("learning_rate=plateau(...) is of no use to schedule_free_adamw; give it a number")
    check("b1", b1, Range(0, 1, above_low=True, below_high=True))
    check_moments(b1, b2, eps)
    steps = recipe(
        clip_norm,
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )
    # optax counts from 1 here, and from 0 in the recipe.
    rate = (lambda count: learning_rate(count - 1)) if callable(learning_rate) else learning_rate
    return optax.contrib.schedule_free(steps, rate, b1)


def by_path(parts: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Returns an optimizer for each part of the model, such as a lower rate the nearer to the input.

        by_path({"^head/": adam(1e-3), "block1[0-6]/": adam(1e-4), "": adam(1e-5)})

    Args:
      parts: by a pattern that is searched for in a parameter's path; the first one found decides, and the
        empty one is found everywhere. Frozen parameters have no part in it: see `Experiment.frozen`.

    Raises:
      UserError: a parameter that no pattern finds, or a pattern that decides nothing.
    """

    def label(params: Params) -> Params:
        used = set()

        def first(path: tuple[Any, ...], leaf: jax.Array) -> str:
            name = path_name(path)
            for pattern in parts:
                if re.search(pattern, name):
                    used.add(pattern)
                    return pattern
            raise UserError(f"no pattern of {list(parts)} is found in {name}; add one, or '' for the rest")

        labels = jax.tree_util.tree_map_with_path(first, params)
        if unused := [pattern for pattern in parts if pattern not in used]:
            raise UserError(f"the pattern {unused[0]!r} decides for no parameter; change or remove it")
        return labels

    return optax.partition(dict(parts), label)
