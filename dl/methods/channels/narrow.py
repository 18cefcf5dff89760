"""A traced function that is evaluated with fewer channels.

Each operation runs with the indices that are kept: a convolution with fewer filters, a reshape with other
sizes. Operations without removed channels run as they are. Numbers in the program do not change: the mean of
a layer norm over a pruned axis is still a sum divided by the number of all channels, so the result is that of
the full model whose removed channels are 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl.methods.channels.labels import Axis, Labels, Value
from dl.methods.channels.trace import Body, Step, bound, is_floating

Kept = tuple[np.ndarray | None, ...]
"""For each axis the indices that are kept. None means all."""


class Narrow:
    """Evaluates a traced function without the channels whose labels are removed.

    Attributes:
      labels: the union of the labels of the function.
      removed: the labels that are removed, as `labels.find` returns them.
    """

    def __init__(self, labels: Labels, removed: np.ndarray) -> None:
        self._labels = labels
        self._removed = removed

    def kept(self, value: Value) -> Kept:
        """Returns the indices of an array that are kept."""
        return tuple(self._kept_axis(axis) for axis in value.axes)

    def evaluate(
        self, body: Body, arguments: Sequence[Any], consts: Sequence[Any] | None = None
    ) -> list[Any]:
        """Returns the outputs of a function for arguments without the removed channels."""
        jaxpr = getattr(body.jaxpr, "jaxpr", body.jaxpr)
        consts = getattr(body.jaxpr, "consts", ()) if consts is None else consts
        values = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, const, value in zip(jaxpr.constvars, consts, body.consts, strict=True):
            values[variable] = take(const, self.kept(value))

        def read(variable: Any) -> Any:
            return variable.val if hasattr(variable, "val") else values[variable]

        for step in body.steps:
            operands = [read(variable) for variable in step.equation.invars]
            with jax.named_scope(str(step.equation.source_info.name_stack)):
                outputs = self._run(step, operands)
            values.update(zip(step.equation.outvars, outputs, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _kept_axis(self, axis: Axis) -> np.ndarray | None:
        if axis is None:
            return None
        is_removed = np.isin(self._labels.find(axis), self._removed)
        return np.flatnonzero(~is_removed) if is_removed.any() else None

    def _run(self, step: Step, operands: Sequence[Any]) -> list[Any]:
        touched = [*step.inputs, *step.outputs]
        if not any(kept is not None for value in touched for kept in self.kept(value)):
            return bound(step.equation)(*operands)
        name = step.equation.primitive.name
        if step.bodies:
            return self._call(step, operands)
        if name in ("slice", "split"):
            return self._slices(step, operands)
        if name == "iota":
            return [take(bound(step.equation)()[0], self.kept(step.outputs[0]))]
        change = _NEW_PARAMS.get(name)
        shapes = [self._shape(v, value) for v, value in zip(step.equation.outvars, step.outputs, strict=True)]
        params = step.equation.params if change is None else change(self, step, shapes)
        outputs = step.equation.primitive.bind(*operands, **params)
        return list(outputs) if step.equation.primitive.multiple_results else [outputs]

    def _shape(self, variable: Any, value: Value) -> tuple[Any, ...]:
        sizes = zip(variable.aval.shape, self.kept(value), strict=True)
        return tuple(size if kept is None else len(kept) for size, kept in sizes)

    def _slices(self, step: Step, operands: Sequence[Any]) -> list[Any]:
        """Slices of an axis with removed channels: the kept indices of each slice are looked up."""
        params, shape = step.equation.params, step.equation.invars[0].aval.shape
        if step.equation.primitive.name == "slice":
            strides = params["strides"] or (1,) * len(shape)
            parts = [list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))]
        else:
            whole, parts, start = [(0, size, 1) for size in shape], [], 0
            for size in params["sizes"]:
                parts.append([*whole])
                parts[-1][params["axis"]] = (start, start + size, 1)
                start += size
        kept = self.kept(step.inputs[0])
        outputs = []
        for part in parts:
            output = operands[0]
            for axis, ((first, limit, stride), indices) in enumerate(zip(part, kept, strict=True)):
                if indices is None:
                    output = jax.lax.slice_in_dim(output, first, limit, stride, axis)
                else:
                    wanted = np.isin(indices, np.arange(first, limit, stride))
                    output = take(output, _on_axis(output.ndim, axis, np.flatnonzero(wanted)))
            outputs.append(output)
        return outputs

    def _call(self, step: Step, operands: Sequence[Any]) -> list[Any]:
        params, name = step.equation.params, step.equation.primitive.name
        if len(step.bodies) == 2 and name == "custom_jvp_call":
            return self._call_with_derivative(step, operands)
        if name == "cond":
            branches = [_function(self, body) for body in step.bodies]
            return list(jax.lax.switch(operands[0], branches, *operands[1:]))
        if name == "scan":
            return self._scan(step, operands)
        [body] = step.bodies
        if name in ("remat", "remat2", "checkpoint"):
            how = {key: params[key] for key in ("prevent_cse", "policy") if key in params}
            return list(jax.checkpoint(_function(self, body), **how)(*operands))
        return self.evaluate(body, operands)

    def _scan(self, step: Step, operands: Sequence[Any]) -> list[Any]:
        params, [body] = step.equation.params, step.bodies
        num_consts, num_carry = params["num_consts"], params["num_carry"]
        consts, scanned = operands[:num_consts], operands[num_consts + num_carry :]

        def iteration(carry: Sequence[Any], slices: Sequence[Any]) -> Any:
            outputs = self.evaluate(body, [*consts, *carry, *slices])
            return outputs[:num_carry], outputs[num_carry:]

        start = list(operands[num_consts : num_consts + num_carry])
        how = {key: params[key] for key in ("length", "reverse", "unroll")}
        carry, stacked = jax.lax.scan(iteration, start, list(scanned), **how)
        return [*carry, *stacked]

    def _call_with_derivative(self, step: Step, operands: Sequence[Any]) -> list[Any]:
        body, derivative = step.bodies
        floating = [at for at, variable in enumerate(step.equation.invars) if is_floating(variable)]
        call = jax.custom_jvp(lambda *arguments: self.evaluate(body, arguments))

        def differentiate(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
            outputs = self.evaluate(derivative, [*primals, *(tangents[at] for at in floating)])
            num_outputs = len(outputs) // 2
            return outputs[:num_outputs], outputs[num_outputs:]

        call.defjvp(differentiate)
        return list(call(*operands))


def take(array: Any, kept: Kept) -> Any:
    """Returns the kept indices of an array of JAX or NumPy."""
    for axis, indices in enumerate(kept):
        if indices is None:
            continue
        if len(indices) and np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
            array = array[(slice(None),) * axis + (slice(int(indices[0]), int(indices[0]) + len(indices)),)]
        else:
            array = (np if isinstance(array, np.ndarray) else jnp).take(array, indices, axis)
    return array


def put(array: Any, kept: Kept, shape: Sequence[int]) -> Any:
    """Returns an array of the full shape that is 0 at the removed indices: the inverse of `take`."""
    for axis, indices in enumerate(kept):
        if indices is not None:
            full = jnp.zeros((*array.shape[:axis], shape[axis], *array.shape[axis + 1 :]), array.dtype)
            array = full.at[(slice(None),) * axis + (indices,)].set(array)
    return array


def _function(narrow: Narrow, body: Body) -> Callable[..., tuple[Any, ...]]:
    return lambda *operands: tuple(narrow.evaluate(body, operands))


def _on_axis(num_axes: int, axis: int, indices: np.ndarray) -> Kept:
    return tuple(indices if at == axis else None for at in range(num_axes))


def _with(name: str) -> Callable[..., dict[str, Any]]:
    """Returns a rule that sets a parameter to the shape of the output."""
    return lambda narrow, step, shapes: {**step.equation.params, name: shapes[0]}


def _random_bits(narrow: Narrow, step: Step, shapes: Sequence[Any]) -> dict[str, Any]:
    num_keys = len(step.equation.invars[0].aval.shape)
    return {**step.equation.params, "shape": shapes[0][num_keys:]}


def _slice_sizes(narrow: Narrow, step: Step, shapes: Sequence[Any]) -> dict[str, Any]:
    kept = narrow.kept(step.inputs[0])
    sizes = zip(step.equation.params["slice_sizes"], kept, strict=True)
    new = tuple(size if indices is None else len(indices) for size, indices in sizes)
    return {**step.equation.params, "slice_sizes": new}


def _convolution(narrow: Narrow, step: Step, shapes: Sequence[Any]) -> dict[str, Any]:
    params, kernel = step.equation.params, step.equation.invars[1].aval
    numbers = params["dimension_numbers"]
    if params["feature_group_count"] == 1 or kernel.shape[numbers.rhs_spec[1]] != 1:
        return params
    channels = narrow.kept(step.inputs[0])[numbers.lhs_spec[1]]
    groups = params["feature_group_count"] if channels is None else len(channels)
    return {**params, "feature_group_count": groups}


def _pad(narrow: Narrow, step: Step, shapes: Sequence[Any]) -> dict[str, Any]:
    config = []
    old = step.equation.invars[0].aval.shape
    for pads, indices, size in zip(
        step.equation.params["padding_config"], narrow.kept(step.outputs[0]), old, strict=True
    ):
        low, high, interior = pads
        if indices is not None:
            low, high = int((indices < low).sum()), int((indices >= low + size).sum())
        config.append((low, high, interior))
    return {**step.equation.params, "padding_config": tuple(config)}


_NEW_PARAMS: Mapping[str, Callable[[Narrow, Step, Sequence[Any]], dict[str, Any]]] = {
    "broadcast_in_dim": _with("shape"),
    "conv_general_dilated": _convolution,
    "dynamic_slice": _slice_sizes,
    "gather": _slice_sizes,
    "pad": _pad,
    "random_bits": _random_bits,
    "reshape": _with("new_sizes"),
}
