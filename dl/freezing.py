"""Frozen parameters: patterns on their paths say what is neither differentiated nor updated.

A path reads like `backbone/block0/expand/conv/kernel`; a pattern is a regular expression that is searched for
in it. What is frozen stays as it is, bit for bit, takes no memory in the optimizer and no time in the
backward pass; its batch norms use their running statistics and leave them alone.
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
      UserError: a pattern is found in no path, or nothing is left to train.
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
    """Returns the parameters of two trees in one; where both have a leaf, that of `other`."""
    if not other:
        return one
    return unflatten_dict({**flatten_dict(one), **flatten_dict(other)})


def part_like(params: Params, part: Params) -> Params:
    """Returns those of the parameters that `part` has too."""
    wanted = flatten_dict(part)
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if path in wanted})


def frozen_part(variables: Variables, patterns: Patterns) -> dict[str, Any]:
    """Returns the leaves of all collections in whose path, without the collection, a pattern is found."""
    leaves = {
        f"{collection}/{name}": leaf
        for collection, tree in variables.items()
        for name, leaf in flatten_dict(tree, sep="/").items()
        if is_frozen(name, patterns)
    }
    return leaves


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
    """Within it, a batch norm whose parameters are all frozen runs in inference mode, whatever it is told.

    Otherwise a frozen layer would be trained on the statistics of a batch and evaluated on those that it
    brought along (Keras' guide to transfer learning says why that ruins what it knows). Norms of Linen ask
    here, those of NNX in `task.nnx_model`; a model of plain functions may ask `norm_is_frozen`.
    """
    if not patterns:
        yield
        return
    leaves = flatten_dict(params, sep="/")

    def all_frozen(path: str) -> bool:
        own = [name for name in leaves if name.startswith(f"{path}/")] or [f"{path}/"]
        return all(is_frozen(name, patterns) for name in own)

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if not norm_is_frozen("/".join(module.path)):
            return call(*args, **kwargs)
        told = module.use_running_average
        # The module is a frozen dataclass, and an argument beside its attribute would be refused.
        object.__setattr__(module, "use_running_average", True)
        try:
            return call(*args, **{**kwargs, "use_running_average": None})
        finally:
            object.__setattr__(module, "use_running_average", told)

    token = _norm_is_frozen.set(all_frozen)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _norm_is_frozen.reset(token)
