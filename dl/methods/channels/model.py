"""A task whose model has fewer channels: its functions take the smaller variables."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dl.errors import UserError
from dl.methods.channels.graph import fresh
from dl.methods.channels.labels import Labels, Value
from dl.methods.channels.narrow import Narrow, put, take
from dl.methods.channels.passing import constant
from dl.methods.channels.trace import trace
from dl.methods.quantization.weights import EMBEDDING, name_of_scale
from dl.sharding import path_name
from dl.task import Task
from dl.types import Aux, Batch, Key, ModelState, Params, Variables


@dataclasses.dataclass(frozen=True)
class KeptAxis:
    """The indices of an axis that are kept.

    Attributes:
      indices: the indices.
      size: number of all indices.
    """

    indices: np.ndarray
    size: int


Axes = Mapping[str, Mapping[int, KeptAxis]]
"""The axes of variables with removed indices, by the path of the variable and the number of the axis."""


def narrowed(task: Task, axes: Axes) -> Task:
    """Returns the task whose model has only the kept channels.

    Each function is traced with the variables of the full model, and evaluated with the smaller ones. Only
    `intermediates`, whose modules are watched from outside, runs the full model with zeros in their place.

    Raises:
      UserError: the variables have other shapes, or the model cannot run without the removed channels.
    """

    def init(key: Key, batch: Batch) -> Variables:
        return kept_variables(task.init(key, batch), axes)

    def pair(variables: Variables, batch: Batch, key: Key | None) -> tuple[ModelState, Any]:
        state = {name: collection for name, collection in variables.items() if name != "params"}
        mean, aux = task.loss(variables.get("params", {}), state, batch, key)
        return aux.model_state, (mean, aux.metrics)

    def loss(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Any, Aux]:
        call = _narrowed(pair, axes, num_narrow=len(jax.tree.leaves(model_state)))
        state, (mean, metrics) = call({"params": params, **model_state}, batch, key)
        return mean, Aux(state, metrics)

    return task.with_uses(lambda function: _narrowed(function, axes))._replace(
        init=init, loss=loss, intermediates=task.intermediates and _widened(task.intermediates, axes)
    )


def kept_variables(variables: Variables, axes: Axes) -> Variables:
    """Returns the variables of the full model without the removed channels."""
    return _changed(variables, axes, take)


def masked_variables(variables: Variables, axes: Axes) -> Variables:
    """Returns the variables of the full model whose parameters are 0 in all removed channels."""

    def mask(leaf: Any, kept: Sequence[np.ndarray | None]) -> Any:
        for number, indices in enumerate(kept):
            if indices is not None:
                is_kept = np.isin(np.arange(leaf.shape[number]), indices)
                leaf = leaf * is_kept.reshape([-1 if at == number else 1 for at in range(leaf.ndim)])
        return leaf

    return {**variables, "params": _changed({"params": variables["params"]}, axes, mask)["params"]}


def _changed(variables: Variables, axes: Axes, change: Callable[..., Any]) -> Variables:
    seen = set()

    def of_leaf(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        if name not in axes:
            return leaf
        seen.add(name)
        kept = axes[name]
        for number, axis in kept.items():
            if leaf.ndim <= number or leaf.shape[number] != axis.size:
                raise UserError(
                    f"{name} has the shape {tuple(leaf.shape)}, and the pruning was planned for {axis.size} "
                    f"indices of axis {number}; use the model that it was planned for"
                )
        return change(leaf, tuple(kept[at].indices if at in kept else None for at in range(leaf.ndim)))

    changed = jax.tree_util.tree_map_with_path(of_leaf, dict(variables))
    if missing := [name for name in axes if name not in seen and name.split("/")[0] in variables]:
        raise UserError(
            f"the model has no variable {missing[0]}, which the pruning names; use the model that it was "
            "planned for"
        )
    return changed


def _narrowed(function: Callable[..., Any], axes: Axes, num_narrow: int = 0) -> Callable[..., Any]:
    """Returns a function of the smaller variables and more.

    Args:
      function: function of the variables of the full model and more.
      axes: the kept indices.
      num_narrow: number of the first outputs that stay small, as the variables are. Others are 0 at removed
        channels, such as the keys of removed heads in a cache.
    """

    def call(variables: Variables, *rest: Any) -> Any:
        leaves, of_variables, shapes = _listed(variables, axes)
        structs = [jax.ShapeDtypeStruct(shapes[name], leaf.dtype) for name, leaf in leaves.items()]
        full = jax.tree.unflatten(jax.tree.structure(dict(variables)), structs)

        def traced(*arguments: Any) -> Any:  # a new function: JAX would reuse the trace of another context
            return function(*arguments)

        closed, outputs = jax.make_jaxpr(traced, return_shape=True)(full, *rest)
        labels = Labels()
        values = [fresh(labels, name, shape) for name, shape in shapes.items()]
        # The arrays of a batch have no channels of the model. Those of a cache have.
        has_channels = not isinstance(rest[0], Mapping)
        others = jax.tree.leaves(rest)
        of_others = [_of_argument(labels, leaf) if has_channels else constant(leaf) for leaf in others]
        body = trace(labels, closed, [*values, *of_others])
        narrow = Narrow(labels, _removed(labels, list(leaves), values, of_variables))
        arguments = list(leaves.values())
        arguments += [take(leaf, narrow.kept(value)) for leaf, value in zip(others, of_others, strict=True)]
        results = narrow.evaluate(body, arguments)
        structs, tree = jax.tree.flatten(outputs)
        for at, (value, struct) in enumerate(zip(body.outputs, structs, strict=True)):
            if at >= num_narrow:
                results[at] = put(results[at], narrow.kept(value), struct.shape)
        return jax.tree.unflatten(tree, results)

    return call


def _widened(function: Callable[..., Any], axes: Axes) -> Callable[..., Any]:
    """Returns a function of the smaller variables that runs the full model with 0 for removed channels."""

    def call(variables: Variables, *rest: Any) -> Any:
        leaves, of_variables, shapes = _listed(variables, axes)
        full = []
        for name, leaf in leaves.items():
            kept = of_variables.get(name, {})
            indices = tuple(kept[at].indices if at in kept else None for at in range(leaf.ndim))
            full.append(put(leaf, indices, shapes[name]))
        return function(jax.tree.unflatten(jax.tree.structure(dict(variables)), full), *rest)

    return call


def _listed(variables: Variables, axes: Axes) -> tuple[dict[str, Any], Axes, dict[str, tuple[int, ...]]]:
    """Returns the smaller variables by path, the kept indices of each, and their shapes in the full model."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(dict(variables))}
    of_variables = _with_scales(axes, leaves)
    shapes = {name: _full_shape(name, leaf, of_variables) for name, leaf in leaves.items()}
    return leaves, of_variables, shapes


def _with_scales(axes: Axes, leaves: Mapping[str, Any]) -> Axes:
    """Returns the axes with those of the scales of a quantised model, which belong to the same channels.

    A kernel has a scale for each index of its last axis, and an embedding for each row, as
    `dl.methods.quantization.weights` defines. Scanned layers have one more leading axis, which is not pruned.
    """
    found = dict(axes)
    for name, kept in axes.items():
        scale = leaves.get(name_of_scale(name))
        if scale is not None:
            axis = 0 if name.endswith(f"/{EMBEDDING}") else leaves[name].ndim - 1
            if axis in kept:
                found[name_of_scale(name)] = {scale.ndim - 1: kept[axis]}
    return found


def _of_argument(labels: Labels, leaf: Any) -> Value:
    is_floating = jax.numpy.issubdtype(leaf.dtype, np.floating)
    return fresh(labels, "", leaf.shape) if is_floating else constant(leaf)


def _full_shape(name: str, leaf: Any, axes: Axes) -> tuple[int, ...]:
    shape = list(leaf.shape)
    for number, axis in axes.get(name, {}).items():
        if len(shape) <= number or shape[number] != len(axis.indices):
            raise UserError(
                f"{name} has the shape {tuple(leaf.shape)}, and the pruned model has {len(axis.indices)} "
                f"indices of axis {number}; give the variables of the pruned model"
            )
        shape[number] = axis.size
    return tuple(shape)


def _removed(labels: Labels, names: Sequence[str], values: Sequence[Value], axes: Axes) -> np.ndarray:
    """Returns the labels of all removed channels."""
    of = dict(zip(names, values, strict=True))
    removed = [np.zeros(0, np.int64)]
    for name, kept in axes.items():
        for number, axis in kept.items() if name in of else ():
            labelled = of[name].axes[number]
            assert labelled is not None
            roots = labels.find(labelled)
            is_kept = np.isin(np.arange(axis.size), axis.indices)
            gone = roots[~is_kept]
            if (gone == 0).any() or np.isin(roots[is_kept], gone).any():
                raise UserError(
                    f"axis {number} of {name} cannot lose these channels, because an operation after it "
                    "needs all of them; use the model that the pruning was planned for, and fixed scales "
                    "(static) if it is quantised"
                )
            removed.append(gone)
    return np.unique(np.concatenate(removed))
