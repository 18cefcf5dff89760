"""Structured pruning: channels, heads and hidden units are removed, so that the model is smaller and faster.

A channel can only be removed together with everything that depends on it: the filter that computes it, its
bias and its normalisation, the same channel of all summands of a residual sum, and the rows of the kernels
that read it. `dl.methods.channels` finds these groups from the operations of the traced model, as DepGraph
does from the graph of PyTorch (Fang et al. 2023, section 3). So no layer is known by its name: a model of
plain functions can be pruned as well as one of Linen.

The pruned model computes what the full model computes if all parameters of the removed channels are 0.
That includes a layer norm over pruned channels, whose sums are still divided by the number of all channels.

`plan` removes the channels of least importance. The importance of a channel is a norm of its slices of the
group's kernels (Li et al. 2017, section 3.1), or its first-order effect on the loss, |Σ g w| (Molchanov et
al. 2019, eq. 8), divided by the mean of its group, so that channels of all groups can be ranked together::

    pruning = structured_pruning.plan(experiment, variables, flops_fraction=0.5)
    smaller = pruning.changed(experiment)           # an experiment as any other
    start = pruning.converted(variables)            # its first variables, for warm_start

The smaller model is the traced full model, evaluated with fewer channels. Interceptors of Linen see the full
modules: a table of layers has the parameters and FLOPs of the smaller model, and the shapes of the full one.
`task.intermediates` runs the full model with zeros for the removed channels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dl.errors import UserError
from dl.experiment import Experiment, stored_batch, variable_shapes
from dl.methods.channels.graph import Graph, graph_of
from dl.methods.channels.model import Axes, KeptAxis, kept_variables, masked_variables, narrowed
from dl.methods.channels.planning import (
    Importance,
    Limits,
    importance_of,
    kept_groups,
    prunable_groups,
    removed_for,
)
from dl.ranges import BELOW_ONE, STEPS, Range, check, check_count
from dl.types import Params, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructuredPruning:
    """Which channels of a model are kept.

    Attributes:
      groups: for each set of kept channels a mapping of `kept`, the indices as text such as "0-3,6"; `size`,
        the number of all indices; and `axes`, the axes of variables with these indices, such as
        "params/conv/kernel:3".

    Raises:
      UserError: a group is not of this form, or keeps no channel.
    """

    groups: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        groups = []
        for group in self.groups:
            if not isinstance(group, Mapping) or set(group) != {"kept", "size", "axes"}:
                raise UserError(
                    f"a group of structured pruning is {str(group)[:80]}; it must have kept, size and axes, "
                    "as structured_pruning.plan returns them"
                )
            parse_indices(group["kept"], group["size"])
            groups.append({**group, "axes": tuple(group["axes"])})
        object.__setattr__(self, "groups", tuple(groups))

    @property
    def axes(self) -> Axes:
        """The kept indices of each axis of the variables."""
        found: dict[str, dict[int, KeptAxis]] = {}
        for group in self.groups:
            kept = KeptAxis(parse_indices(group["kept"], group["size"]), group["size"])
            for axis in group["axes"]:
                path, _, number = axis.rpartition(":")
                found.setdefault(path, {})[int(number)] = kept
        return found

    def changed(self, experiment: Experiment) -> Experiment:
        """Returns the experiment whose model has only the kept channels."""
        return dataclasses.replace(experiment, task=narrowed(experiment.task, self.axes))

    def converted(self, variables: Variables) -> Variables:
        """Returns the variables of the full model without the removed channels.

        Raises:
          UserError: the variables are not those of the model that the pruning was planned for.
        """
        return kept_variables(variables, self.axes)

    def stored(self, variables: Variables) -> Variables:
        """Returns the variables as they are: they are small already."""
        return variables

    def masked(self, variables: Variables) -> Variables:
        """Returns the variables of the full model whose parameters are 0 in all removed channels.

        With them the full model computes what the pruned model computes.
        """
        return masked_variables(variables, self.axes)

    def widths(self) -> dict[str, tuple[int, int]]:
        """Returns the numbers of kept and of all channels of each parameter's axis, as `conv/kernel:3`."""
        return {
            f"{path.removeprefix('params/')}:{number}": (len(axis.indices), axis.size)
            for path, kept in self.axes.items()
            if path.startswith("params/")
            for number, axis in kept.items()
        }


def plan(
    experiment: Experiment,
    variables: Variables,
    *,
    flops_fraction: float = 0.5,
    importance: Importance = "l2",
    gradients: Params | None = None,
    leave_out: Sequence[str] = (),
    min_width: int = 1,
    max_pruned: float = 0.9,
    multiple_of: int = 1,
    seed: int = 0,
) -> StructuredPruning:
    """Returns a pruning that leaves at most a fraction of the FLOPs of the forward pass.

    Args:
      experiment: the experiment of the trained model. Its data are not read.
      variables: the trained variables.
      flops_fraction: largest fraction of the FLOPs that is left, in (0, 1]. FLOPs are those of `dl.flops`.
      importance: what ranks the channels: `l1`, `l2`, `taylor` or `random`; see `importance_of`.
      gradients: for `taylor`, the gradient of the loss at the variables.
      leave_out: regular expressions. A group with a parameter whose path matches one is not pruned. Nor is a
        group with a frozen parameter.
      min_width: smallest number of channels that a group keeps.
      max_pruned: largest fraction of a group's channels that is removed.
      multiple_of: number that the kept channels of each group are rounded up to a multiple of, such as 8.
      seed: seed of `random`.

    Raises:
      UserError: the model has no channels that can be removed, the FLOPs cannot be met, or an argument is out
        of range.
    """
    check("flops_fraction", flops_fraction, Range(0, 1, above_low=True))
    check("max_pruned", max_pruned, BELOW_ONE)
    check_count("min_width", min_width, STEPS)
    check_count("multiple_of", multiple_of, STEPS)
    if importance not in ("l1", "l2", "taylor", "random"):
        raise UserError(f"importance={importance!r} is unknown; choose l1, l2, taylor or random")
    if importance == "taylor" and gradients is None:
        raise UserError("importance='taylor' needs gradients; give the gradient of the loss at the variables")
    graph = experiment_graph(experiment)
    groups = prunable_groups(graph, (*leave_out, *experiment.frozen))
    importances = [importance_of(graph, group, variables, importance, gradients, seed) for group in groups]
    limits = Limits(min_width=min_width, max_pruned=max_pruned, multiple_of=multiple_of)
    removed = removed_for(graph, groups, importances, flops_fraction, limits)
    found = kept_groups(graph, removed)
    return StructuredPruning(groups=[{**group, "kept": format_indices(group["kept"])} for group in found])


def experiment_graph(experiment: Experiment) -> Graph:
    """Returns the channels of the model of an experiment; nothing is read or allocated."""
    batch: Any = stored_batch(experiment, 2)
    if experiment.preprocess is not None:
        batch = jax.eval_shape(experiment.preprocess, batch)
    return graph_of(experiment.task, variable_shapes(experiment), batch)


def format_indices(indices: Sequence[int]) -> str:
    """Returns increasing indices as text: `0-3,6`."""
    runs: list[list[int]] = []
    for index in map(int, indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_indices(text: str, size: int) -> np.ndarray:
    """Returns the indices of a text such as `0-3,6`.

    Raises:
      UserError: the text is not understood, or an index is not below `size`.
    """
    indices: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            indices += range(int(first), int(last or first) + 1)
    except (AttributeError, ValueError):
        indices = []
    if not indices or indices != sorted(set(indices)) or indices[-1] >= size:
        raise UserError(
            f"kept={text!r} must be increasing indices below {size}, such as 0-3,6; plan the pruning again"
        )
    return np.array(indices)
