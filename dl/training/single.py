"""A single run: the counterpart of a `Population`, whose arrays do not have a population axis.

`Single` has the methods of `dl.training.population.Population`, which documents them, so that no caller needs
to distinguish the two.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding

from dl.data.pipeline import Batches
from dl.evaluation.intervals import Interval
from dl.evaluation.spread import Spread
from dl.runs.digest import tree_digest
from dl.sharding import Rules, batch_sharding, state_shardings
from dl.stopping import MetricsOfSplits
from dl.training.state import TrainState
from dl.training.step import StepConfig
from dl.types import Batch, Source, Variables

Update = Callable[[StepConfig, TrainState, Batch], Any]


IntervalsOfSplits = Mapping[str, Mapping[str, Any]]
"""By split and metric: lower bound, upper bound and method."""


@dataclasses.dataclass(frozen=True)
class Single:
    """A single run: arrays do not have a population axis. `Population` documents the methods."""

    def __len__(self) -> int:
        return 1

    def init_state(
        self, config: StepConfig, batch: Batch, seed: int, warm_start: Variables | None = None
    ) -> TrainState:
        return config.init(batch, seed, warm_start)

    def shardings(self, abstract_state: TrainState, mesh: Mesh, rules: Rules) -> TrainState:
        return state_shardings(abstract_state, mesh, rules)

    def batches(self, source: Source, batch_size: int, mesh: Mesh, seed: int) -> Batches:
        return Batches(source, batch_size, mesh, seed=seed)

    def batch_sharding(self, mesh: Mesh) -> NamedSharding:
        return batch_sharding(mesh)

    def for_devices(self, mesh: Mesh, trace_loss: Callable[[], Any]) -> "Single":
        return self

    def update(self, update: Update, config: StepConfig) -> Callable[[TrainState, Batch], Any]:
        return lambda state, batch: update(config, state, batch)

    def evaluate(self, fn: Callable[[Variables, Batch], Any]) -> Callable[[Variables, Batch], Any]:
        return fn

    def each(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return fn

    def settings(self) -> dict[str, Any]:
        return {}

    def in_words(self, seed: int) -> str:
        return f"seed {seed}"

    def interval(self, spread: Spread) -> tuple[Interval, str] | None:
        return spread.interval()

    @property
    def keeps_predictions(self) -> bool:
        return True

    def summarize(
        self,
        metrics: MetricsOfSplits,
        intervals: IntervalsOfSplits,
        shares: Mapping[str, bool],
        chosen: Sequence[Mapping[str, Any]],
        variables: Variables,
    ) -> dict[str, Any]:
        return {
            **({"best": dict(chosen[0])} if chosen else {}),
            "intervals": {
                split: {name: list(bounds) for name, (*bounds, _) in of_split.items()}
                for split, of_split in intervals.items()
            },
            "interval_methods": {
                split: {name: method for name, (*_, method) in of_split.items()}
                for split, of_split in intervals.items()
            },
            "params_digest": tree_digest(variables["params"]),
        }


SINGLE = Single()
