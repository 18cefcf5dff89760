"""Distillation: a small model, the student, learns from the outputs of a trained model, the teacher.

With the logits z of the student and v of the teacher, p = softmax(v / T) and q = softmax(z / T), the loss is

    α · T² · KL(p ‖ q) + (1 − α) · L,

where L is the loss of the task on the true labels, with its penalties, and T is a temperature. The gradient
of KL falls as 1 / T², which the factor T² undoes. Source: Hinton et al. 2015, section 2. For sequences, KL
is of each token that counts (Kim & Rush 2016, section 3.1).

Beside the outputs, features inside both models can be matched (FitNets, Romero et al. 2015, eq. 3):

    β · mean (W h − g)²,

where h is a feature of the student and g one of the teacher. W is a linear map, which is learnt with the
student and thrown away afterwards. It is the identity where both have the same width.

The teacher reads the same examples as the student, after augmentation, as Beyer et al. 2022 recommend. Its
variables are the collection `constants` of the warm start; see `dl.freezing.CONSTANTS`. So they are in
neither the checkpoints nor the compiled program, and a run with another teacher is another run::

    Experiment(
        task=with_teacher(task.classification(student), teacher_task, Distillation(temperature=4, alpha=0.9)),
        warm_start=from_teacher(FromExperiment(teacher_experiment)),  # of a run: from_teacher(run.variables)
        …
    )

In evaluation the loss is that of the task, and the metrics are comparable with those of other runs. In
training there are two more metrics: `soft_loss`, KL in nats, and `agreement`, the share of examples or tokens
whose most probable class is that of the teacher (Stanton et al. 2021).

Shapes: B examples, C classes; … stands for the tokens of a sequence, or nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dl.errors import UserError
from dl.experiment import Experiment
from dl.freezing import CONSTANTS, without_constants
from dl.methods.features import Captured, capturing
from dl.metrics import Mean
from dl.ranges import NON_NEGATIVE, POSITIVE, PROBABILITY, check
from dl.task import Task
from dl.task.language import counted_targets
from dl.types import Aux, Batch, Key, ModelState, Params, Variables
from dl.warm_start import FromExperiment

TEACHER = "teacher"  # the name of its variables among the constants
MAPS = "distillation"  # the name of the linear maps of features among the parameters

Teacher = Task | Callable[[Batch], jax.Array]
"""A task whose variables the warm start gives, or a function from a batch to logits.

A function is for logits that are computed before, such as a feature of the data, where nothing is augmented.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a student learns from a teacher.

    Attributes:
      temperature: T. Large values show how probable the teacher finds the wrong classes.
      alpha: α, the weight of the teacher, in [0, 1].
      features: pairs of paths of modules, that of the student and that of the teacher, such as
        `(("Block_1", "Block_3"),)`. Their outputs are matched.
      feature_weight: β, the weight of the features.
      teacher: the experiment and the options of the teacher's run, if it is one. A run records them.
      teacher_experiment: the experiment of the teacher.
    """

    temperature: float = 4.0
    alpha: float = 0.9
    features: tuple[tuple[str, str], ...] = ()
    feature_weight: float = 1.0
    teacher: Mapping[str, Any] | None = None
    teacher_experiment: Experiment | None = dataclasses.field(
        default=None, repr=False, compare=False, metadata={"is_recorded": False}
    )
    is_of_training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check("temperature", self.temperature, POSITIVE)
        check("alpha", self.alpha, PROBABILITY)
        check("feature_weight", self.feature_weight, NON_NEGATIVE)
        for pair in self.features:
            if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(path, str) for path in pair):
                raise UserError(
                    f"features={self.features!r} must be pairs of paths, such as (('Block_1', 'Block_3'),)"
                )

    def changed(self, experiment: Experiment) -> Experiment:
        """Returns the experiment of the student with the teacher in its loss.

        Raises:
          UserError: the configuration has no experiment of a teacher.
        """
        if self.teacher_experiment is None:
            raise UserError("the distillation has no teacher; set teacher_experiment, or use with_teacher")
        task = with_teacher(experiment.task, self.teacher_experiment.task, self)
        return dataclasses.replace(experiment, task=task)

    def converted(self, variables: Variables) -> Variables:
        """Returns the variables of the teacher as the constants of the student, which is initialised."""
        return _as_constants(variables)

    def stored(self, variables: Variables) -> Variables:
        """Returns the variables without the linear maps of the features."""
        return _without_maps(variables)


def from_teacher(teacher: FromExperiment | Variables) -> FromExperiment | Variables:
    """Returns the warm start that gives a student its teacher.

    Args:
      teacher: variables of a trained model, such as `run.variables`, or an experiment that is trained first.
    """
    if isinstance(teacher, FromExperiment):
        convert = teacher.convert
        return dataclasses.replace(teacher, convert=lambda variables: _as_constants(convert(variables)))
    return _as_constants(teacher)


def with_teacher(task: Task, teacher: Teacher, distillation: Distillation) -> Task:
    """Returns the task of a student that also learns from the outputs, and features, of a teacher.

    Only the loss in training changes. A classifier, or a task that predicts tokens or their classes, can be
    distilled; both models have the same classes, in the same order.

    Args:
      task: the task of the student.
      teacher: the task of the teacher, whose variables are the constants of the warm start; see
        `from_teacher`. Or a function from a batch to logits.
      distillation: the weights and the features.

    Raises:
      UserError: the task has no classes; when the loss is traced, the outputs or the features do not fit.
    """
    kind = None if task.kind is None else task.kind.name
    if kind in ("regression", "multi_label", "reconstruction") or task.predict is None:
        raise UserError(
            f"a {'task without outputs' if task.kind is None else task.kind.words} cannot be distilled; only "
            "tasks that predict one class for each example or token can be"
        )
    student_paths = [student for student, _ in distillation.features]
    teacher_paths = [path for _, path in distillation.features]
    if not isinstance(teacher, Task) and teacher_paths:
        raise UserError("features need the task of the teacher; a function gives only its logits")

    def of_teacher(constants: Variables, batch: Batch) -> tuple[jax.Array, Captured]:
        if not isinstance(teacher, Task):
            return jax.lax.stop_gradient(jnp.asarray(teacher(batch))), {}
        assert teacher.predict is not None
        with capturing(teacher_paths, "teacher") as seen:
            logits = teacher.predict(constants[TEACHER], batch)
        return jax.lax.stop_gradient((logits, seen.features))

    def init(key: Key, batch: Batch) -> Variables:
        with capturing(student_paths, "student") as seen:
            variables = dict(task.init(key, batch))
        if not isinstance(teacher, Task):
            return variables
        shapes = jax.eval_shape(teacher.init, key, batch)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        constants = {TEACHER: without_constants(zeros)}
        _, of_its = jax.eval_shape(of_teacher, constants, batch)
        maps = _new_maps(jax.random.fold_in(key, 0), distillation, seen.features, of_its)
        params = {**variables["params"], **({MAPS: maps} if maps else {})}
        return {**variables, "params": params, CONSTANTS: constants}

    def loss(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
        own = _without_maps({"params": params})["params"]
        constants = model_state.get(CONSTANTS, {})
        model_state = without_constants(model_state)
        kept = {CONSTANTS: constants} if constants else {}
        if key is None:
            mean, aux = task.loss(own, model_state, batch, key)
            return mean, aux._replace(model_state={**aux.model_state, **kept})
        with capturing(student_paths, "student") as seen:
            hard, aux = task.loss(own, model_state, batch, key)
        teacher_logits, of_its = of_teacher(constants, batch)
        mask = counted_targets(task, batch)
        soft, agreement = _soft_loss(seen.outputs, teacher_logits, mask, distillation.temperature)
        total = hard.total * (1 - distillation.alpha)
        total += _weighted(soft.times(distillation.temperature**2), hard) * distillation.alpha
        for number, (path, its_path) in enumerate(distillation.features):
            mapped = _mapped(params.get(MAPS, {}).get(str(number)), seen.features[path])
            gap_B = jnp.square(mapped - of_its[its_path]).reshape(len(mapped), -1).mean(-1)
            total += _weighted(Mean.of(gap_B, batch["mask"]), hard) * distillation.feature_weight
        metrics = {**aux.metrics, "soft_loss": soft, "agreement": agreement}
        return Mean(total, hard.count, None, hard.better), Aux({**aux.model_state, **kept}, metrics)

    return task.with_uses(_of_own_variables)._replace(init=init, loss=loss)


def _soft_loss(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, temperature: float
) -> tuple[Mean, Mean]:
    """Returns KL(teacher ‖ student) at a temperature, and the share of equal predictions."""
    if student.shape != teacher.shape:
        raise UserError(
            f"the outputs of the student have shape {student.shape}, and those of the teacher "
            f"{teacher.shape}; both must have the same classes"
        )
    log_p, log_q = (jax.nn.log_softmax(jnp.float32(z) / temperature, -1) for z in (teacher, student))
    divergence = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    is_equal = student.argmax(-1) == teacher.argmax(-1)
    return Mean.of(divergence, mask, better="min"), Mean.of(is_equal, mask, better="max")


def _weighted(mean: Mean, like: Mean) -> jax.Array:
    """Returns the total of a mean over the count of another, so that both can be added."""
    return mean.total * (like.count / mean.divisor)


def _new_maps(key: Key, distillation: Distillation, of_student: Captured, of_teacher: Captured) -> Params:
    """Returns a linear map for each pair of features with different widths, by its number."""
    maps = {}
    for number, (path, its_path) in enumerate(distillation.features):
        one, other = of_student[path].shape, of_teacher[its_path].shape
        if one[:-1] != other[:-1]:
            raise UserError(
                f"{path} of the student has shape {one}, and {its_path} of the teacher {other}; choose "
                "modules that differ in their last axis at most"
            )
        if one[-1] != other[-1]:
            draw = jax.nn.initializers.lecun_normal()
            maps[str(number)] = draw(jax.random.fold_in(key, number), (one[-1], other[-1]))
    return maps


def _mapped(kernel: jax.Array | None, feature: jax.Array) -> jax.Array:
    return feature if kernel is None else jnp.matmul(feature, kernel.astype(feature.dtype))


def _as_constants(variables: Variables) -> Variables:
    return {CONSTANTS: {TEACHER: dict(variables)}}


def _without_maps(variables: Variables) -> dict[str, Any]:
    params = {name: leaf for name, leaf in variables["params"].items() if name != MAPS}
    return {**variables, "params": params}


def _of_own_variables(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(variables: Variables, *arguments: Any) -> Any:
        return function(_without_maps(without_constants(variables)), *arguments)

    return call
