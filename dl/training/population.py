"""Several runs of one experiment in one compiled program: other seeds, other optimizer hyperparameters.

Run k of a `Population` of M runs computes the same as a separate run with its seed and its options. State,
training batch and metrics have a leading axis of size M. Only this file handles the axis: `single.Single`, a
single run without it, has the same methods, so no caller needs to distinguish them.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dl.data.pipeline import Batches, rows_of_step
from dl.errors import UserError
from dl.evaluation.intervals import Interval, t_interval
from dl.evaluation.spread import Spread
from dl.flops import has_convolution
from dl.ranges import Range, check_count
from dl.runs.digest import tree_digest
from dl.sharding import (
    BATCH_AXES,
    Rules,
    format_mesh,
    num_batch_shards,
)
from dl.stopping import MetricsOfSplits
from dl.training.single import SINGLE, IntervalsOfSplits, Single, Update
from dl.training.state import TrainState
from dl.training.step import StepConfig
from dl.types import Batch, Source, Variables

MAX_SIZE = 2**16  # the batch orders of so many runs still fit into memory

Traced = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Population:
    """The runs that are trained at the same time.

    Attributes:
      seeds: one for each run.
      options: the values of each option, one for each run. Only the optimizer may depend on these options.
      tx_of: returns the optimizer of a run for its options, which are traced scalars.
      is_unrolled: whether runs are computed one by one instead of vectorized; see `for_devices`.
    """

    seeds: tuple[int, ...]
    options: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    tx_of: Callable[[Traced], optax.GradientTransformation] | None = None
    is_unrolled: bool = False

    def __post_init__(self) -> None:
        for name, values in self.options.items():
            if len(values) != len(self.seeds):
                raise ValueError(
                    f"{name} has {len(values)} values for {len(self.seeds)} runs; give one value for each run"
                )
        if self.options and self.tx_of is None:
            raise ValueError(
                "the runs of the population differ in their options, but tx_of is None; pass tx_of"
            )

    def __len__(self) -> int:
        return len(self.seeds)

    def describe(self, k: int) -> dict[str, Any]:
        """Returns the seed and the options of run k."""
        return {"seed": self.seeds[k], **{name: values[k] for name, values in self.options.items()}}

    def settings(self) -> dict[str, Any]:
        """Returns what run.json records about the population."""
        return {"seeds": list(self.seeds), "member_options": dict(self.options)}

    def in_words(self, seed: int) -> str:
        """Returns text about how the runs differ; `seed` is the seed of the experiment."""
        return f"{len(self)} runs at the same time that differ in {', '.join(['seed', *self.options])}"

    def tx(self, traced: Traced, default: optax.GradientTransformation) -> optax.GradientTransformation:
        """Returns the optimizer of one run; `default` if the runs differ only in their seeds.

        Raises:
          UserError: one of the options changes more than a number in the optimizer.
        """
        if self.tx_of is None:
            return default
        try:
            return self.tx_of(traced)
        except (jax.errors.ConcretizationTypeError, TypeError) as error:
            raise UserError(
                f"{', '.join(self.options)} cannot differ between the runs of one program: more than "
                f"the arithmetic of the optimizer depends on it ({str(error).splitlines()[0]}); train the "
                "runs "
                "separately"
            ) from error

    # Methods that build the program.

    def for_devices(self, mesh: Mesh, trace_loss: Callable[[], Any]) -> "Population":
        """Returns the population with the faster of vectorized and unrolled computation on these devices.

        Vectorized convolutions become a grouped convolution, which XLA computes on a CPU up to 6 times slower
        than the separate convolutions. Several devices share the runs in either case.

        Args:
          mesh: the devices.
          trace_loss: returns the traced loss of one run.
        """
        if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
            return self
        return dataclasses.replace(self, is_unrolled=has_convolution(trace_loss()))

    def each(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of the arrays of one run as a vectorized function of the arrays of all runs."""
        return jax.vmap(fn)

    def init_state(
        self, config: StepConfig, batch: Batch, seed: int, warm_start: Variables | None = None
    ) -> TrainState:
        """Returns the state of each run before its first step; all have the same `warm_start`."""

        def init_one(seed: jax.Array, options: Traced) -> TrainState:
            return self._config(config, options).init(batch, seed, warm_start)

        return jax.vmap(init_one)(jnp.asarray(self.seeds, jnp.uint32), self._traced)

    def update(self, update: Update, config: StepConfig) -> Callable[[TrainState, Batch], Any]:
        """Returns `update` as a function of the states and the batches of all runs."""

        def update_one(state: TrainState, batch: Batch, options: Traced) -> Any:
            return update(self._config(config, options), state, batch)

        return lambda state, batch: self._apart(update_one)(state, batch, self._traced)

    def evaluate(self, fn: Callable[[Variables, Batch], Any]) -> Callable[[Variables, Batch], Any]:
        """Returns `fn` as a function of the variables of all runs, which share the batch."""
        return lambda variables, batch: self._apart(lambda one: fn(one, batch))(variables)

    @property
    def _traced(self) -> Traced:
        return {name: jnp.asarray(values, jnp.float32) for name, values in self.options.items()}

    def _config(self, config: StepConfig, options: Traced) -> StepConfig:
        return dataclasses.replace(config, tx=self.tx(options, config.tx))

    def _apart(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `fn` over all runs: vectorized, or one run after the other where that is faster."""
        if not self.is_unrolled:
            return jax.vmap(fn)

        def unrolled(*args: Any) -> Any:
            results = [fn(*jax.tree.map(operator.itemgetter(k), args)) for k in range(len(self))]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

        return unrolled

    # Methods about shardings and batches.

    def shardings(self, abstract_state: TrainState, mesh: Mesh, rules: Rules) -> TrainState:
        """Returns a sharding for each leaf of the state.

        Raises:
          UserError: the mesh splits parameters.
        """
        if num_batch_shards(mesh) != mesh.shape["data"] or mesh.size != mesh.shape["data"]:
            raise UserError(
                f"mesh {format_mesh(mesh.shape)} shards parameters, but a run of {len(self)} seeds is not "
                "sharded; use --mesh data=N"
            )
        spec = PartitionSpec(BATCH_AXES) if self._is_spread(mesh) else PartitionSpec()
        return jax.tree.map(lambda _: NamedSharding(mesh, spec), abstract_state)

    def batch_sharding(self, mesh: Mesh) -> NamedSharding:
        """Returns the sharding of a training batch.

        It splits the axis of the runs if the devices divide it, so that no device waits for another.
        Otherwise it splits the axis of the examples.
        """
        if self._is_spread(mesh):
            return NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def batches(self, source: Source, batch_size: int, mesh: Mesh, seed: int) -> Batches:
        """Returns training batches. Each run has the batch order of its seed."""
        return _BatchesOfAll(self.seeds, source, batch_size, mesh, self.batch_sharding(mesh))

    def _is_spread(self, mesh: Mesh) -> bool:
        """Whether the devices share the runs, rather than the examples of each run."""
        return len(self) % num_batch_shards(mesh) == 0

    # Methods about the results.

    def interval(self, spread: Spread) -> tuple[Interval, str] | None:
        """Returns the interval of a metric over its examples, which only a single run reports."""
        return None

    @property
    def keeps_predictions(self) -> bool:
        """Whether predictions are kept, which only a single run does."""
        return False

    def summarize(
        self,
        metrics: MetricsOfSplits,
        intervals: IntervalsOfSplits,
        shares: Mapping[str, bool],
        chosen: Sequence[Mapping[str, Any]],
        variables: Variables,
    ) -> dict[str, Any]:
        """Returns what result.json says about the runs: intervals, digests and the results of each run.

        Args:
          metrics: the values by split and metric, shape (M,).
          intervals: bounds and method of the intervals over examples, by split and metric, see `interval`.
          shares: for each metric, whether it is a proportion in [0, 1].
          chosen: the best evaluation of each run; empty if none is kept.
          variables: the variables that the runs ended with.
        """
        host = jax.device_get(variables["params"])
        return {
            "intervals": {
                split: {
                    name: list(t_interval(value, is_share=shares.get(name, False))[1:])
                    for name, value in of_split.items()
                }
                for split, of_split in metrics.items()
            },
            "interval_methods": {
                split: dict.fromkeys(of_split, f"Student, over {len(self)} seeds")
                for split, of_split in metrics.items()
            },
            "members": [
                {
                    **self.describe(k),
                    "metrics": {
                        split: {name: float(np.asarray(value)[k]) for name, value in of_split.items()}
                        for split, of_split in metrics.items()
                    },
                    **({"best": chosen[k]} if chosen else {}),
                    "params_digest": tree_digest(jax.tree.map(lambda leaf, k=k: leaf[k], host)),
                }
                for k in range(len(self))
            ],
            "params_digest": tree_digest(host),
        }


class _BatchesOfAll(Batches):
    """The batches of all runs along a leading axis. Each run has the batch order of its seed."""

    def __init__(
        self,
        seeds: Sequence[int],
        source: Source,
        batch_size: int,
        mesh: Mesh,
        sharding: NamedSharding,
    ):
        super().__init__(source, batch_size, mesh, sharding=sharding, leading=(len(seeds),))
        self._seeds = seeds

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the example indices of a step (int32), and which are not padding; shapes (M, B)."""
        of_runs = [
            rows_of_step(len(self.source), self.batch_size, seed, step, self.buckets) for seed in self._seeds
        ]
        index_MB, mask_MB = (np.stack(arrays) for arrays in zip(*of_runs, strict=True))
        return index_MB, mask_MB


def consecutive(seed: int, num_seeds: int) -> Population | Single:
    """Returns a population with the seeds seed, seed + 1, …; for one seed a `Single`.

    Raises:
      UserError: there are more seeds than one program can hold, or a seed is out of range.
    """
    check_count("num_seeds", num_seeds, Range(1, min(MAX_SIZE, 2**32 - seed)))
    return Population(tuple(range(seed, seed + num_seeds))) if num_seeds > 1 else SINGLE
