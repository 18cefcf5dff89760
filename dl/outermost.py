"""A hook at the door of a model: around each call of a Linen module that no other module makes."""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn


def around_outermost(wrap: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which `wrap(call, args, kwargs)` gives the output of every outermost call.

    Args:
      wrap: `call(*args, **kwargs)` is what the module does; the calls within it are not wrapped.
    """
    is_inside = False

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal is_inside
        if is_inside or context.method_name == "setup":
            return call(*args, **kwargs)
        is_inside = True
        try:
            return wrap(call, args, kwargs)
        finally:
            is_inside = False

    return nn.intercept_methods(intercept)
