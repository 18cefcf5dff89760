"""Which channels to remove: their importance, and a choice that meets a number of FLOPs."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from dl.errors import UserError
from dl.methods.channels.graph import Graph, Group
from dl.sharding import path_name
from dl.types import Params, Variables

Importance = Literal["l1", "l2", "taylor", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a choice of channels must respect.

    Attributes:
      min_width: smallest number of channels that a group keeps.
      max_pruned: largest fraction of a group's channels that is removed, in [0, 1).
      multiple_of: number that the kept channels of a group are rounded up to a multiple of.
    """

    min_width: int = 1
    max_pruned: float = 0.9
    multiple_of: int = 1

    def width(self, wanted: int, size: int) -> int:
        """Returns the number of channels that a group of `size` channels keeps if `wanted` would be kept."""
        least = max(self.min_width, 1, int(np.ceil(size * (1 - self.max_pruned) - 1e-9)))
        wanted = max(wanted, least)
        return min(size, -(-wanted // self.multiple_of) * self.multiple_of)


def prunable_groups(graph: Graph, leave_out: Sequence[str]) -> list[Group]:
    """Returns the groups of channels that can be removed and that no pattern leaves out.

    Raises:
      UserError: there is no such group, or a pattern matches no parameter.
    """
    names = [path.removeprefix("params/") for path in graph.values if path.startswith("params/")]
    for pattern in leave_out:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f"the pattern {pattern!r} matches no parameter; paths look like {names[0] if names else None}"
            )
    groups = [
        group
        for group in graph.groups()
        if len(group.units) > 1
        and any(len(graph.values[path].axes) > 1 for path, _ in group.axes)
        and not any(re.search(p, path.removeprefix("params/")) for p in leave_out for path, _ in group.axes)
    ]
    if not groups:
        reason = "outside leave_out and frozen parameters " if leave_out else ""
        raise UserError(
            f"the model has no channels {reason}that can be removed: between its input and its output there "
            "must be hidden channels, units or heads; use magnitude pruning, or another model"
        )
    return groups


def importance_of(
    graph: Graph,
    group: Group,
    variables: Variables,
    kind: Importance,
    gradients: Params | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Returns the importance of each channel of a group, divided by their mean.

    Args:
      graph: the channels of the model.
      group: the group.
      variables: the trained variables.
      kind: `l1` or `l2`, a norm of the slices of all kernels; `taylor`, |Σ g w| over all parameters; or
        `random`.
      gradients: for `taylor`, the gradients of the parameters.
      seed: for `random`, the seed.
    """
    order = np.argsort(group.units)
    totals = np.zeros(len(group.units))
    if kind == "random":
        totals = np.random.default_rng([seed, int(group.units[0])]).uniform(0.5, 1.5, len(totals))
    weights, slopes = _arrays(variables["params"]), _arrays(gradients or {})
    for path, number in group.axes if kind != "random" else ():
        if path not in weights or (kind != "taylor" and weights[path].ndim < 2):
            continue
        values = np.moveaxis(weights[path], number, 0).reshape(weights[path].shape[number], -1)
        if kind == "taylor":
            values = values * np.moveaxis(slopes[path], number, 0).reshape(values.shape)
            of_index = values.sum(1)
        else:
            of_index = np.abs(values).sum(1) if kind == "l1" else np.square(values).sum(1)
        roots = graph.roots(path, number)
        belongs = np.isin(roots, group.units)
        units = order[np.searchsorted(group.units[order], roots[belongs])]
        np.add.at(totals, units, of_index[belongs])
    totals = np.sqrt(totals) if kind == "l2" else np.abs(totals)
    mean = totals.mean()
    return totals / mean if mean > 0 else np.ones_like(totals)


def removed_for(
    graph: Graph,
    groups: Sequence[Group],
    importances: Sequence[np.ndarray],
    flops_fraction: float,
    limits: Limits,
) -> np.ndarray:
    """Returns the labels of the channels to remove: the fewest of least importance that meet the FLOPs.

    Raises:
      UserError: the FLOPs cannot be met within the limits.
    """
    costs = graph.costs()
    total = flops_without(costs, np.zeros(0, np.int64))
    ranked = np.sort(np.concatenate(list(importances)))
    orders = [np.argsort(-importance, kind="stable") for importance in importances]

    def removed_by(num_removed: int) -> np.ndarray:
        threshold = ranked[num_removed] if num_removed < len(ranked) else np.inf
        gone = [np.zeros(0, np.int64)]
        for group, importance, order in zip(groups, importances, orders, strict=True):
            width = limits.width(int((importance >= threshold).sum()), len(group.units))
            gone.append(group.units[order[width:]])
        return np.concatenate(gone)

    low, high = 0, len(ranked)
    least = flops_without(costs, removed_by(high)) / total if total else 1.0
    if least > flops_fraction:
        raise UserError(
            f"flops_fraction={flops_fraction:g} cannot be met: within the limits at least {least:.3f} of the "
            "FLOPs are left; raise it, or max_pruned, or lower min_width or multiple_of"
        )
    while low < high:
        middle = (low + high) // 2
        if flops_without(costs, removed_by(middle)) <= flops_fraction * total:
            high = middle
        else:
            low = middle + 1
    return removed_by(low)


def flops_without(costs: Sequence[tuple[int, Sequence[np.ndarray]]], removed: np.ndarray) -> int:
    """Returns the FLOPs of the forward pass without the removed channels."""
    is_removed: dict[int, int] = {}

    def num_kept(axis: np.ndarray) -> int:
        if id(axis) not in is_removed:
            is_removed[id(axis)] = len(axis) - int(np.isin(axis, removed).sum())
        return is_removed[id(axis)]

    total = 0
    for flops, axes in costs:
        for axis in axes:
            flops = flops // len(axis) * num_kept(axis)
        total += flops
    return total


def _arrays(params: Params) -> Mapping[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path({"params": params})
    return {path_name(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def kept_groups(graph: Graph, removed: np.ndarray) -> list[dict[str, Any]]:
    """Returns for each set of kept channels their indices, their number and the axes that have them."""
    axes_of: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for path, value in graph.values.items():
        for number, axis in enumerate(value.axes):
            if axis is None:
                continue
            is_removed = np.isin(graph.labels.find(axis), removed)
            if is_removed.any():
                kept = tuple(np.flatnonzero(~is_removed).tolist())
                axes_of.setdefault((len(axis), kept), []).append(f"{path}:{number}")
    return [{"kept": kept, "size": size, "axes": tuple(axes)} for (size, kept), axes in axes_of.items()]
