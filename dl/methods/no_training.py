"""No training: a model that is converted and evaluated as it is, such as one that is only quantised.

The run has one step, in which the model is evaluated and nothing is updated. So it has a checkpoint, metrics
with intervals and predictions like every other run.
"""

import dataclasses
from typing import ClassVar

import optax

from dl.experiment import Experiment
from dl.metrics import Mean
from dl.types import Aux, Batch, Key, ModelState, Params, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoTraining:
    """The end of a list of compressions after which nothing is trained."""

    is_of_training: ClassVar[bool] = True

    def changed(self, experiment: Experiment) -> Experiment:
        """Returns the experiment with one step that changes neither parameters nor statistics."""
        loss_fn = experiment.task.loss

        def loss(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
            return loss_fn(params, model_state, batch, None)  # as in evaluation

        return dataclasses.replace(
            experiment,
            task=experiment.task._replace(loss=loss),
            tx=optax.set_to_zero(),
            num_steps=1,
            eval_every=1,
            augment=experiment.augment if _is_corrupted(experiment) else None,
            frozen=(),
            keep_best=None,
            stop_at=None,
            ema_decay=None,
            loss_scale=None,
        )

    def converted(self, variables: Variables) -> Variables:
        """Returns the variables unchanged."""
        return variables


def _is_corrupted(experiment: Experiment) -> bool:
    """Whether the task learns from corrupted examples, so that an experiment of it has `augment`."""
    kind = experiment.task.kind
    return kind is not None and kind.corrupt is not None
