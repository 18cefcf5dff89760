"""The batches of an experiment: of the training split and of each evaluation split."""

from collections.abc import Sequence

from jax.sharding import Mesh

from dl.data.pipeline import Batches
from dl.errors import UserError
from dl.experiment import Experiment
from dl.sharding import num_batch_shards

# A batch larger than the split is mostly padding, which is a mistake, except that a default batch size must
# do for a tiny set too.
MAX_PADDED_BATCH = 1024


def make_batches(
    experiment: Experiment, mesh: Mesh, seeds: Sequence[int] | None = None
) -> dict[str, Batches]:
    """Returns the batches of `train` and of each evaluation split, which share one shape.

    Args:
      experiment: says what data, and how large a batch.
      mesh: the devices.
      seeds: of the members that are trained at the same time, each in an order of its own.

    Raises:
      UserError: a split is empty, or a batch is larger than the training split.
    """
    data = experiment.data
    if experiment.batch_size > max(len(data.train), MAX_PADDED_BATCH):
        raise UserError(
            f"batch_size={experiment.batch_size} is larger than the training split of "
            f"{data.identity.name}, {len(data.train)} examples; choose at most that"
        )
    for name, source in {"train": data.train, **data.evaluations}.items():
        if not len(source):
            raise UserError(f"the {name} split of {data.identity.name} is empty; choose another data set")
    batches = {"train": Batches(data.train, experiment.batch_size, mesh, seed=seeds or experiment.seed)}
    largest = max((len(source) for source in data.evaluations.values()), default=0)
    shards = num_batch_shards(mesh)
    size = -(-min(experiment.eval_batch_size, largest) // shards) * shards
    for name, source in data.evaluations.items():
        batches[name] = Batches(source, size, mesh)
    return batches
