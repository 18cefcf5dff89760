"""Magnitude pruning: the weights of smallest magnitude become 0 and stay 0.

Of a kernel, or of all kernels together, the fraction s of the weights with the smallest |w| is removed (Han
et al. 2015, section 3). With a schedule the sparsity grows during the training (Zhu & Gupta 2017, eq. 1):

    s_t = s_f + (s_i − s_f) · (1 − (t − t₀) / (n Δt))³   for t = t₀, t₀ + Δt, …, t₀ + n Δt.

With N:M sparsity every M consecutive inputs of an output keep the N weights of largest magnitude (Mishra et
al. 2021, section 3), which some GPUs compute faster.

The masks are a part of the optimizer's state, so a resumed run continues with the same bits. A pruned weight
is exactly 0 after every step, whatever momentum and weight decay add::

    pruning = MagnitudePruning(sparsity=0.9)
    Experiment(tx=pruning.changed(experiment).tx, …)     # or pruning.changed(experiment) as it is

The number of zeros is exact, also where magnitudes are equal: then the first in the order of the parameters
are removed. The model has the same shapes, so it is not faster without kernels for sparse matrices.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.experiment import Experiment, variable_shapes
from dl.freezing import is_frozen
from dl.methods.masks import Masks, check_patterns, kernels_of, masked, n_of_m_kept, smallest_removed
from dl.ranges import BELOW_ONE, STEPS, Range, check, check_count
from dl.types import Params, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class MagnitudePruning:
    """Which weights are removed, and when.

    Attributes:
      sparsity: fraction of the weights that is 0 in the end, s_f. `None` with `n_of_m`.
      scope: whether weights are compared over all kernels ("global") or within each kernel ("layer").
      n_of_m: N:M sparsity, such as "2:4", in place of `sparsity`. Kernels whose number of inputs is not a
        multiple of M are not pruned.
      initial_sparsity: sparsity at the step `start`, s_i.
      start: step of the first pruning, t₀.
      every: number of steps between two prunings, Δt.
      num_prunings: number of prunings after the first one, n. 0 prunes once, to `sparsity`.
      kernels: regular expressions. The parameters whose path matches one are pruned.
      leave_out: regular expressions. Parameters whose path matches one are not pruned.
        `kernel_order.first_and_last(experiment)` returns those of the first and the last layer. Frozen
        kernels must be left out, by the patterns of `experiment.frozen`.

    Raises:
      UserError: a value is out of range, or the values contradict each other.
    """

    sparsity: float | None = None
    scope: Literal["global", "layer"] = "global"
    n_of_m: str | None = None
    initial_sparsity: float = 0.0
    start: int = 0
    every: int = 1
    num_prunings: int = 0
    kernels: tuple[str, ...] = (r"(^|/)kernel$",)
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("kernels", "leave_out"):
            if isinstance(getattr(self, name), str):
                raise UserError(f"{name}={getattr(self, name)!r} must be a tuple of expressions")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if (self.sparsity is None) == (self.n_of_m is None):
            raise UserError(
                f"sparsity={self.sparsity} and n_of_m={self.n_of_m}: give one of them, such as sparsity=0.9"
            )
        if self.sparsity is not None:
            check("sparsity", self.sparsity, BELOW_ONE)
        if self.scope not in ("global", "layer"):
            raise UserError(f"scope={self.scope!r} is unknown; choose global or layer")
        check("initial_sparsity", self.initial_sparsity, BELOW_ONE)
        check_count("start", self.start, Range(0))
        check_count("every", self.every, STEPS)
        check_count("num_prunings", self.num_prunings, Range(0, 100_000))
        if self.n_of_m is not None:
            parse_n_of_m(self.n_of_m)
            if self.num_prunings:
                raise UserError(f"n_of_m={self.n_of_m} is pruned once; set num_prunings=0")
        if self.sparsity is not None and self.initial_sparsity > self.sparsity:
            raise UserError(
                f"initial_sparsity={self.initial_sparsity:g} is more than sparsity={self.sparsity:g}; a "
                "pruned weight stays 0: lower it"
            )

    def sparsity_at(self, step: int) -> float:
        """Returns the fraction of zeros after a number of steps (Zhu & Gupta 2017, eq. 1)."""
        if step < self.start:
            return 0.0
        if self.n_of_m is not None:
            kept, of = parse_n_of_m(self.n_of_m)
            return 1 - kept / of
        assert self.sparsity is not None
        if self.num_prunings == 0:
            return self.sparsity
        number = min((step - self.start) // self.every, self.num_prunings)
        left = (1 - number / self.num_prunings) ** 3
        return self.sparsity + (self.initial_sparsity - self.sparsity) * left

    def changed(self, experiment: Experiment) -> Experiment:
        """Returns the experiment whose optimizer prunes.

        Raises:
          UserError: the model has no such kernel, one of them is frozen, the schedule is too long for the
            run, or an average of the parameters would hold weights that were pruned later.
        """
        params = variable_shapes(experiment)["params"]
        check_patterns("leave_out", self.leave_out, params)
        frozen = [name for name in self._names(params) if is_frozen(name, experiment.frozen)]
        if frozen:
            raise UserError(
                f"{frozen[0]} is frozen and would be pruned; add the patterns of experiment.frozen, "
                f"{list(experiment.frozen)}, to leave_out"
            )
        if experiment.ema_decay is not None and self._prunes_later:
            raise UserError(
                f"ema_decay={experiment.ema_decay:g} averages weights from before they are pruned, so that "
                "the average is not sparse; prune once at the start (num_prunings=0), or use ema_decay=None"
            )
        end = self.start + self.num_prunings * self.every
        if end > experiment.num_steps:
            raise UserError(
                f"the last pruning is at step {end}, and the run has {experiment.num_steps} steps; lower "
                "start, every or num_prunings, or train longer"
            )
        return dataclasses.replace(experiment, tx=pruned(experiment.tx, self))

    def converted(self, variables: Variables) -> Variables:
        """Returns the variables with the zeros of the first step.

        Raises:
          UserError: the variables have no kernels that are pruned.
        """
        return {**variables, "params": masked(variables["params"], self.masks(variables["params"], 0))}

    def stored(self, variables: Variables) -> Variables:
        """Returns the variables as they are: their zeros compress well."""
        return variables

    def masks(self, params: Params, step: int) -> Masks:
        """Returns for each pruned kernel a mask, True where a weight is kept after a number of steps."""
        names = self._names(params)
        kernels = kernels_of(params, names)
        if self.n_of_m is None:
            return smallest_removed(kernels, jnp.asarray(self._counts(params, step)))
        if step < self.start:
            return {name: jnp.ones(kernel.shape, bool) for name, kernel in kernels.items()}
        return {name: n_of_m_kept(kernel, *parse_n_of_m(self.n_of_m)) for name, kernel in kernels.items()}

    @property
    def _prunes_later(self) -> bool:
        return self.num_prunings > 0 or self.start > 0

    def _names(self, params: Params) -> list[str]:
        check_patterns("kernels", self.kernels, params)
        leaves = flatten_dict(dict(params), sep="/")
        names = [
            name
            for name, leaf in leaves.items()
            if leaf.ndim > 1
            and any(re.search(pattern, name) for pattern in self.kernels)
            and not any(re.search(pattern, name) for pattern in self.leave_out)
        ]
        if self.n_of_m is not None:
            of = parse_n_of_m(self.n_of_m)[1]
            names = [name for name in names if leaves[name].shape[-2] % of == 0]
        if not names:
            inputs = "" if self.n_of_m is None else f" whose number of inputs fits n_of_m={self.n_of_m}"
            raise UserError(f"the model has no kernel{inputs} that is pruned; change kernels or leave_out")
        return sorted(names)

    def _counts(self, params: Params, step: int) -> np.ndarray:
        """Returns the number of zeros: of each kernel, or one number for all of them."""
        leaves = flatten_dict(dict(params), sep="/")
        sizes = [int(np.prod(leaves[name].shape)) for name in self._names(params)]
        sizes = sizes if self.scope == "layer" else [sum(sizes)]
        return np.array([round(self.sparsity_at(step) * size) for size in sizes], np.int32)


class PruningState(NamedTuple):
    """The state of the optimizer of a pruned model.

    Attributes:
      num_steps: number of steps, int32.
      masks: True where a weight is kept, by the path of its kernel.
      inner: the state of the optimizer itself.
    """

    num_steps: jax.Array
    masks: Masks
    inner: optax.OptState


def pruned(tx: optax.GradientTransformation, pruning: MagnitudePruning) -> optax.GradientTransformation:
    """Returns the optimizer whose updates make pruned weights exactly 0.

    The gradients of pruned weights are 0 for `tx`. After its update, every weight whose mask is False gets
    the update −w. The masks are computed again from the updated weights at the steps of the schedule.

    Raises:
      UserError: at its initialisation, if the parameters have no kernel that is pruned.
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> PruningState:
        state = inner.init(params)
        averages = jax.tree.leaves(state, is_leaf=_is_schedule_free)
        if pruning._prunes_later and any(_is_schedule_free(node) for node in averages):
            raise UserError(
                "a schedule-free optimizer averages weights from before they are pruned; prune once at the "
                "start (start=0, num_prunings=0), or use another optimizer"
            )
        return PruningState(jnp.zeros((), jnp.int32), pruning.masks(params, 0), state)

    def update(
        updates: optax.Updates, state: PruningState, params: Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, PruningState]:
        if params is None:
            raise ValueError("pruning needs the parameters: call update(gradients, state, params)")
        updates, inner_state = inner.update(masked(updates, state.masks), state.inner, params, **extra)
        count = state.num_steps + 1
        masks = _updated_masks(pruning, optax.apply_updates(params, updates), state.masks, count)
        old, new = (flatten_dict(dict(tree), sep="/") for tree in (params, updates))
        for name, mask in masks.items():
            new[name] = jnp.where(mask, new[name], -old[name])
        return unflatten_dict(new, sep="/"), PruningState(count, masks, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def sparsity_by_layer(params: Params, kernels: Sequence[str] = (r"(^|/)kernel$",)) -> dict[str, float]:
    """Returns the fraction of zeros of each kernel, and of all kernels together as `total`."""
    leaves = flatten_dict(dict(params), sep="/")
    chosen = {
        name: np.asarray(leaf) == 0
        for name, leaf in leaves.items()
        if any(re.search(pattern, name) for pattern in kernels)
    }
    of_layer = {name: float(is_zero.mean()) for name, is_zero in chosen.items()}
    size = sum(is_zero.size for is_zero in chosen.values())
    total = sum(int(is_zero.sum()) for is_zero in chosen.values()) / size if size else 0.0
    return {**of_layer, "total": total}


def parse_n_of_m(text: str) -> tuple[int, int]:
    """Returns N and M of a text such as `2:4`.

    Raises:
      UserError: the text is not understood.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text) if isinstance(text, str) else None
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise UserError(f"n_of_m={text!r} is not understood; write N:M with 0 < N < M, such as 2:4")
    return int(match[1]), int(match[2])


def _updated_masks(pruning: MagnitudePruning, params: Params, masks: Masks, count: jax.Array) -> Masks:
    if not pruning._prunes_later:
        return masks
    steps = [pruning.start + number * pruning.every for number in range(pruning.num_prunings + 1)]
    table = jnp.asarray(np.stack([pruning._counts(params, step) for step in steps]))
    number = (count - pruning.start) // pruning.every
    is_due = (count >= pruning.start) & ((count - pruning.start) % pruning.every == 0)
    is_due &= number <= pruning.num_prunings
    counts = table[jnp.clip(number, 0, pruning.num_prunings)]
    kernels = kernels_of(params, list(masks))

    def pruned_masks() -> Masks:
        if pruning.n_of_m is not None:
            return pruning.masks(params, pruning.start)
        return smallest_removed(kernels, counts, masks)

    return jax.lax.cond(is_due, pruned_masks, lambda: masks)


def _is_schedule_free(node: object) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)
