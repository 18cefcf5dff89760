"""Checks that an experiment can overfit ONE batch, as a correct model, loss and optimizer do.

Source: Karpathy 2019, "A recipe for training neural networks", "overfit one batch". An experiment that fails
here fails in training too, but here the failure shows in seconds.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dl.data.pipeline import Batches
from dl.diagnostics.attainable import Attainable, attainable
from dl.errors import UserError
from dl.experiment import Experiment
from dl.metrics import Mean
from dl.ranges import STEPS, Range, check, check_count
from dl.sharding import make_mesh, path_name
from dl.training.memory import check_fits
from dl.training.state import TrainState, root_key
from dl.training.step import StepConfig, update_state, with_inputs
from dl.types import Aux, Batch, Key, LossFn, Metrics, ModelState, Params

Update = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

LEFT = 0.05  # fraction of the possible decrease of the loss that may remain
# A narrow layer cannot memorise examples, and the token after a beginning that several sequences share cannot
# be predicted. The numbers are empirical: small correct models left 26 % and 16 % after 300 steps, and models
# that ignore their input leave 100 %.
LEFT_BY_KIND = {"reconstruction": 0.5, "language_model": 0.2}
# The loss has stalled if its last tenth is at least this part of the tenth before, in the mean.
STALLED = 0.99


@dataclasses.dataclass(frozen=True)
class Overfit:
    """The result of training on one batch.

    Attributes:
      losses: the loss before each update; the last one ended the check.
      threshold: the loss that the training must go below.
      num_examples: number of examples in the batch.
      unmoved: the paths of parameters that did not change, bit for bit.
      num_parameters: number of parameter arrays.
      num_contradictions: number of examples that equal another one of the batch but have another label.
      why: how the threshold was chosen, as text; empty if it was given.
    """

    losses: Sequence[float]
    threshold: float
    num_examples: int
    unmoved: Sequence[str]
    num_parameters: int
    num_contradictions: int
    why: str = ""

    @property
    def has_passed(self) -> bool:
        return self.losses[-1] < self.threshold

    @property
    def causes(self) -> list[str]:
        """The three most likely reasons for a failure: first those that were observed, then common ones."""
        seen = []
        if not math.isfinite(self.losses[-1]):
            seen.append(
                "the loss is not finite: lower the learning rate, or run the experiment with --debug-nans"
            )
        if self.unmoved:
            seen.append(
                f"no gradient reaches {len(self.unmoved)} of {self.num_parameters} parameters, such as "
                f"{self.unmoved[0]}: look for dead units, a stop_gradient or an output that is not used"
            )
        if self.num_contradictions:
            seen.append(
                f"{self.num_contradictions} examples equal another example with another label, and no "
                "model can "
                "fit both: check how inputs and labels are read"
            )
        if self._is_falling:
            seen.append("the loss was still falling: use more --steps, or a higher learning rate")
        common = [
            "the learning rate is too high or too low: `python -m dl lr-find` shows the range",
            "regularisation limits the loss: switch label smoothing, mixup or weight decay off and try again",
            "the model is too small, its inputs have a wrong scale, or the loss compares the wrong arrays",
        ]
        return [*seen, *common][:3]

    @property
    def _is_falling(self) -> bool:
        tenth = len(self.losses) // 10
        if not tenth:
            return False
        last, before = np.mean(self.losses[-tenth:]), np.mean(self.losses[-2 * tenth : -tenth])
        return bool(last < STALLED * before)


def overfit(
    experiment: Experiment,
    num_steps: int = 300,
    threshold: float | None = None,
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> Overfit:
    """Trains only on the first training batch, until its loss is below the threshold.

    Augmentation is off, and dropout draws the same mask in every step, so that the function to fit is fixed.
    Loss, gradient, optimizer, schedule and weight decay are those of the experiment. The training runs on the
    first device, and nothing is saved.

    Args:
      experiment: the experiment. Its metric `loss` is compared with the threshold, or else the loss that it
        minimises.
      num_steps: largest number of updates.
      threshold: the loss that the training must go below, in the unit of the loss. `None` means the loss at
        which 5 % of the possible decrease remains: from the best outputs that ignore the input to the best
        outputs, for this batch and this loss (see `attainable`). An autoencoder may leave 50 %, a language
        model 20 %.
      watch: called with the number of updates and the loss.

    Raises:
      UserError: the lowest value of the loss is not known, and no threshold is given.
    """
    if threshold is not None:
        check("threshold", threshold, Range())
    num_steps = check_count("num_steps", num_steps, STEPS)
    batch = first_batch(experiment)
    loss_fn = with_inputs(experiment.task.loss, experiment.preprocess)
    key = root_key(experiment.seed)

    def same_draws(params: Params, model_state: ModelState, batch: Batch, _: Key | None) -> tuple[Mean, Aux]:
        return loss_fn(params, model_state, batch, key)

    state, update = make_update(experiment, same_draws, experiment.tx, batch)
    initial = jax.device_get(state.params)
    why = ""
    kind = experiment.task.kind
    left = LEFT if kind is None else LEFT_BY_KIND.get(kind.name, LEFT)
    known = None if threshold is not None else attainable(_loss_of_batch(same_draws, state, batch))
    losses: list[float] = []
    for step in range(num_steps + 1):
        state, metrics = update(state, batch)
        losses.append(judged_loss(metrics))
        watch(step, losses[-1])
        if threshold is None:
            threshold, why = _threshold(losses[0], known, left)
        if losses[-1] < threshold or not math.isfinite(losses[-1]):
            break
    assert threshold is not None
    leaves = jax.tree_util.tree_leaves_with_path(initial)
    final = jax.tree.leaves(jax.device_get(state.params))
    return Overfit(
        losses,
        threshold,
        int(batch["mask"].sum()),
        [path_name(path) for (path, old), new in zip(leaves, final, strict=True) if np.array_equal(old, new)],
        len(leaves),
        _num_contradictions(batch, experiment.task.input_name),
        why,
    )


def _loss_of_batch(
    loss_fn: LossFn, state: TrainState, batch: Batch
) -> Callable[[], tuple[jax.Array, jax.Array]]:
    """Returns a function that computes the minimised and the reported loss at the parameters of the state."""
    # Updates donate their arrays.
    params, model_state = jax.tree.map(jnp.copy, (state.params, state.model_state))

    def loss() -> tuple[jax.Array, jax.Array]:
        minimised, aux = loss_fn(params, model_state, batch, None)
        return minimised.compute(), aux.metrics.get("loss", minimised).compute()

    return loss


def _threshold(first: float, known: Attainable | None, left: float) -> tuple[float, str]:
    """Returns the threshold of the loss, and text about how it was chosen."""
    if not math.isfinite(first):
        return 0.0, "the loss is not finite at the start"
    part = f"{100 * left:g} %"
    best, constant = (None, None) if known is None else (known.best, known.constant)
    if best is None and constant is not None:
        threshold = constant - left * max(abs(constant), abs(first - constant))
        return threshold, f"{part} better than the best outputs that ignore the input, {constant:.3g}"
    if best is None and not first > 0:
        raise UserError(f"the loss starts at {first:g}, and its lowest value is not known; add --threshold X")
    best = best or 0.0
    start, what = first, "the start"
    if constant is not None and constant - best > 1e-6 * (first - best):
        start, what = constant, "the best outputs that ignore the input"
    # The threshold is slightly above the best loss, even if nothing can be learned.
    threshold = best + max(left * (start - best), 1e-6 * max(abs(best), abs(first)))
    return threshold, f"{part} of the way from the best outputs, {best:.3g}, to {what}, {start:.3g}"


def first_batch(experiment: Experiment) -> Batch:
    """Returns the batch of the first training step, on the first device."""
    return Batches(
        experiment.data.train, experiment.batch_size, make_mesh({"data": 1}), seed=experiment.seed
    )[0]


def make_update(
    experiment: Experiment, loss_fn: LossFn, tx: optax.GradientTransformation, batch: Batch
) -> tuple[TrainState, Update]:
    """Returns the state before the first step, and the compiled update of an experiment on one device.

    Args:
      experiment: the experiment that defines everything else.
      loss_fn: the loss of a stored batch, in place of that of the experiment.
      tx: the optimizer, in place of that of the experiment.
      batch: a batch with the shapes of all batches.
    """

    def judged(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
        loss, aux = loss_fn(params, model_state, batch, key)
        return loss, Aux(aux.model_state, {"loss": loss, **aux.metrics})

    config = dataclasses.replace(
        StepConfig.of(experiment), loss_fn=judged, tx=tx, ema_decay=None, keeps_best=False
    )

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return update_state(config, state, batch)

    def init(batch: Batch) -> TrainState:
        return config.init(batch, experiment.seed)

    check_fits(jax.eval_shape(init, batch), jax.devices()[:1])
    return init(batch), jax.jit(update, donate_argnums=0)


def judged_loss(metrics: Mapping[str, Mean]) -> float:
    """Returns the loss of a step of `make_update`: the metric `loss`, or else the minimised loss."""
    return float(metrics["loss"].compute())


def _num_contradictions(batch: Batch, input_name: str) -> int:
    if input_name not in batch or "label" not in batch:
        return 0
    inputs, labels, mask = (np.asarray(batch[name]) for name in (input_name, "label", "mask"))
    seen: dict[bytes, set[bytes]] = {}
    for example, label in zip(inputs[mask], labels[mask], strict=True):
        seen.setdefault(example.tobytes(), set()).add(label.tobytes())
    return sum(len(different) - 1 for different in seen.values())
