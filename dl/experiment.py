"""What an experiment is: the objects that define a training run."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import optax

from dl.data.images.decoding import OfInput, to_unit_range
from dl.data.splits import Splits
from dl.freezing import Patterns
from dl.gradients import mean_gradient
from dl.kinds import kind_of
from dl.precision import LossScale
from dl.ranges import BELOW_ONE, STEPS, Range, check, check_count
from dl.sharding import Rules
from dl.stopping import KeepBest, Target
from dl.training.step import Augment, Preprocess
from dl.types import Batch, GradFn, Key, LossFn, Variables
from dl.warm_start import Initial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a training run: real objects, nothing to look up.

    Attributes:
      data: the training split and the splits to evaluate on.
      loss_fn: the mean loss and its metrics, for example `losses.classification(model)`.
      tx: the optimizer, for example `optimizers.adamw(...)`.
      num_steps: updates in the whole run.
      batch_size: examples of an update, over all devices.
      model: initialised as `model.init(key, batch[input_name])`.
      input_name: the feature that the model reads.
      init_fn: from a key and a batch to variables, where `model` and `input_name` do not say it.
      predict_fn: from variables and a preprocessed batch to the outputs, likewise.
      initial: variables to start from, such as a pretrained backbone; what they lack is initialised.
      frozen: patterns; the parameters in whose paths one is found stay as they are, and so do the
        statistics of their batch norms.
      preprocess: from a stored batch to the model's input, on the device, in training and evaluation;
        by default the input's pixels become floats in [0, 1]; no other feature changes, see `data.images`.
        The tokens of a language model stay as they are.
      augment: from a key and one preprocessed example to an example; training only.
      grad_fn: how the loss becomes a gradient.
      keep_best: end with the variables of the best evaluation, and stop early where it says so.
      target: stop as soon as a metric is good enough.
      ema_decay: keep a moving average of the parameters and evaluate that; in [0, 1). Batch statistics are
        not averaged: the average is evaluated with those that the raw parameters gathered.
      loss_scale: the initial loss scale, for float16.
      sharding_rules: pairs of a regular expression on a parameter's path and its partition.
      seed: of parameters, order, dropout and augmentation.
      eval_batch_size: rounded up to a multiple of the devices; a split's last batch is padded.
      report_every: steps between evaluations; by default once an epoch.
      report_start: evaluate before the first step too.
    """

    data: Splits
    loss_fn: LossFn
    tx: optax.GradientTransformation
    num_steps: int
    batch_size: int
    model: nn.Module | None = None
    input_name: str = "image"
    init_fn: Callable[[Key, Batch], Variables] | None = None
    predict_fn: Callable[[Variables, Batch], jax.Array] | None = None
    initial: Initial | None = None
    frozen: Patterns = ()
    preprocess: Preprocess | None = to_unit_range
    augment: Augment | None = None
    grad_fn: GradFn = mean_gradient
    keep_best: KeepBest | None = None
    target: Target | None = None
    ema_decay: float | None = None
    loss_scale: LossScale | None = None
    sharding_rules: Rules = ()
    seed: int = 0
    eval_batch_size: int = 500
    report_every: int | None = None
    report_start: bool = False

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "eval_batch_size", "report_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), STEPS)
        check_count("seed", self.seed, Range(0, 2**32 - 1))
        if self.ema_decay is not None:
            check("ema_decay", self.ema_decay, BELOW_ONE)
        if self.model is None and self.init_fn is None:
            raise ValueError("an Experiment needs a model or an init_fn")
        kind = kind_of(self.loss_fn)
        if kind is not None and kind.reads_tokens and self.preprocess is to_unit_range:
            object.__setattr__(self, "preprocess", None)  # numbers of tokens are no pixels
        if isinstance(self.preprocess, OfInput):
            of_input = dataclasses.replace(self.preprocess, name=self.input_name)
            object.__setattr__(self, "preprocess", of_input)

    def init(self, key: Key, batch: Batch) -> Variables:
        """Returns the model's initial variables for a stored batch."""
        if self.preprocess is not None:
            batch = self.preprocess(batch)
        if self.init_fn is not None:
            return self.init_fn(key, batch)
        assert self.model is not None
        return self.model.init(key, batch[self.input_name])
