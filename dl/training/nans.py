"""Finds the origin of a NaN: the step that made it is traced again, back to the operation."""

import contextlib
import dataclasses
import functools
import linecache
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dl.errors import UserError
from dl.metrics import Mean
from dl.sharding import path_name
from dl.training.state import TrainState
from dl.training.step import StepConfig, TrainStep, update_state
from dl.types import Batch

# These libraries are skipped: the mistake is in the line that called them.
LIBRARIES = (
    *(f"{library.__path__[0]}/" for library in (jax, flax, optax)),
    *(module.__file__ for module in (functools, contextlib)),
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The operation that made a NaN from numbers, or the first operation that read an existing NaN.

    Attributes:
      operation: JAX's name of the primitive, such as `div`; empty if the NaN was only passed on.
      inputs: dtype, shape and range of each operand, as text.
      place: file, line and function of the code that called the operation.
      code: the text of that line.
      scope: the modules that contain it, such as `Net/Dense_0`.
      is_backward: whether it belongs to the gradient of that line.
      given: what held the NaN before any operation: `a constant` or the path of an argument; else empty.
    """

    operation: str
    inputs: tuple[str, ...]
    place: str
    code: str
    scope: str
    is_backward: bool
    given: str = ""

    def __str__(self) -> str:
        what = f"the gradient of {self.place}" if self.is_backward else self.place
        code = f" `{self.code}`" if self.code else ""
        scope = f", in the layer {self.scope}" if self.scope else ""
        if self.given:
            taken = f"taken by {self.operation} in" if self.operation else "returned by"
            return f"{self.given} that holds a NaN, {taken} {what}{code}{scope}"
        return f"{self.operation} of {' and '.join(self.inputs)} in {what}{code}{scope}"


def report_nans(train_step: TrainStep, config: StepConfig) -> TrainStep:
    """Returns the compiled step with a check that ends the run at the first NaN and names its origin.

    The checked step keeps a copy of the state, and waits for each step. A step that made a NaN is repeated
    operation by operation, so all its intermediate values must fit into memory.

    Raises:
      UserError: (the returned step) a metric or the next state holds a NaN. With a loss scale,
        only the state is checked, because overflow of the gradient is expected.
    """

    def watched(after: TrainState, metrics: Mapping[str, Mean]) -> Any:
        # The loss is checked first: if it is NaN, everything that is computed from it is NaN too.
        return after if config.loss_scale else (metrics.get("loss"), dict(metrics), after)

    def step(state: TrainState, batch: Batch) -> Any:
        before = jax.tree.map(jnp.copy, state)  # the step donates its state
        after, metrics = train_step(state, batch)
        if any(map(_has_nan, jax.tree.leaves(watched(after, metrics)))):
            origin = find_nan(lambda s, b: watched(*update_state(config, s, b)), before, batch)
            raise UserError(_first_nan(int(before.step) + 1, origin, batch))
        return after, metrics

    return step


def _first_nan(number: int, origin: Origin | None, batch: Batch) -> str:
    """Returns the error message about a step that made a NaN."""
    if origin is None:
        return (
            f"step {number:,} made a NaN, but not when repeated operation by operation; it may "
            "come of an overflow that fusing hides: lower the learning rate or clip the gradient"
        )
    root, _, name = origin.given.partition("/")
    if root == "1":  # an argument: 0 is the state, 1 is the batch
        values = np.asarray(batch[name]).reshape(len(batch["index"]), -1)
        rows = np.flatnonzero(np.isnan(values).any(1) & np.asarray(batch["mask"]))
        examples = ", ".join(str(index) for index in np.asarray(batch["index"])[rows[:5]])
        more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
        of = f"training examples {examples}{more}" if len(rows) else "padding"
        return f"step {number:,} met the first NaN in the data: the feature {name} of {of}; clean the data"
    if root == "0":
        return (
            f"step {number:,} started from a NaN, in {name}: look at the initial values, or at the "
            "checkpoint that the run went on from"
        )
    return f"step {number:,} made the first NaN: {origin}; nothing was saved after it"


def find_nan(fn: Any, *args: Any) -> Origin | None:
    """Returns the operation that made the first NaN in the results of `fn(*args)`; `None` if there is none.

    `fn` is traced and its operations are evaluated one by one. The search starts at the NaN in the result and
    goes back through operands that hold a NaN. NaNs that `jnp.where` discards are therefore ignored, and an
    operation of a gradient is reported with the line of its forward operation. If the search ends at a
    constant or an argument, `given` names it; an argument is named by its path, such as `1/image`.
    """
    closed = jax.make_jaxpr(fn)(*args)
    leaves = jax.tree_util.tree_leaves_with_path(args)
    names = [path_name(path) for path, _ in leaves]
    return _find(closed.jaxpr, closed.consts, [leaf for _, leaf in leaves], names=names)


def _find(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    callers: tuple[Any, ...] = (),
    names: Sequence[str] = (),
) -> Origin | None:
    """Returns the origin in a traced function.

    Args:
      jaxpr: the function.
      consts: its constants.
      args: its arguments.
      callers: the equations around it, outer ones first.
      names: the names of the arguments that may hold a NaN.
    """
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    given = dict(zip(jaxpr.invars, names, strict=False))
    made_by: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        if hasattr(variable, "val"):  # a literal, which may be a bare Python number
            return np.asarray(variable.val, variable.aval.dtype)
        return values[variable]

    for equation in jaxpr.eqns:
        outputs = _evaluate(equation, [read(v) for v in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
        made_by.update(dict.fromkeys(equation.outvars, equation))
    taken_by: Any = None
    bad = next((v for v in jaxpr.outvars if _has_nan(read(v))), None)
    while bad is not None:
        if hasattr(bad, "val") or bad not in made_by:
            what = "a constant" if hasattr(bad, "val") else given.get(bad, "a constant")
            inputs = [read(v) for v in taken_by.invars] if taken_by else []
            return _describe(inputs, callers, taken_by, what)
        taken_by = made_by[bad]
        inputs = [read(v) for v in taken_by.invars]
        bad = next((v for v in taken_by.invars if _has_nan(read(v))), None)
        if bad is None:
            return _look_inside(taken_by, inputs, callers) or _describe(inputs, callers, taken_by)
    return None


def _evaluate(equation: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return outputs if equation.primitive.multiple_results else [outputs]


def _look_inside(equation: Any, inputs: Sequence[Any], callers: tuple[Any, ...]) -> Origin | None:
    """Returns the origin inside the loop, branch or function that an operation calls."""
    bodies: list[tuple[Any, Any]] = [
        (getattr(body, "jaxpr", body), getattr(body, "consts", ()))
        for value in equation.params.values()
        for body in (value if isinstance(value, tuple) else (value,))
        if hasattr(body, "eqns")
    ]
    callers = (*callers, equation)
    name = equation.primitive.name
    if name == "cond":
        branch, consts = bodies[int(jnp.clip(inputs[0], 0, len(bodies) - 1))]
        return _find(branch, consts, inputs[1:], callers)
    if name == "while":
        return _look_inside_while(inputs, callers)
    if name == "scan":
        return _look_inside_scan(*bodies[0], inputs, callers)
    for body, consts in bodies:
        if len(body.invars) == len(inputs):
            return _find(body, consts, inputs, callers)
    return None


def _look_inside_scan(
    body: Any, consts: Sequence[Any], inputs: Sequence[Any], callers: tuple[Any, ...]
) -> Origin | None:
    """Returns the origin in the first iteration with a NaN. The inputs are constants, carry and slices."""
    equation = callers[-1]
    is_sliced = [
        len(outer.aval.shape) > len(inner.aval.shape)
        for outer, inner in zip(equation.invars, body.invars, strict=True)
    ]
    num_carry = sum(
        len(outer.aval.shape) == len(inner.aval.shape)
        for outer, inner in zip(equation.outvars, body.outvars, strict=True)
    )
    start = len(inputs) - sum(is_sliced) - num_carry
    carry = list(inputs[start : start + num_carry])
    run = jax.jit(lambda *args: jax.core.eval_jaxpr(body, consts, *args))
    turns = range(equation.params["length"])
    for turn in reversed(turns) if equation.params["reverse"] else turns:
        slices = [x[turn] for x, sliced in zip(inputs, is_sliced, strict=True) if sliced]
        args = [*inputs[:start], *carry, *slices]
        outputs = run(*args)
        if any(map(_has_nan, outputs)):
            return _find(body, consts, args, callers)
        carry = outputs[:num_carry]
    return None


def _look_inside_while(inputs: Sequence[Any], callers: tuple[Any, ...]) -> Origin | None:
    """Returns the origin in the first iteration with a NaN.

    Inputs are the constants of the condition, those of the body, and the carry.
    """
    params = callers[-1].params
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_condition, of_body, carry = inputs[: split[0]], inputs[split[0] : split[1]], inputs[split[1] :]
    goes_on, turn = (
        jax.jit(functools.partial(jax.core.eval_jaxpr, closed.jaxpr, closed.consts))
        for closed in (condition, body)
    )
    while goes_on(*of_condition, *carry)[0]:
        outputs = turn(*of_body, *carry)
        if any(map(_has_nan, outputs)):
            return _find(body.jaxpr, body.consts, [*of_body, *carry], callers)
        carry = outputs
    return None


def _describe(
    inputs: Sequence[Any], callers: tuple[Any, ...], equation: Any = None, given: str = ""
) -> Origin:
    """Returns the origin that an equation is, called by `callers`; `None` if it only passes the NaN on."""
    equations = (*callers, equation) if equation is not None else callers
    # A function that was traced before and is reused does not know its caller: then use the outer equation.
    frames = [frame for equation in reversed(equations) for frame in _frames(equation)]
    place, code = "an unknown line", ""
    if frames:
        file, line = frames[0].file_name, frames[0].line_num
        place = f"{file}:{line} ({frames[0].function_name})"
        code = linecache.getline(file, line).strip()
    scopes = [name for e in equations for name in str(e.source_info.name_stack).split("/")]
    return Origin(
        operation=equation.primitive.name if equation is not None else "",
        inputs=tuple(map(_in_words, inputs)),
        place=place,
        code=code,
        scope="/".join(name for name in scopes if name.isidentifier()),
        is_backward=any(name.startswith("transpose(") for name in scopes),
        given=given,
    )


def _frames(equation: Any) -> list[Any]:
    """Returns the lines of user code that called an equation, innermost first."""
    traceback = equation.source_info.traceback
    return [f for f in (traceback.frames if traceback else ()) if not f.file_name.startswith(LIBRARIES)]


def _in_words(value: Any) -> str:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "keys"
    array = np.asarray(value)
    shape = f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
    if not array.size or array.dtype == bool:
        return shape
    low, high = array.min(), array.max()
    return f"{shape} = {low:.3g}" if low == high else f"{shape} in {low:.3g} to {high:.3g}"


def _has_nan(value: Any) -> bool:
    # Keys and integers cannot hold a NaN.
    return jnp.issubdtype(value.dtype, jnp.inexact) and bool(jnp.isnan(value).any())
