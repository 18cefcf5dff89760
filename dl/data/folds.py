"""Folds for cross-validation: train and validation in parts of equal size; never test.

Where each example has a class, every fold has the same mix of classes.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dl.data.permutation import random_order
from dl.data.source import ArraySource
from dl.data.splits import ChangedSplits
from dl.errors import UserError
from dl.labels import is_class_label
from dl.types import Source, Splits

_FOLD_KEY = (1, 2**63)  # apart from the keys of epochs, (seed, epoch), and of the catalogue's splits
_CHUNK = 1024  # examples read at once


def stratified_folds(labels: np.ndarray, num_folds: int) -> list[np.ndarray]:
    """Returns the rows of each fold, in increasing order: disjoint, and together all rows.

    The counts of a class differ by at most one between folds, and so do the sizes of the folds, as in
    scikit-learn's StratifiedKFold. The same labels always give the same folds.

    Args:
      labels: the class of each row, any integers.
      num_folds: at least 2, at most the size of the smallest class.

    Raises:
      UserError: `num_folds` is out of range.
    """
    labels = np.asarray(labels)
    _check_num_folds(num_folds)
    classes, counts = np.unique(labels, return_counts=True)
    if num_folds > counts.min(initial=len(labels)):
        smallest = int(counts.argmin())
        raise UserError(
            f"folds={num_folds} is more than class {classes[smallest]} has examples, {counts[smallest]}; "
            "choose at most that"
        )
    order = random_order(len(labels), *_FOLD_KEY)
    by_class = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(by_class[fold::num_folds]) for fold in range(num_folds)]


def plain_folds(num_examples: int, num_folds: int) -> list[np.ndarray]:
    """Returns the rows of each fold, in increasing order: disjoint, together all rows, drawn at random.

    The sizes differ by at most one, as in scikit-learn's KFold; the same numbers always give the same folds.

    Raises:
      UserError: `num_folds` is out of range.
    """
    _check_num_folds(num_folds)
    if num_folds > num_examples:
        raise UserError(
            f"folds={num_folds} is more than there are examples, {num_examples}; choose at most that"
        )
    order = random_order(num_examples, *_FOLD_KEY)
    return [np.sort(order[fold::num_folds]) for fold in range(num_folds)]


def _check_num_folds(num_folds: int) -> None:
    if num_folds < 2:
        raise UserError(f"folds={num_folds} is out of range; it must be at least 2")


class Rows:
    """Some rows of a source that need not fit into memory; nothing is copied."""

    def __init__(self, source: Source, rows: np.ndarray):
        self._source = source
        self._rows = rows

    @property
    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        return self._source.spec

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._source[self._rows[indices]]


class Joined:
    """The rows of several sources with the same features, one source after the other."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    @property
    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        return self._sources[0].spec

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices)
        owner = np.searchsorted(self._ends, indices, "right")
        result = {name: np.empty((len(indices), *leaf.shape), leaf.dtype) for name, leaf in self.spec.items()}
        for k, source in enumerate(self._sources):
            if (mine := owner == k).any():
                for name, values in source[indices[mine] - self._ends[k] + len(source)].items():
                    result[name][mine] = values
        return result


def take(source: Source, rows: np.ndarray) -> Source:
    """Returns the rows `rows` of a source: a copy of arrays in memory, a view of anything else."""
    return source.take(rows) if isinstance(source, ArraySource) else Rows(source, rows)


def join(sources: Sequence[Source]) -> Source:
    """Returns the rows of all sources: a copy of arrays in memory, a view of anything else."""
    arrays = [source.arrays for source in sources if isinstance(source, ArraySource)]
    if len(arrays) == len(sources):
        return ArraySource({name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]})
    return Joined(sources)


class Folds:
    """Train and validation of a set, split anew into folds.

    Rows of train come first, then those of validation; other splits are not looked at.

    Attributes:
      unstratified: why the folds are drawn at random, in words; None where every fold has the same mix of
        classes: where each example has a whole number `label`, and each label as many examples as folds.
    """

    def __init__(self, data: Splits, num_folds: int):
        """Reads all labels: of a set that is too large for memory that decodes it once.

        Raises:
          UserError: `num_folds` is out of range.
        """
        own = [data.train, *(data.evaluations[name] for name in ("validation",) if name in data.evaluations)]
        self._data = data
        self._pool = join(own)
        _check_num_folds(num_folds)
        labels = None
        if is_class_label(self._pool.spec.get("label")):
            labels = _labels(self._pool).reshape(-1)
        self.unstratified = _why_not_stratified(labels, num_folds)
        if labels is not None and self.unstratified is None:
            self._folds = stratified_folds(labels, num_folds)
        else:
            self._folds = plain_folds(len(self._pool), num_folds)

    def __len__(self) -> int:
        return len(self._folds)

    def __getitem__(self, fold: int) -> ChangedSplits:
        """Returns the splits of a fold, numbered from 0; `validation` is that fold, `train` are all others.

        There is no other split. The name says which fold of how many it is.
        """
        held_out = self._folds[fold]
        others = np.sort(np.concatenate([rows for k, rows in enumerate(self._folds) if k != fold]))
        return ChangedSplits(
            self._data,
            {"train": take(self._pool, others), "validation": take(self._pool, held_out)},
            without=self._data.evaluations.keys() - {"validation"},
            name_suffix=f"/fold-{fold + 1}-of-{len(self)}",
            provenance_suffix=f"; fold {fold + 1} of {len(self)} held out",
        )


def _why_not_stratified(labels: np.ndarray | None, num_folds: int) -> str | None:
    if labels is None:
        return "there is no class of each example as `label`"
    values, counts = np.unique(labels, return_counts=True)
    if counts.min() < num_folds:
        return f"only {counts.min():,} examples have the label {values[counts.argmin()]}"
    return None


def _labels(source: Source) -> np.ndarray:
    if isinstance(source, ArraySource):
        return source.arrays["label"]
    chunks = [np.arange(at, min(at + _CHUNK, len(source))) for at in range(0, len(source), _CHUNK)]
    return np.concatenate([source[chunk]["label"] for chunk in chunks])
