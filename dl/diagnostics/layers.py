"""The layers of a Linen model as a table: shapes, parameters and FLOPs, from shapes alone."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Container, Sequence
from typing import Any

import flax.linen as nn
import jax
from rich.table import Table

from dl.experiment import Experiment, stored_batch, variable_shapes
from dl.flops import count_flops_by_scope
from dl.sharding import path_name
from dl.types import Variables

Path = tuple[str, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One module of a model, at its first call.

    Attributes:
      path: the names of the modules from the model to this module; () is the model itself.
      kind: the class of the module, such as `Dense`.
      input_shapes: the shapes of the arrays among its arguments.
      output_shapes: the shapes of the arrays that it returns.
      num_parameters: number of scalars in its `params`, without those of its submodules.
      num_state: number of scalars in the other collections, such as batch statistics.
      flops: the FLOPs of all its calls, without those of its submodules. A multiplication and an addition
        count as two, and products with padding count, as in published tables.
      flops_without_padding: the FLOPs without products with padding. `None` if there are no such products.
    """

    path: Path
    kind: str
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    num_parameters: int
    num_state: int
    flops: int
    flops_without_padding: int | None = None

    def __post_init__(self) -> None:
        if self.flops_without_padding is None:
            object.__setattr__(self, "flops_without_padding", self.flops)


def layer_table(forward: Callable[..., Any], variables: Variables, *args: Any) -> list[Layer]:
    """Returns the modules that `forward(variables, *args)` calls, in the order of their first calls.

    Nothing is allocated or compiled: `forward` is traced once. Each parameter and each FLOP belongs to one
    layer, so each column adds up to the total of the model. Under `nn.scan` and `nn.vmap`, shapes are those
    of one iteration; parameters and FLOPs are those of all iterations.

    Args:
      forward: calls ONE Linen model, for example `model.apply`.
      variables: the variables of the model, as arrays or `jax.ShapeDtypeStruct`s.
      args: further arguments of `forward`, as arrays or `jax.ShapeDtypeStruct`s.
    """
    calls: dict[Path, dict[str, Any]] = {}

    def record(call: Callable[..., Any], call_args: Any, kwargs: Any, context: Any) -> Any:
        path = tuple(context.module.path)
        is_first = path not in calls
        if is_first:
            calls[path] = {
                "kind": type(context.module).__name__,
                "input_shapes": _shapes((call_args, kwargs)),
            }
        output = call(*call_args, **kwargs)
        if is_first:
            calls[path]["output_shapes"] = _shapes(output)
        return output

    with nn.intercept_methods(record):
        jaxpr = jax.make_jaxpr(forward)(variables, *args)
    flops, valid_flops = (_flops(jaxpr, calls, padding) for padding in (True, False))
    sizes = {name: _sizes(collection, calls) for name, collection in variables.items()}
    return [
        Layer(
            path,
            **call,
            num_parameters=sizes["params"][path] if "params" in sizes else 0,
            num_state=sum(owned[path] for name, owned in sizes.items() if name != "params"),
            flops=flops[path],
            flops_without_padding=valid_flops[path],
        )
        for path, call in calls.items()
    ]


def format_layers(layers: Sequence[Layer], title: str) -> Table:
    """Returns the table as text, with totals in its last line."""
    with_state = any(layer.num_state for layer in layers)
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("layer", "total", no_wrap=True)
    for name in ("module", "input", "output"):
        table.add_column(name, no_wrap=True)
    figures = {"parameters": [layer.num_parameters for layer in layers]}
    if with_state:
        figures["other state"] = [layer.num_state for layer in layers]
    figures["forward FLOPs"] = [layer.flops for layer in layers]
    without = [layer.flops_without_padding or 0 for layer in layers]
    if without != figures["forward FLOPs"]:
        figures["without padding"] = without
    for name, values in figures.items():
        table.add_column(name, f"{sum(values):,}", justify="right", no_wrap=True)
    for row, layer in enumerate(layers):
        table.add_row(
            "/".join(layer.path) or "(model)",
            layer.kind,
            *(format_shapes(shapes) for shapes in (layer.input_shapes, layer.output_shapes)),
            *(f"{values[row]:,}" if values[row] else "" for values in figures.values()),
        )
    return table


def _flops(jaxpr: Any, calls: Container[Path], padding: bool) -> Counter[Path]:
    """Returns the FLOPs by the module that they belong to."""
    flops: Counter[Path] = Counter()
    for scope, count in count_flops_by_scope(jaxpr, padding=padding).items():
        flops[_deepest(scope, calls)] += count
    return flops


def _shapes(tree: Any) -> tuple[Shape, ...]:
    return tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def format_shapes(shapes: Sequence[Shape]) -> str:
    """Returns the shapes as text: `1 x 28 x 28 x 1, scalar`."""
    return ", ".join(" x ".join(map(str, shape)) or "scalar" for shape in shapes)


def _deepest(scope: Sequence[str], known: Container[Path]) -> Path:
    """Returns the module that contains a scope. Some names in a scope are not modules."""
    path: Path = ()
    for name in scope:
        inner = (*path, name.partition(".")[0])  # Linen writes `name.method`
        if inner in known:
            path = inner
    return path


def _sizes(collection: Any, known: Container[Path]) -> Counter[Path]:
    """Returns the number of scalars in a collection by the module that they belong to."""
    sizes: Counter[Path] = Counter()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(collection):
        path: Path = tuple(path_name((key,)) for key in keys)
        while path and path not in known:
            path = path[:-1]
        sizes[path] += leaf.size
    return sizes


def experiment_layers(experiment: Experiment) -> list[Layer]:
    """Returns the layers that the loss of an experiment calls for one example; empty if it calls none."""
    variables, example = variable_shapes(experiment), stored_batch(experiment, 1)
    if experiment.preprocess is not None:
        example = jax.eval_shape(experiment.preprocess, example)

    def evaluate(variables: Any, batch: Any) -> Any:
        state = {name: collection for name, collection in variables.items() if name != "params"}
        return experiment.task.loss(variables.get("params", {}), state, batch, None)[0].compute()

    return layer_table(evaluate, variables, example)
