"""A hook around the outermost calls of models: calls that are not made within the call of another model."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

Wrap = Callable[[Callable[..., Any], Any, Any], Any]

_intercept: contextvars.ContextVar[Wrap] = contextvars.ContextVar(
    "intercept", default=lambda call, args, kwargs: call(*args, **kwargs)
)


@contextlib.contextmanager
def around_outermost(wrap: Wrap) -> Iterator[None]:
    """Returns a context in which every outermost call returns `wrap(call, args, kwargs)`.

    An outermost call is the call of a Linen module, or of a function through `outermost_call`.

    Args:
      wrap: function that returns the output. `call(*args, **kwargs)` runs the model. Calls within it are not
        wrapped.
    """
    is_inside = False
    around = _intercept.get()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nonlocal is_inside
        if is_inside:
            return call(*args, **kwargs)
        is_inside = True
        try:
            return wrap(call, args, kwargs)
        finally:
            is_inside = False

    def intercept_linen(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return call(*args, **kwargs) if context.method_name == "setup" else intercept(call, args, kwargs)

    def intercept_function(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # As for Linen's interceptors, the context that was entered first is the outer one.
        return around(lambda *args, **kwargs: intercept(call, args, kwargs), args, kwargs)

    token = _intercept.set(intercept_function)
    try:
        with nn.intercept_methods(intercept_linen):
            yield
    finally:
        _intercept.reset(token)


def outermost_call(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns `call(*args, **kwargs)`, wrapped by the contexts of `around_outermost`."""
    return _intercept.get()(call, args, kwargs)
