"""The kernels of a model in the order in which it computes with them."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from dl.errors import UserError
from dl.experiment import Experiment, stored_batch, variable_shapes
from dl.flops import inner_jaxprs
from dl.sharding import path_name


def kernels_in_order(experiment: Experiment) -> list[str]:
    """Returns the paths of the parameters that matrix products and convolutions use, the first use first.

    The forward pass is traced from its shapes. Nothing is read or allocated.
    """
    batch: Any = stored_batch(experiment, 1)
    if experiment.preprocess is not None:
        batch = jax.eval_shape(experiment.preprocess, batch)
    variables = dict(variable_shapes(experiment))
    state = {name: collection for name, collection in variables.items() if name != "params"}

    def outputs(params: Any, state: Any, batch: Any) -> Any:
        mean, aux = experiment.task.loss(params, state, batch, None)
        return mean, aux.metrics

    jaxpr = jax.make_jaxpr(outputs)(variables["params"], state, batch)
    paths = jax.tree_util.tree_leaves_with_path(variables["params"])
    sources = [path_name(path) for path, _ in paths]
    order: dict[str, None] = {}
    _walk(jaxpr.jaxpr, [*sources, *[None] * (len(jaxpr.jaxpr.invars) - len(sources))], order)
    return list(order)


def first_and_last(experiment: Experiment) -> tuple[str, str]:
    """Returns patterns of the first and the last kernel, such as for `MagnitudePruning.leave_out`.

    Raises:
      UserError: the model has no kernels.
    """
    order = kernels_in_order(experiment)
    if not order:
        raise UserError("the model has no kernels; give the patterns of parameters yourself")
    return f"^{re.escape(order[0])}$", f"^{re.escape(order[-1])}$"


def _walk(jaxpr: Any, sources: Sequence[str | None], order: dict[str, None]) -> list[str | None]:
    """Notes the parameters that products use, and returns of which parameter alone each output is made."""
    known = dict(zip(jaxpr.invars, sources, strict=True))

    def source(variable: Any) -> str | None:
        return None if hasattr(variable, "val") else known.get(variable)

    for equation in jaxpr.eqns:
        operands = [source(variable) for variable in equation.invars]
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            order.update((name, None) for name in operands[:2] if name is not None)
            continue
        bodies = inner_jaxprs(equation.params)
        made: list[str | None] = [operands[0] if len(operands) == 1 else None] * len(equation.outvars)
        for body in bodies:
            extra = len(operands) - len(body.invars)  # such as the index of a conditional
            if extra >= 0:
                results = _walk(body, operands[extra:], order)
                made = results if len(results) == len(made) else made
        known.update(zip(equation.outvars, made, strict=True))
    return [source(variable) for variable in jaxpr.outvars]
