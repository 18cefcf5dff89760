"""The types that the modules of `dl` hand to each other.

A *batch* is a dict of arrays whose leading axis is the example: the features of the data set and two more,
`index` (the global index of each example, which keys its randomness) and `mask` (False on padding).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from dl.metrics import Mean

Params = Any  # the "params" collection of a Linen model: a tree of arrays
ModelState = Mapping[str, Any]  # every other collection, such as batch statistics
Variables = Mapping[str, Any]  # both, as `Module.init` returns them
Batch = dict[str, jax.Array]
Key = jax.Array
Metrics = dict[str, Mean]


class Aux(NamedTuple):
    """What a loss function returns beside the loss."""

    model_state: ModelState
    metrics: Metrics


class LossFn(Protocol):
    """A pure function from parameters and a batch to the mean loss over the batch's valid examples.

    `key` is None in evaluation: dropout is off and running statistics are used, not updated.
    """

    def __call__(
        self, params: Params, model_state: ModelState, batch: Batch, key: Key | None, /
    ) -> tuple[jax.Array, Aux]: ...


GradFn = Callable[[LossFn], Callable[..., tuple[tuple[jax.Array, Aux], Params]]]
"""Turns a loss into a function with the same arguments that returns `((loss, aux), gradient)`."""
