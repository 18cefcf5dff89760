"""What an experiment is: the objects that define a training run."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
import optax

from dl.errors import UserError
from dl.freezing import Patterns, without_constants
from dl.gradients import mean_gradient
from dl.precision import LossScale
from dl.ranges import BELOW_ONE, STEPS, Range, check, check_count
from dl.sharding import Rules
from dl.stopping import KeepBest, StopAt
from dl.system.onednn import use_onednn
from dl.task import Task
from dl.types import Augment, Baseline, Batch, GradFn, Key, OfInput, Preprocess, Splits, Variables
from dl.warm_start import WarmStart


def as_the_data_state(batch: Batch) -> Batch:
    """Marks the default of `Experiment.preprocess`: the preprocessing that the data state. Never called."""
    raise AssertionError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a training run, as Python objects.

    Attributes:
      data: the training split and the splits to evaluate on.
      task: the task that is learnt, for example `task.classification(model)`.
      tx: the optimizer, for example `optimizers.adamw(...)`.
      num_steps: number of updates in the whole run.
      batch_size: number of examples in each update, over all devices.
      warm_start: variables to start from, such as a pretrained backbone. Variables that are not given are
        initialised.
      frozen: regular expressions. Parameters whose path matches one are not updated, and neither are the
        running statistics of their batch norms.
      preprocess: function from a stored batch to the model's input. It runs on the device, in training and
        in evaluation. By default it is the preprocessing that the data state: the pixels of an image become
        floats in [0, 1], and no other feature changes. The tokens of a language model are not changed.
      augment: function from a random key and one preprocessed example to an example. Used in training only.
      grad_fn: function that turns the loss into a gradient.
      reduction: how gradients are added over devices. "fast": in any order. "exact": in a fixed order, so
        that the parameters have the same bits for any number of devices; see `dl.training.exact`.
      keep_best: rule by which the run ends with the variables of its best evaluation. It can also stop the
        run early.
      stop_at: rule that stops the run as soon as a metric reaches a value.
      ema_decay: decay of an exponential moving average of the parameters, in [0, 1). The averaged parameters
        are evaluated. Batch statistics are not averaged: those of the raw parameters are used.
      loss_scale: initial loss scale, for float16.
      sharding_rules: how parameters are split over devices: pairs of a regular expression for a parameter's
        path and its partition; see `dl.sharding.state_shardings`. `None` means the rules of the task.
      baseline: cheap method that the network must beat on the same data, for example
        `evaluation.baselines.NGram()`. It is computed once, at the end of the run, and stands beside the
        network in every result.
      sample_prompts: prompts after which the model writes a text at each evaluation, which stand in
        samples.jsonl and in the report; or the number of prompts, which are then beginnings of examples. They
        are for a single seed of a model that can generate.
      seed: random seed of the initialisation, the batch order, dropout and augmentation.
      eval_batch_size: number of examples in each batch of an evaluation. It is rounded up to a multiple of
        the number of devices. The last batch of a split is padded.
      eval_every: number of steps between evaluations. Default: one epoch.
      eval_at_start: whether to evaluate before the first step too.
    """

    data: Splits
    task: Task
    tx: optax.GradientTransformation
    num_steps: int
    batch_size: int
    warm_start: WarmStart | None = None
    frozen: Patterns = ()
    preprocess: Preprocess | None = as_the_data_state
    augment: Augment | None = None
    grad_fn: GradFn = mean_gradient
    reduction: Literal["fast", "exact"] = "fast"
    keep_best: KeepBest | None = None
    stop_at: StopAt | None = None
    ema_decay: float | None = None
    loss_scale: LossScale | None = None
    sharding_rules: Rules | None = None
    baseline: Baseline | None = None
    sample_prompts: Sequence[str] | int = ()
    seed: int = 0
    eval_batch_size: int = 500
    eval_every: int | None = None
    eval_at_start: bool = False

    def __post_init__(self) -> None:
        use_onednn()  # before anything is compiled, so that all programs of an experiment have the same bits
        for name in ("num_steps", "batch_size", "eval_batch_size", "eval_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), STEPS)
        check_count("seed", self.seed, Range(0, 2**32 - 1))
        if isinstance(self.sample_prompts, str):
            object.__setattr__(self, "sample_prompts", (self.sample_prompts,))
        elif isinstance(self.sample_prompts, int):
            check_count("sample_prompts", self.sample_prompts, Range(0, 100))
        if self.ema_decay is not None:
            check("ema_decay", self.ema_decay, BELOW_ONE)
        kind = self.task.kind
        if self.preprocess is as_the_data_state:
            is_tokens = kind is not None and kind.reads_tokens  # token ids are not pixels
            object.__setattr__(self, "preprocess", None if is_tokens else self.data.preprocess)
        if kind is not None and kind.corrupt is not None and self.augment is None:
            raise UserError(
                f"a {kind.words} learns from corrupted examples, and augment is None; set augment of the "
                "experiment to the function that the task got as corrupt"
            )
        if isinstance(self.preprocess, OfInput):
            object.__setattr__(self, "preprocess", self.preprocess.of(self.task.input_name))

    def init(self, key: Key, batch: Batch) -> Variables:
        """Returns the task's initial variables for a stored batch."""
        if self.preprocess is not None:
            batch = self.preprocess(batch)
        return self.task.init(key, batch)


def stored_batch(experiment: Experiment, size: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a training batch before preprocessing; nothing is read.

    Args:
      experiment: the data and the batch size.
      size: the number of examples. Default: the batch size.
    """
    size = experiment.batch_size if size is None else size
    batch = {
        name: jax.ShapeDtypeStruct((size, *leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype))
        for name, leaf in experiment.data.train.spec.items()
    }
    return batch | {
        "index": jax.ShapeDtypeStruct((size,), np.int32),
        "mask": jax.ShapeDtypeStruct((size,), np.bool_),
    }


def variable_shapes(experiment: Experiment) -> Variables:
    """Returns the shapes and dtypes of the initial variables but constants; nothing is allocated."""
    shapes = jax.eval_shape(experiment.init, jax.random.key(0), stored_batch(experiment, 1))
    return without_constants(shapes)
