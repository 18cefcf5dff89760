"""Mixed precision: which dtype is stored, computed and returned, and the loss scale that float16 needs.

Source: Micikevicius et al. 2018, "Mixed Precision Training".
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Policy:
    """The dtypes of a model. Pass `compute` as the `dtype` of Linen modules, `param` as `param_dtype`.

    Attributes:
      param: of the stored parameters; keep float32 where they are trained.
      compute: of matrix products and activations.
      output: of logits and losses, which need the range and precision.
    """

    param: Any = jnp.float32
    compute: Any = jnp.float32
    output: Any = jnp.float32

    @property
    def needs_loss_scale(self) -> bool:
        """float16 has 5 exponent bits: small gradients vanish unless the loss is scaled up."""
        return jnp.dtype(self.compute) == jnp.float16


FULL = Policy()
BFLOAT16 = Policy(compute=jnp.bfloat16)
FLOAT16 = Policy(compute=jnp.float16)


@flax.struct.dataclass
class LossScale:
    """A loss scale that doubles after `growth_interval` finite steps and halves on overflow (§3.2).

    Attributes:
      scale: float32, the factor on the loss.
      num_finite: int32, finite steps since the last change.
      growth_interval: finite steps before the scale is doubled.
    """

    scale: jax.Array
    num_finite: jax.Array
    growth_interval: int = flax.struct.field(pytree_node=False, default=2000)

    @classmethod
    def create(cls, scale: float = 2.0**15, growth_interval: int = 2000) -> "LossScale":
        return cls(jnp.float32(scale), jnp.int32(0), growth_interval)

    def update(self, is_finite: jax.Array) -> "LossScale":
        """Returns the scale for the next step."""
        grown = self.num_finite + 1 >= self.growth_interval
        on_finite = jnp.where(grown, self.scale * 2.0, self.scale)
        scale = jnp.where(is_finite, on_finite, jnp.maximum(self.scale * 0.5, 1.0))
        num_finite = jnp.where(is_finite & ~grown, self.num_finite + 1, 0)
        return self.replace(scale=scale, num_finite=num_finite)  # type: ignore[attr-defined]


def all_finite(tree: Any) -> jax.Array:
    """Returns a bool scalar: no leaf holds an infinity or a NaN."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def has_nan(tree: Any) -> jax.Array:
    """Returns a bool scalar: a leaf holds a NaN."""
    return jnp.array([jnp.isnan(leaf).any() for leaf in jax.tree.leaves(tree)]).any()
