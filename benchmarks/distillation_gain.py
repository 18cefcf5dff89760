"""Measures what a student gains from its teacher: the same student with it and without it, over seeds.

    python -m benchmarks.distillation_gain
    python -m benchmarks.distillation_gain --dataset fashion_mnist

Measured on MNIST with jax 0.10.2: 85.5 % alone and 88.4 % with its teacher (98.1 %), a gain of +2.8
percentage points (95 % interval +2.6 to +3.0) over 8 seeds. With --num-examples 2000 --width 32
--num-epochs 20 there is no gain, -0.0 (-0.2 to +0.1): so small a student, trained so briefly, underfits.

The teacher is a network of two wide layers that is trained on the whole training split. The student has one
narrow layer and sees only a part of the split, in both cases with all labels of that part. So what it gains
is what the teacher has learnt from examples that the student never sees, and from its width. The difference
of the test accuracies is paired over the seeds: both students of a seed begin with the same parameters and
read the same batches.
"""

import dataclasses

import numpy as np
import tyro

from dl import Experiment, optimizers, task, train
from dl.data import image_classification
from dl.data.part import part_of
from dl.evaluation.intervals import t_interval
from dl.methods.distillation import Distillation, from_teacher, with_teacher
from dl.models.mlp import MLP
from dl.runs.console import Console
from dl.training.population import consecutive


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
      dataset: name of a data set of images.
      num_examples: training examples of the student.
      width: hidden units of the student.
      teacher_width: hidden units of each of the two layers of the teacher.
      teacher_epochs: epochs of the teacher on the whole training split.
      num_epochs: epochs of the student on its examples.
      num_seeds: number of pairs of students.
      temperature: T of the distillation.
      alpha: weight of the teacher.
    """

    dataset: str = "auto"
    num_examples: int = 500
    width: int = 128
    teacher_width: int = 512
    teacher_epochs: int = 4
    num_epochs: int = 60
    num_seeds: int = 8
    temperature: float = 4.0
    alpha: float = 0.9


def network(data, num_classes, hidden, num_epochs, batch_size) -> Experiment:  # type: ignore[no-untyped-def]
    num_steps = data.steps(num_epochs, batch_size)
    model = MLP(hidden=hidden, num_classes=num_classes)
    schedule = optimizers.cosine(1e-3, num_steps, warmup_steps=num_steps // 10)
    return Experiment(
        data=data,
        task=task.classification(model),
        tx=optimizers.adamw(schedule, weight_decay=0.01),
        num_steps=num_steps,
        batch_size=batch_size,
        eval_every=num_steps,
    )


def main(options: Options) -> None:
    data, quiet = image_classification(options.dataset), Console(is_quiet=True)
    classes, wide = data.num_classes, (options.teacher_width,) * 2
    of_teacher = network(data, classes, wide, options.teacher_epochs, 128)
    teacher = train(of_teacher, console=quiet)
    print(f"teacher: test accuracy {teacher.metrics['test']['accuracy']!r}")
    part = part_of(data, options.num_examples / len(data.train))
    alone = network(part, classes, (options.width,), options.num_epochs, 50)
    how = Distillation(temperature=options.temperature, alpha=options.alpha)
    taught = dataclasses.replace(
        alone,
        task=with_teacher(alone.task, of_teacher.task, how),
        warm_start=from_teacher(teacher.variables),
    )
    scores = []
    for name, student in (("alone", alone), ("with its teacher", taught)):
        result = train(student, console=quiet, population=consecutive(0, options.num_seeds))
        of_seeds = [member["metrics"]["test"]["accuracy"] for member in result.record["members"]]
        scores.append(np.array(of_seeds))
        print(f"student {name}: {np.mean(of_seeds):.4f}, by seed {np.round(of_seeds, 4).tolist()}")
    gain = scores[1] - scores[0]
    interval = t_interval(gain)
    print(
        f"gain: {100 * gain.mean():+.2f} percentage points, 95 % interval {100 * interval.low:+.2f} to "
        f"{100 * interval.high:+.2f} over {len(gain)} seeds"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
