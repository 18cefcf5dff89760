"""A function traced to its operations, some of which are replaced by others.

An explanation that changes how a layer is differentiated replaces operations here. The model does not change.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dl.flops import inner_jaxprs


class Operand(NamedTuple):
    """A value that an operation reads or writes.

    Attributes:
      value: the array.
      depends: whether it depends on the input of the function.
      note: what a rule left for the rule of the next operation.
    """

    value: Any
    depends: bool
    note: Any = None


Rule = Callable[..., Sequence[Any] | None]
"""Returns the outputs of an operation from its equation and operands. `None` keeps the operation."""

_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat2",
    "checkpoint",
)


def rewritten(fn: Callable[[jax.Array], jax.Array], rule: Rule) -> Callable[[jax.Array], Operand]:
    """Returns a function that computes `fn` by its operations, and asks the rule for each one.

    The rule is asked only for operations that depend on the input. Called functions are opened, so that the
    rule sees the operations inside, unless it returns the outputs of the call itself.
    """

    def evaluated(inputs: jax.Array) -> Operand:
        closed = jax.make_jaxpr(fn)(inputs)
        [output] = _evaluate(closed.jaxpr, closed.consts, [Operand(inputs, True)], rule)
        return output

    return evaluated


def evaluate(equation: Any, operands: Sequence[Operand]) -> list[Any]:
    """Returns the outputs of an operation as it is."""
    params = equation.primitive.get_bind_params(equation.params)
    outputs = equation.primitive.bind(*(operand.value for operand in operands), **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def is_call(equation: Any) -> bool:
    """Returns whether the operation is a call that is opened."""
    return equation.primitive.name in _CALLS


def is_relu(equation: Any) -> bool:
    """Returns whether the operation is max(x, 0), and x its first operand."""
    return equation.primitive.name == "max" and literal(equation.invars[1]) == 0


def calls_relu(params: dict[str, Any]) -> bool:
    """Returns whether an operation with these parameters calls a function that has a ReLU."""
    return any(
        is_relu(equation) or calls_relu(equation.params)
        for body in inner_jaxprs(params)
        for equation in getattr(body, "jaxpr", body).eqns
    )


def literal(variable: Any) -> float | None:
    """Returns the number that an operand is written as. `None` if it is an array."""
    return float(variable.val) if hasattr(variable, "val") and np.ndim(variable.val) == 0 else None


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Operand], rule: Rule) -> list[Operand]:
    values = dict(zip(jaxpr.invars, arguments, strict=True))
    values.update((v, Operand(const, False)) for v, const in zip(jaxpr.constvars, consts, strict=True))

    def read(variable: Any) -> Operand:
        if hasattr(variable, "val"):
            return Operand(np.asarray(variable.val, variable.aval.dtype), False)
        return values[variable]

    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        depends = any(operand.depends for operand in operands)
        outputs: Sequence[Any] | None = rule(equation, *operands) if depends else None
        if outputs is None and depends and is_call(equation):
            body = equation.params["jaxpr" if "jaxpr" in equation.params else "call_jaxpr"]
            outputs = _evaluate(getattr(body, "jaxpr", body), getattr(body, "consts", ()), operands, rule)
        elif outputs is None:
            outputs = evaluate(equation, operands)
        made = [one if isinstance(one, Operand) else Operand(one, depends) for one in outputs]
        values.update(zip(equation.outvars, made, strict=True))
    return [read(v) for v in jaxpr.outvars]
