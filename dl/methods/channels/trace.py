"""A traced function as steps: each operation with the labels of its operands and outputs.

Functions that are called, such as the body of a scan, are steps inside a step. Their labels belong to one
call, because two calls of one function may have different channels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dl.methods.channels.labels import Labels, Value
from dl.methods.channels.passing import frozen
from dl.methods.channels.products import convolution, dot_general
from dl.methods.channels.rules import rule_of

CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
      equation: the operation.
      inputs: the labels of its operands.
      outputs: the labels of its outputs.
      bodies: the functions that it calls. For a function with its own derivative, the function and its
        derivative: the outputs and their tangents for all operands and the tangents of the floating ones.
    """

    equation: Any
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    bodies: Sequence["Body"] = ()


@dataclasses.dataclass(frozen=True)
class Body:
    """A traced function.

    Attributes:
      jaxpr: the function, as `jax.make_jaxpr` returns it.
      inputs: the labels of its arguments.
      consts: the labels of the arrays that it contains.
      steps: its operations in order.
      outputs: the labels of what it returns.
    """

    jaxpr: Any
    inputs: Sequence[Value]
    consts: Sequence[Value]
    steps: Sequence[Step]
    outputs: Sequence[Value]


def trace(labels: Labels, closed: Any, inputs: Sequence[Value], *, is_derivative: bool = False) -> Body:
    """Returns a traced function with the labels of all its arrays.

    Args:
      labels: the union of labels, which grows.
      closed: the function, as `jax.make_jaxpr` returns it.
      inputs: the labels of the arguments.
      is_derivative: whether the function is the derivative of another. Then a function with a derivative of
        its own, such as ReLU, is opened like any other, so that tracing ends.
    """
    jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    of_consts = [_fresh(labels, variable.aval) for variable in jaxpr.constvars]
    known.update(zip(jaxpr.constvars, of_consts, strict=True))
    assert len(of_consts) == len(consts)

    def read(variable: Any) -> Value:
        return _fresh(labels, variable.aval) if hasattr(variable, "val") else known[variable]

    steps = []
    for equation in jaxpr.eqns:
        step = _step(labels, equation, [read(variable) for variable in equation.invars], is_derivative)
        steps.append(step)
        known.update(zip(equation.outvars, step.outputs, strict=True))
    return Body(closed, inputs, of_consts, steps, [read(variable) for variable in jaxpr.outvars])


def unite(labels: Labels, one: Value, other: Value) -> Value:
    """Returns the labels of an array that has both labels."""
    axes = [labels.unite(a, b) for a, b in zip(one.axes, other.axes, strict=True)]
    return Value(tuple(axes), tuple(a and b for a, b in zip(one.is_zero, other.is_zero, strict=True)))


def bound(equation: Any) -> Callable[..., Any]:
    """Returns the operation as a function of its operands that returns a list."""

    def call(*arguments: Any) -> list[Any]:
        params = equation.primitive.get_bind_params(equation.params)
        functions, params = params if isinstance(params, tuple) else ((), params)
        outputs = equation.primitive.bind(*functions, *arguments, **params)
        return list(outputs) if equation.primitive.multiple_results else [outputs]

    return call


def is_floating(variable: Any) -> bool:
    """Returns whether an array of a traced function has a derivative."""
    return jnp.issubdtype(variable.aval.dtype, jnp.floating)


def _fresh(labels: Labels, aval: Any) -> Value:
    shape = getattr(aval, "shape", ())
    return Value(tuple(labels.fresh(size) for size in shape), (False,) * len(shape))


def _step(labels: Labels, equation: Any, inputs: Sequence[Value], is_derivative: bool) -> Step:
    name = equation.primitive.name
    if name in CALLS or (name == "custom_jvp_call" and is_derivative):
        body = trace(labels, _called(equation), inputs, is_derivative=is_derivative)
        return Step(equation, inputs, body.outputs, [body])
    if name == "custom_jvp_call":
        return _with_derivative(labels, equation, inputs)
    if name == "scan":
        return _scan(labels, equation, inputs, is_derivative)
    if name == "cond":
        return _cond(labels, equation, inputs, is_derivative)
    if name == "optimization_barrier":
        return Step(equation, inputs, inputs)
    if name in ("dot_general", "conv_general_dilated"):
        rule: Any = dot_general if name == "dot_general" else convolution
    else:
        rule = rule_of(name) or frozen
    return Step(equation, inputs, rule(labels, equation, inputs))


def _called(equation: Any) -> Any:
    return equation.params["jaxpr" if "jaxpr" in equation.params else "call_jaxpr"]


def _with_derivative(labels: Labels, equation: Any, inputs: Sequence[Value]) -> Step:
    body = trace(labels, _called(equation), inputs)
    floating = [at for at, variable in enumerate(equation.invars) if is_floating(variable)]

    def derivative(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        def of_floating(*values: Any) -> list[Any]:
            operands = list(primals)
            for at, value in zip(floating, values, strict=True):
                operands[at] = value
            return bound(equation)(*operands)

        return jax.jvp(of_floating, [primals[at] for at in floating], tangents)

    operands = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    jaxpr = jax.make_jaxpr(derivative)(operands, [operands[at] for at in floating])
    derived = trace(labels, jaxpr, [*inputs, *(inputs[at] for at in floating)], is_derivative=True)
    num_outputs = len(body.outputs)
    outputs = []
    for at, value in enumerate(body.outputs):
        same = unite(labels, value, derived.outputs[at])
        for other in (at, num_outputs + at):
            unite(labels, same, derived.outputs[other])
        outputs.append(Value(same.axes, value.is_zero))
    return Step(equation, inputs, outputs, [body, derived])


def _scan(labels: Labels, equation: Any, inputs: Sequence[Value], is_derivative: bool) -> Step:
    params = equation.params
    num_fixed = params["num_consts"] + params["num_carry"]
    inside = list(inputs[:num_fixed])
    for value in inputs[num_fixed:]:
        labels.freeze(value.axes[0])
        inside.append(Value(value.axes[1:], value.is_zero[1:]))
    # The carry is not known to be 0 after the first iteration.
    for at in range(params["num_consts"], num_fixed):
        inside[at] = Value(inside[at].axes, (False,) * len(inside[at].axes))
    body = trace(labels, params["jaxpr"], inside, is_derivative=is_derivative)
    num_carry = params["num_carry"]
    carried = [
        unite(labels, before, after)
        for before, after in zip(
            inside[params["num_consts"] : num_fixed], body.outputs[:num_carry], strict=True
        )
    ]
    stacked = [Value((None, *value.axes), (False, *value.is_zero)) for value in body.outputs[num_carry:]]
    return Step(equation, inputs, [*carried, *stacked], [body])


def _cond(labels: Labels, equation: Any, inputs: Sequence[Value], is_derivative: bool) -> Step:
    labels.freeze(*inputs[0].axes)
    bodies = [
        trace(labels, branch, inputs[1:], is_derivative=is_derivative)
        for branch in equation.params["branches"]
    ]
    outputs = list(bodies[0].outputs)
    for body in bodies[1:]:
        outputs = [unite(labels, one, other) for one, other in zip(outputs, body.outputs, strict=True)]
    return Step(equation, inputs, outputs, bodies)
