"""The batches of an experiment: of the training split and of each evaluation split."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from dl.data import checks
from dl.data.images.decoding import is_image
from dl.data.pipeline import Batches
from dl.data.source import ArraySource
from dl.errors import UserError
from dl.experiment import Experiment, stored_batch
from dl.labels import watched
from dl.losses import NOT_COUNTED
from dl.sharding import num_batch_shards
from dl.training.population import Population
from dl.training.single import SINGLE, Single
from dl.types import SEGMENT_IDS, Batch, OfInput, Source

# A batch that is larger than the split is mostly padding, which is a mistake. Smaller batches are allowed,
# because a default batch size must work for a tiny data set too.
MAX_PADDED_BATCH = 1024


def make_batches(
    experiment: Experiment, mesh: Mesh, population: Population | Single = SINGLE
) -> dict[str, Batches]:
    """Returns the batches of `train` and of each evaluation split, which share one shape.

    Args:
      experiment: the data and the batch size.
      mesh: the devices.
      population: the runs that are trained at the same time, each with its own batch order.

    Raises:
      UserError: a split is empty, a feature has a reserved name, an integer is too large for the
        device, or a batch is larger than the training split.
    """
    data = experiment.data
    if experiment.batch_size > max(len(data.train), MAX_PADDED_BATCH):
        raise UserError(
            f"batch_size={experiment.batch_size} is larger than the training split of "
            f"{data.identity.name}, {len(data.train)} examples; choose a batch size of at most "
            f"{len(data.train)}"
        )
    for name, source in {"train": data.train, **data.evaluations}.items():
        if not len(source):
            raise UserError(f"the {name} split of {data.identity.name} is empty; choose another data set")
        check_targets(experiment, name, source)
        checks.check_numbers(name, source)
    batches = {"train": population.batches(data.train, experiment.batch_size, mesh, experiment.seed)}
    largest = max((len(source) for source in data.evaluations.values()), default=0)
    shards = num_batch_shards(mesh)
    size = -(-min(experiment.eval_batch_size, largest) // shards) * shards
    for name, source in data.evaluations.items():
        batches[name] = Batches(source, size, mesh)
    return batches


def check_targets(experiment: Experiment, split: str, source: Source) -> None:
    """Checks the targets of a split against the kind of the task.

    Each of several labels must be 0 or 1. Tokens must be integers of at least 0, and labels of tokens of at
    least `NOT_COUNTED`. Targets that preprocessing or corruption makes are not checked, and neither are
    values of a source that is not in memory.

    Raises:
      UserError: the target is missing, or a value of it is not allowed.
    """
    kind = experiment.task.kind
    if kind is None or kind.name == "classification" or kind.corrupt is not None:
        return
    example = {
        name: jax.ShapeDtypeStruct((1, *leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype))
        for name, leaf in source.spec.items()
    }
    features: set[str] = set()
    is_stored = False

    def prepare(batch: Batch) -> None:
        nonlocal is_stored
        prepared = batch if experiment.preprocess is None else experiment.preprocess(batch)
        features.update(prepared)
        is_stored = kind.target in batch and prepared.get(kind.target) is batch[kind.target]

    one = {"index": jax.ShapeDtypeStruct((1,), "int32"), "mask": jax.ShapeDtypeStruct((1,), "bool")}
    jax.eval_shape(prepare, {**example, **one})
    if kind.target not in features and kind.target != experiment.task.input_name:
        raise UserError(
            f"the {split} split does not have the target feature {kind.target}; it has "
            f"{', '.join(source.spec)}; name one of them to the task, target_name="
        )
    if not is_stored or not (kind.reads_tokens or kind.name == "multi_label"):
        return
    is_tagging = kind.name == "tagging"
    dtype = np.dtype(source.spec[kind.target].dtype)
    if kind.reads_tokens and dtype.kind not in "iu":
        what = "labels" if is_tagging else "tokens"
        raise UserError(f"{kind.target} has the dtype {dtype}; {what} must be integers; use astype(np.int32)")
    if not isinstance(source, ArraySource):
        return
    values = source.arrays[kind.target]
    lowest = NOT_COUNTED if is_tagging else 0
    is_right = values >= lowest if kind.reads_tokens else (values == 0) | (values == 1)
    if not is_right.all():
        where = tuple(np.argwhere(~is_right)[0])
        expected = "tokens must be at least 0" if kind.reads_tokens else "labels must be 0 or 1"
        if is_tagging:
            expected = f"labels must be classes, or {NOT_COUNTED} for a token that does not count"
        raise UserError(
            f"{kind.target} of row {where[0]} of the {split} split is {values[where]}; {expected}"
        )


def check_labels(experiment: Experiment, batches: Mapping[str, Batches]) -> None:
    """Checks all class labels once, before training.

    The loss shows which feature holds the labels, and how many classes there are: it passes a feature of the
    batch to `losses.cross_entropy` or `metrics.accuracy`, as `task.classification` does.

    Raises:
      UserError: a label is not a class. The message names its split, row and value.
    """
    found: dict[str, int] = {}

    def evaluate(key: jax.Array, batch: dict[str, jax.Array]) -> None:
        variables = experiment.init(key, batch)
        if experiment.preprocess is not None:
            batch = experiment.preprocess(batch)
        state = {name: collection for name, collection in variables.items() if name != "params"}
        with watched() as seen:
            experiment.task.loss(variables.get("params", {}), state, batch, None)
        for labels, num_classes in seen:
            found.update({name: num_classes for name, feature in batch.items() if feature is labels})

    jax.eval_shape(evaluate, jax.random.key(0), stored_batch(experiment))
    for split, of_split in batches.items():
        of_split.num_classes = found
        for name, num_classes in found.items():
            checks.check_classes(split, of_split.source, name, num_classes)


def describe_input(experiment: Experiment) -> str:
    """Returns a notice about an integer input that is not scaled to [0, 1]; empty if there is none."""
    leaf, name = experiment.data.train.spec.get(experiment.task.input_name), experiment.task.input_name
    if not isinstance(experiment.preprocess, OfInput) or leaf is None or is_image(name, leaf):
        return ""
    if leaf.dtype not in (np.uint8, np.uint16) or SEGMENT_IDS in experiment.data.train.spec:
        return ""
    return (
        f"the input {name}, {leaf.dtype} of shape {leaf.shape}, is read as integers, not as pixels in "
        f"[0, 1]; pass preprocess=unit_range({name!r}) for pixels, or preprocess=None for integers"
    )
