"""Different optimizers for different parts of the parameters, selected by their paths."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

from dl.errors import UserError
from dl.sharding import path_name
from dl.types import Params


def by_path(parts: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Returns an optimizer that uses a different optimizer for each part of the model.

    For example, this uses lower learning rates for layers that are closer to the input::

        by_path({"^head/": adam(1e-3), "block1[0-6]/": adam(1e-4), "": adam(1e-5)})

    Args:
      parts: optimizers by regular expression. A parameter uses the optimizer of the first expression that
        matches its path. The empty expression matches every path. Frozen parameters are not optimized: see
        `Experiment.frozen`.

    Raises:
      UserError: a parameter matches no pattern, or a pattern is the first match of no parameter.
    """

    def label(params: Params) -> Params:
        used = set()

        def first(path: tuple[Any, ...], leaf: jax.Array) -> str:
            name = path_name(path)
            for pattern in parts:
                if re.search(pattern, name):
                    used.add(pattern)
                    return pattern
            raise UserError(f"no pattern of {list(parts)} matches {name}; add one, or '' for the rest")

        labels = jax.tree_util.tree_map_with_path(first, params)
        if unused := [pattern for pattern in parts if pattern not in used]:
            raise UserError(
                f"the pattern {unused[0]!r} is the first match of no parameter; change or remove it"
            )
        return labels

    return optax.partition(dict(parts), label)
