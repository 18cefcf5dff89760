"""Batches on the devices from a source. The examples of step s are a function of the seed and s.

The order is never saved: a run that resumes at step s reads the batch of step s.
"""

import functools
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dl.data.buckets import Buckets, buckets_of
from dl.data.checks import check_are_classes, check_fits, check_names, check_spec, is_read_at_once
from dl.data.epoch_orders import EpochOrders
from dl.data.source import is_resident
from dl.data.steps import steps_per_epoch
from dl.errors import UserError
from dl.sharding import batch_sharding, num_parts, put, replicated
from dl.types import Batch, Source

MAX_RESIDENT_BYTES = 2 * 2**30  # on each device; larger sources stream from the host
PREFETCH_STEPS = 4
MAX_PREFETCH_BYTES = 128 * 2**20  # of all batches that are read ahead, but at least one is
_ORDERS = EpochOrders(max_bytes=256 * 2**20)  # 64 seeds that train at the same time, of 10^6 examples


class Batches:
    """The batches of a source by step. The last batch of each epoch is padded and masked.

    Every example occurs exactly once in an epoch. Padding repeats examples of the same epoch, so that it has
    ordinary values. `mask` is False on padding. If the source has buckets (`dl.data.buckets`), the batches of
    a random order have several lengths.

    Attributes:
      source: the source of the examples.
      batch_size: number of examples in each batch, over all devices.
      seed: random seed of the order. `None` means the order of the source.
      steps_per_epoch: number of steps in one epoch.
      buckets: which examples are in one batch, and the length of each batch; `None` if all have one length.
      num_classes: number of classes by name of a feature that holds labels. It is used to check the labels of
        a source that is too large to be checked when it is opened.
      examples: all examples on each device; `None` if they are read from the host.

    Raises:
      UserError: the source has no examples, or has a feature called `index` or `mask`, or the number of
        devices does not divide the batch size.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        mesh: Mesh,
        *,
        seed: int | None = None,
        max_resident_bytes: int = MAX_RESIDENT_BYTES,
        sharding: NamedSharding | None = None,
        leading: tuple[int, ...] = (),
    ):
        """Opens a source. A source that is too large for the devices is not read here.

        Args:
          source: the source of the examples.
          batch_size: number of examples in each batch, over all devices.
          mesh: mesh of the devices.
          seed: random seed of the order. `None` means the order of the source.
          max_resident_bytes: largest source that is held completely on each device, in bytes.
          sharding: sharding of a batch. By default its examples are split over the devices.
          leading: sizes of axes before the axis of the examples, if a subclass returns such `rows`.
        """
        if not len(source):
            raise UserError("a data split without examples cannot be read; choose another split")
        check_names(source)
        self._sharding = batch_sharding(mesh) if sharding is None else sharding
        self._whole = replicated(mesh)
        self._shape = (*leading, batch_size)
        shards = num_parts(mesh, self._sharding.spec, axis=len(leading))
        if batch_size % shards:
            raise UserError(
                f"batch_size={batch_size} does not divide over the {shards} devices of the mesh; "
                f"use a multiple of {shards}, such as {-(-batch_size // shards) * shards}, or "
                "a smaller --mesh"
            )
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size)
        self.num_classes: Mapping[str, int] = {}
        is_ordered = seed is None and not leading
        self.buckets = None if is_ordered else buckets_of(source, batch_size)
        if self.buckets is not None:
            self._cut = jax.jit(self.buckets.cut, static_argnames="length", out_shardings=self._sharding)
        self.examples: Batch | None = None
        if is_resident(source) and source.nbytes <= max_resident_bytes:
            self.examples = put(dict(source.arrays), self._whole)
            self._take = jax.jit(self.gather, out_shardings=self._sharding)

    @property
    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the longest batch on the devices. Nothing is read."""
        leaves = {
            **self.source.spec,
            "index": jax.ShapeDtypeStruct((), np.int32),
            "mask": jax.ShapeDtypeStruct((), np.bool_),
        }
        return {
            name: jax.ShapeDtypeStruct((*self._shape, *leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype))
            for name, leaf in leaves.items()
        }

    @property
    def shapes(self) -> list[tuple[dict[str, jax.ShapeDtypeStruct], int]]:
        """Shapes and dtypes of the batches of each length, and the number of such steps in an epoch."""
        if self.buckets is None:
            return [(self.abstract, self.steps_per_epoch)]
        counts = Counter(self.buckets.lengths)
        return [
            (jax.eval_shape(functools.partial(self._cut, length=length), self.abstract), num_steps)
            for length, num_steps in sorted(counts.items())
        ]

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the global example indices of a step, int32, and which of them are not padding."""
        return rows_of_step(len(self.source), self.batch_size, self.seed, step, self.buckets)

    def __getitem__(self, step: int) -> Batch:
        """Returns the batch of a step on the devices: features, `index` and `mask`."""
        index_B, mask_B = self.rows(step)
        extra = put({"index": index_B, "mask": mask_B}, self._sharding)
        if self.examples is not None:
            batch = self._take(self.examples, extra)
        else:
            batch = {**put(self._read(index_B), self._sharding), **extra}
        if self.buckets is None:
            return batch
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._cut(batch, length=self.buckets.lengths[self.buckets.batch_of(epoch, within)])

    def gather(self, examples: Batch, rows: Batch) -> Batch:
        """Returns the batch of the rows `index` and `mask` of `examples`, inside a compiled program."""
        return {**self.source.gather(examples, rows["index"]), **rows}  # type: ignore[attr-defined]

    def rows_of(self, steps: range) -> Batch:
        """Returns the rows of several steps on each device: `index` and `mask`, with an axis of steps."""
        index_S, mask_S = zip(*map(self.rows, steps), strict=True)
        return put({"index": np.stack(index_S), "mask": np.stack(mask_S)}, self._whole)

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields the batches of steps start, …, stop - 1; those read from the host are prefetched."""
        if self.examples is not None:
            yield from (self[step] for step in range(start, stop))
            return
        pending: deque[Future[Batch]] = deque()
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self.abstract.values())
        num_ahead = max(1, min(PREFETCH_STEPS, MAX_PREFETCH_BYTES // size))
        with ThreadPoolExecutor(num_ahead, "prefetch") as pool:
            try:
                for step in range(start, stop):
                    pending.append(pool.submit(self.__getitem__, step))
                    if len(pending) > num_ahead:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:  # also when the consumer stops early
                for future in pending:
                    future.cancel()

    def _read(self, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the rows that the devices of this process hold. The others stay zero and are never sent."""
        slices = self._sharding.addressable_devices_indices_map(index_B.shape).values()
        local = np.zeros(index_B.shape, bool)
        for rows in slices:
            local[rows] = True
        indices = index_B[local]
        part = self.source[indices]
        check_spec(self.source, part)
        if not is_read_at_once(self.source):
            for name, values in part.items():
                check_fits(f"{name} of row {{row}}", indices, values)
            for name, num_classes in self.num_classes.items():
                check_are_classes(f"{name} of row {{row}}", indices, part[name], num_classes)
        if local.all():
            return {name: values.copy() for name, values in part.items()}  # a source may reuse its buffer
        whole = {}
        for name, values in part.items():
            whole[name] = np.zeros((*index_B.shape, *values.shape[1:]), values.dtype)
            whole[name][local] = values
        return whole


def rows_of_step(
    num_examples: int, batch_size: int, seed: int | None, step: int, buckets: Buckets | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the example indices of a step, int32, and which of them are not padding, both of shape B."""
    epoch, within = divmod(step, steps_per_epoch(num_examples, batch_size))
    order = _ORDERS.order(num_examples, seed, epoch, buckets)
    batch = within if buckets is None else buckets.batch_of(epoch, within)
    positions = np.arange(batch * batch_size, (batch + 1) * batch_size)
    return order[positions % num_examples], positions < num_examples
