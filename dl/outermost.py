"""A hook at the door of a model: around each call of a model that no other model makes."""

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
    """Returns a context in which `wrap(call, args, kwargs)` gives the output of every outermost call.

    That is the call of a Linen module, or of a function by `outermost_call`.

    Args:
      wrap: `call(*args, **kwargs)` is what the model does; the calls within it are not wrapped.
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
        # As with Linen's interceptors, the context that was entered first is the outer one.
        return around(lambda *args, **kwargs: intercept(call, args, kwargs), args, kwargs)

    token = _intercept.set(intercept_function)
    try:
        with nn.intercept_methods(intercept_linen):
            yield
    finally:
        _intercept.reset(token)


def outermost_call(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns `call(*args, **kwargs)`, as what is `around_outermost` makes it."""
    return _intercept.get()(call, args, kwargs)
