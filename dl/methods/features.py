"""Features: what a model, and modules inside it, put out while a loss is traced."""

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.core import tracers

from dl.errors import UserError
from dl.outermost import around_outermost

Captured = Mapping[str, jax.Array]


@dataclasses.dataclass
class Seen:
    """What was put out in a context of `capturing`.

    Attributes:
      outputs: the outputs of the first outermost call of a model.
      features: the outputs of modules, by path.
    """

    outputs: Any = None
    features: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def capturing(paths: Sequence[str], whose: str) -> Iterator[Seen]:
    """Returns a context that notes the outputs of a model and of the modules at the paths.

    Args:
      paths: paths of Linen modules, such as `backbone/block0`.
      whose: name of the model in messages.

    Raises:
      UserError: at the end of the context: there is no such module, or its output is not one array.
    """
    seen, known = Seen(), set()
    trace = tracers.current_trace()

    def around(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        if seen.outputs is None:
            seen.outputs = outputs
        return outputs

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        outputs = call(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__":
            known.add(path)
            if path in paths:
                if tracers.current_trace() != trace:
                    raise UserError(
                        f"{path} of the {whose} lies in layers that are scanned or computed again; choose a "
                        "module outside, or a model without scan and remat"
                    )
                if not isinstance(outputs, jax.Array):
                    raise UserError(
                        f"{path} of the {whose} does not put out one array; choose another module"
                    )
                seen.features[path] = outputs
        return outputs

    with around_outermost(around), nn.intercept_methods(intercept):
        yield seen
    for path in paths:
        if path not in seen.features:
            near = ", ".join(difflib.get_close_matches(path, sorted(known), 3, 0.0)) or "none"
            raise UserError(f"the {whose} has no module {path}; near paths are {near}")
