"""The dependency graph of a model's channels: its functions traced with labels that all parameters share."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dl.flops import count_equation_flops
from dl.methods.channels.labels import Axis, Labels, Value
from dl.methods.channels.passing import constant
from dl.methods.channels.trace import Body, Step, trace, unite
from dl.sharding import path_name
from dl.task import Task
from dl.types import Batch, Variables


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that occur on the same axes of the parameters, such as those of a layer or a residual stream.

    Attributes:
      axes: each axis, as the path of a variable and the number of the axis.
      units: the labels of the channels, in their order on the first axis. A unit may have several indices on
        an axis, such as a head.
    """

    axes: tuple[tuple[str, int], ...]
    units: np.ndarray


@dataclasses.dataclass(frozen=True)
class Graph:
    """The channels of a model.

    Attributes:
      labels: the union of the labels.
      values: the labels of each variable, by its path, such as `params/conv/kernel`.
      body: the traced forward pass.
    """

    labels: Labels
    values: Mapping[str, Value]
    body: Body

    def groups(self) -> list[Group]:
        """Returns all channels of the parameters that can be removed, in the order of the parameters."""
        axes_of: dict[int, dict[tuple[str, int], None]] = {}
        for path, value in self.values.items():
            for number, axis in enumerate(value.axes):
                for root in () if axis is None else self.labels.find(axis).tolist():
                    axes_of.setdefault(root, {})[path, number] = None
        axes_of.pop(0, None)
        units: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for root, axes in axes_of.items():
            if any(path.startswith("params/") for path, _ in axes):
                units.setdefault(tuple(axes), []).append(root)
        return [Group(axes, np.array(roots)) for axes, roots in units.items()]

    def roots(self, path: str, axis: int) -> np.ndarray:
        """Returns the label of each index of an axis of a variable; 0 where it cannot be removed."""
        labels = self.values[path].axes[axis]
        assert labels is not None
        return self.labels.find(labels)

    def costs(self) -> list[tuple[int, list[np.ndarray]]]:
        """Returns the FLOPs of each product of the forward pass, and the labels of the axes of its size."""
        return list(_costs(self.labels, self.body, 1))


def graph_of(task: Task, variables: Variables, batch: Batch) -> Graph:
    """Returns the channels of the model of a task.

    Args:
      task: the task. Both its evaluation and its loss in training are traced.
      variables: shapes of the variables.
      batch: shapes of a batch after preprocessing.
    """
    labels = Labels()
    values = {name: fresh(labels, name, leaf.shape) for name, leaf in _named(variables)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = {name: collection for name, collection in variables.items() if name != "params"}

    def loss(variables: Variables, batch: Batch, key: Any) -> tuple[Any, Any]:
        state = {name: collection for name, collection in variables.items() if name != "params"}
        mean, aux = task.loss(variables.get("params", {}), state, batch, key)
        return aux.model_state, (mean, aux.metrics)

    training = _traced(labels, values, loss, variables, batch, key)
    names = [name for name, _ in _named(state)]
    for name, output in zip(names, training.outputs, strict=False):
        unite(labels, values[name], output)
    labels.freeze(*(axis for output in training.outputs[len(names) :] for axis in output.axes))
    predict = task.predict or (lambda variables, batch: loss(variables, batch, None)[1])
    forward = _traced(labels, values, predict, variables, batch)
    labels.freeze(*(axis for output in forward.outputs for axis in output.axes))
    return Graph(labels, values, forward)


def fresh(labels: Labels, name: str, shape: Sequence[int]) -> Value:
    """Returns new labels of a variable. Only parameters are 0 where a channel is masked."""
    is_parameter = name.startswith("params/")
    return Value(tuple(labels.fresh(int(size)) for size in shape), (is_parameter,) * len(shape))


def _named(variables: Variables) -> list[tuple[str, Any]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))]


def _traced(
    labels: Labels,
    values: Mapping[str, Value],
    function: Callable[..., Any],
    variables: Variables,
    *rest: Any,
) -> Body:
    jaxpr = jax.make_jaxpr(function)(dict(variables), *rest)
    of_rest = [constant(leaf) for leaf in jax.tree.leaves(rest)]
    return trace(labels, jaxpr, [*(values[name] for name, _ in _named(variables)), *of_rest])


def _costs(labels: Labels, body: Body, times: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    for step in body.steps:
        if flops := times * count_equation_flops(step.equation):
            yield flops, [labels.find(axis) for axis in _axes_of_product(step) if labels.is_live(axis)]  # type: ignore[arg-type]
        repeats = step.equation.params["length"] if step.equation.primitive.name == "scan" else 1
        bodies = step.bodies[:1] if step.equation.primitive.name == "custom_jvp_call" else step.bodies
        inner = [list(_costs(labels, one, times * repeats)) for one in bodies]
        if inner:  # of a conditional, the branch that costs most
            yield from max(inner, key=lambda costs: sum(flops for flops, _ in costs))


def _axes_of_product(step: Step) -> list[Axis]:
    """Returns the axes whose sizes multiply to the FLOPs of a matrix product or a convolution."""
    numbers = step.equation.params["dimension_numbers"]
    if step.equation.primitive.name == "dot_general":
        contracted = numbers[0][0]
        return [*step.outputs[0].axes, *(step.inputs[0].axes[axis] for axis in contracted)]
    return [*step.outputs[0].axes, step.inputs[1].axes[numbers.rhs_spec[1]]]
