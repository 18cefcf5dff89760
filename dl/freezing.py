"""Frozen parameters: parameters whose path matches a pattern are neither differentiated nor updated.

A path is written like `backbone/block0/expand/conv/kernel`. A pattern is a regular expression that is
searched for in the path. Frozen parameters do not change by a single bit. They take no memory in the
optimizer and no time in the backward pass. Their batch norms use their running statistics and do not update
them.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.types import Params, Variables

Patterns = Sequence[str]


def split(params: Params, patterns: Patterns) -> tuple[Params, Params]:
    """Returns the trained and the frozen part of nested dicts of parameters; `merge` joins them again.

    Raises:
      UserError: a pattern matches no path, or every parameter would be frozen.
    """
    if not patterns:
        return params, {}
    leaves = flatten_dict(params, sep="/")
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in leaves):
            raise UserError(
                f"the pattern {pattern!r} freezes no parameter; paths look like {next(iter(leaves), None)}"
            )
    frozen = {name: leaf for name, leaf in leaves.items() if is_frozen(name, patterns)}
    trained = {name: leaf for name, leaf in leaves.items() if name not in frozen}
    if not trained:
        raise UserError(f"the patterns {list(patterns)} freeze every parameter; leave some to train")
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def merge(one: Params, other: Params) -> Params:
    """Returns the parameters of two trees as one tree. Where both have a leaf, it is that of `other`."""
    if not other:
        return one
    return unflatten_dict({**flatten_dict(one), **flatten_dict(other)})


def part_like(params: Params, part: Params) -> Params:
    """Returns only those parameters whose path also occurs in `part`."""
    wanted = flatten_dict(part)
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if path in wanted})


def frozen_part(variables: Variables, patterns: Patterns) -> dict[str, Any]:
    """Returns the leaves of all collections whose path, without the collection's name, matches a pattern."""
    leaves = {
        f"{collection}/{name}": leaf
        for collection, tree in variables.items()
        for name, leaf in flatten_dict(tree, sep="/").items()
        if is_frozen(name, patterns)
    }
    return leaves


CONSTANTS = "constants"
"""The collection of variables that training reads and that never change, such as those of a teacher.

They come from the warm start whenever a process starts. The compiled step takes them as arguments. Neither
checkpoints nor the variables that a run ends with hold them.
"""


def without_constants(variables: Variables) -> dict[str, Any]:
    """Returns the collections but `CONSTANTS`."""
    return {name: collection for name, collection in variables.items() if name != CONSTANTS}


def constants_of(variables: Variables) -> dict[str, Any]:
    """Returns the collection `CONSTANTS` alone; empty if there is none."""
    return {name: collection for name, collection in variables.items() if name == CONSTANTS}


def is_frozen(name: str, patterns: Patterns) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


_norm_is_frozen: contextvars.ContextVar[Callable[[str], bool]] = contextvars.ContextVar(
    "norm_is_frozen", default=lambda path: False
)


def norm_is_frozen(path: str) -> bool:
    """Returns whether all parameters of the batch norm at a path are frozen, within `frozen_norms`."""
    return _norm_is_frozen.get()(path)


@contextlib.contextmanager
def frozen_norms(params: Params, patterns: Patterns) -> Iterator[None]:
    """Returns a context in which a batch norm whose parameters are all frozen runs in inference mode.

    The mode that the model asks for is ignored. Otherwise a frozen layer would be trained with the statistics
    of a batch and evaluated with its pretrained statistics. The Keras guide to transfer learning explains why
    this destroys what the layer has learnt. This context changes the norms of Linen; `task.nnx_model` changes
    those of NNX. A model of plain functions can call `norm_is_frozen`.
    """
    if not patterns:
        yield
        return
    leaves = flatten_dict(params, sep="/")

    def all_frozen(path: str) -> bool:
        names = [name for name in leaves if name.startswith(f"{path}/")] or [f"{path}/"]
        return all(is_frozen(name, patterns) for name in names)

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if not norm_is_frozen("/".join(module.path)):
            return call(*args, **kwargs)
        configured = module.use_running_average
        # The module is a frozen dataclass. It raises an error if both attribute and argument are given.
        object.__setattr__(module, "use_running_average", True)
        try:
            return call(*args, **{**kwargs, "use_running_average": None})
        finally:
            object.__setattr__(module, "use_running_average", configured)

    token = _norm_is_frozen.set(all_frozen)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _norm_is_frozen.reset(token)
