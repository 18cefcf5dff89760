"""An optimizer for each part of the parameters, chosen by their paths."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

from dl.errors import UserError
from dl.sharding import path_name
from dl.types import Params


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
