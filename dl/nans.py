"""Where a NaN comes from: a step that made one is traced again and followed back to the operation."""

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
from dl.experiment import Experiment
from dl.metrics import Mean
from dl.state import TrainState
from dl.step import TrainStep, update_state, with_inputs
from dl.types import Batch

# Their code is right; what is wrong stands in the line that called it.
LIBRARIES = (
    *(f"{library.__path__[0]}/" for library in (jax, flax, optax)),
    *(module.__file__ for module in (functools, contextlib)),
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The operation that made a NaN from numbers.

    Attributes:
      operation: JAX's name of the primitive, such as `div`.
      inputs: dtype, shape and range of each operand, in words.
      place: file, line and function of the code that asked for it.
      code: that line.
      scope: the modules around it, such as `Net/Dense_0`.
      is_backward: whether it belongs to the gradient of that line.
    """

    operation: str
    inputs: tuple[str, ...]
    place: str
    code: str
    scope: str
    is_backward: bool

    def __str__(self) -> str:
        what = f"the gradient of {self.place}" if self.is_backward else self.place
        code = f" `{self.code}`" if self.code else ""
        scope = f", in the layer {self.scope}" if self.scope else ""
        return f"{self.operation} of {' and '.join(self.inputs)} in {what}{code}{scope}"


def report_nans(train_step: TrainStep, experiment: Experiment) -> TrainStep:
    """Returns the compiled step, which now ends the run at the first NaN and says where it was made.

    It keeps a copy of the state, and waits for each step. A step that made a NaN is repeated operation by
    operation, so that the whole of its intermediate values must fit into memory.

    Raises:
      UserError: (the returned step) a metric or the next state holds a NaN. With a loss scale, the
        state alone is looked at: overflow is part of the method there.
    """
    loss_fn = with_inputs(experiment.loss_fn, experiment.preprocess, experiment.augment)
    update = functools.partial(
        update_state,
        loss_fn=loss_fn,
        tx=experiment.tx,
        grad_fn=experiment.grad_fn,
        ema_decay=experiment.ema_decay,
        frozen=experiment.frozen,
    )

    def watched(after: TrainState, metrics: Mapping[str, Mean]) -> Any:
        # The loss first: where it is a NaN, all that follows is one too.
        return after if experiment.loss_scale else (metrics.get("loss"), dict(metrics), after)

    def step(state: TrainState, batch: Batch) -> Any:
        before = jax.tree.map(jnp.copy, state)  # the step consumes its own
        after, metrics = train_step(state, batch)
        if any(map(_has_nan, jax.tree.leaves(watched(after, metrics)))):
            origin = find_nan(lambda s, b: watched(*update(s, b)), before, batch)
            number = int(before.step) + 1
            if origin is None:
                raise UserError(
                    f"step {number:,} made a NaN, but not when repeated operation by operation; it may "
                    "come of an overflow that fusing hides: lower the learning rate or clip the gradient"
                )
            raise UserError(f"step {number:,} made the first NaN: {origin}; nothing was saved after it")
        return after, metrics

    return step


def find_nan(fn: Any, *args: Any) -> Origin | None:
    """Returns the operation that made the first NaN among the results of `fn(*args)`; None if there is none.

    `fn` is traced, its operations are carried out one by one, and from the NaN in the result we go back
    through operands that hold one. So NaNs that `jnp.where` throws away do not count, and the operation of a
    gradient is found with the line that it is the gradient of.
    """
    closed = jax.make_jaxpr(fn)(*args)
    return _find(closed.jaxpr, closed.consts, jax.tree.leaves(args))


def _find(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], callers: tuple[Any, ...] = ()
) -> Origin | None:
    """Returns the origin in a traced function; `callers` are the equations around it, outer ones first."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    made_by: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else values[variable]

    for equation in jaxpr.eqns:
        outputs = _evaluate(equation, [read(v) for v in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
        made_by.update(dict.fromkeys(equation.outvars, equation))
    bad = next((v for v in jaxpr.outvars if _has_nan(read(v))), None)
    while bad in made_by:
        equation = made_by[bad]
        inputs = [read(v) for v in equation.invars]
        bad = next((v for v in equation.invars if _has_nan(read(v))), None)
        if bad is None:
            return _look_inside(equation, inputs, callers) or _describe(inputs, (*callers, equation))
    return None


def _evaluate(equation: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return outputs if equation.primitive.multiple_results else [outputs]


def _look_inside(equation: Any, inputs: Sequence[Any], callers: tuple[Any, ...]) -> Origin | None:
    """Returns the origin within the loop, branch or function that an operation stands for."""
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
    if name == "scan":
        return _look_inside_scan(*bodies[0], inputs, callers)
    for body, consts in bodies:
        if len(body.invars) == len(inputs) and name != "while":
            return _find(body, consts, inputs, callers)
    return None


def _look_inside_scan(
    body: Any, consts: Sequence[Any], inputs: Sequence[Any], callers: tuple[Any, ...]
) -> Origin | None:
    """Returns the origin in the first turn with a NaN. Inputs are constants, the carry, what is sliced."""
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


def _describe(inputs: Sequence[Any], equations: Sequence[Any]) -> Origin:
    """Returns the last equation in words; those before it are around it."""
    # A function that was traced before, and is reused, knows no caller: then the line around it.
    frames = [frame for equation in reversed(equations) for frame in _frames(equation)]
    place, code = "an unknown line", ""
    if frames:
        file, line = frames[0].file_name, frames[0].line_num
        place = f"{file}:{line} ({frames[0].function_name})"
        code = linecache.getline(file, line).strip()
    scopes = [name for e in equations for name in str(e.source_info.name_stack).split("/")]
    return Origin(
        operation=equations[-1].primitive.name,
        inputs=tuple(map(_in_words, inputs)),
        place=place,
        code=code,
        scope="/".join(name for name in scopes if name.isidentifier()),
        is_backward=any(name.startswith("transpose(") for name in scopes),
    )


def _frames(equation: Any) -> list[Any]:
    """Returns where an equation was asked for, innermost first, outside of libraries."""
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
    # Neither keys nor integers can hold one.
    return jnp.issubdtype(value.dtype, jnp.inexact) and bool(jnp.isnan(value).any())
