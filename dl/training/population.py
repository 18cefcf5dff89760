"""Several runs of one experiment in one compiled program: other seeds, other numbers for the optimizer.

Member k computes what a run of its own with its seed and its options computes.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dl.errors import UserError
from dl.ranges import Range, check_count

MAX_MEMBERS = 2**16

Traced = Mapping[str, jax.Array]

MAX_MEMBERS = 2**16  # whose orders of the data are still held easily


@dataclasses.dataclass(frozen=True)
class Members:
    """Which runs are trained at the same time.

    Attributes:
      seeds: of each member.
      options: numbers of each member that only the optimizer depends on, such as its learning rate.
      tx_of: from the options of one member, as traced scalars, to its optimizer.
    """

    seeds: tuple[int, ...]
    options: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    tx_of: Callable[[Traced], optax.GradientTransformation] | None = None

    def __post_init__(self) -> None:
        for name, values in self.options.items():
            if len(values) != len(self.seeds):
                raise ValueError(f"{name} has {len(values)} values for {len(self.seeds)} members")
        if self.options and self.tx_of is None:
            raise ValueError("members with options of their own need tx_of")

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def arrays(self) -> tuple[jax.Array, Traced]:
        """The seeds and the options, each with a leading axis of members."""
        options = {name: jnp.asarray(values, jnp.float32) for name, values in self.options.items()}
        return jnp.asarray(self.seeds, jnp.uint32), options

    def tx(self, traced: Traced, default: optax.GradientTransformation) -> optax.GradientTransformation:
        """Returns the optimizer of one member; `default` where members differ in their seeds alone.

        Raises:
          UserError: one of the options decides more than a number in the optimizer.
        """
        if self.tx_of is None:
            return default
        try:
            return self.tx_of(traced)
        except (jax.errors.ConcretizationTypeError, TypeError) as error:
            raise UserError(
                f"{', '.join(self.options)} cannot differ between members of one program, because more than "
                f"the optimizer's arithmetic depends on it ({str(error).splitlines()[0]})"
            ) from error

    def describe(self, k: int) -> dict[str, Any]:
        """Returns what is particular to member k."""
        return {"seed": self.seeds[k], **{name: values[k] for name, values in self.options.items()}}


def over_members(fn: Callable[..., Any], num_members: int, is_unrolled: bool) -> Callable[..., Any]:
    """Returns `fn` of one member as a function of all: a leading axis on its arguments and results.

    Args:
      fn: of arrays.
      num_members: the size of that axis.
      is_unrolled: whether each member is computed apart instead of all in one vectorized operation.
    """
    if not is_unrolled:
        return jax.vmap(fn)

    def unrolled(*args: Any) -> Any:
        results = [fn(*jax.tree.map(operator.itemgetter(k), args)) for k in range(num_members)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return unrolled


def consecutive(seed: int, num_seeds: int) -> Members | None:
    """Returns members with the seeds seed, seed + 1, …; None where one alone needs no company.

    Raises:
      UserError: there are more of them than one program can hold, or than there are seeds.
    """
    check_count("num_seeds", num_seeds, Range(1, min(MAX_MEMBERS, 2**32 - seed)))
    return Members(tuple(range(seed, seed + num_seeds))) if num_seeds > 1 else None
