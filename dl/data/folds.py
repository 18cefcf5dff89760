"""Folds for cross-validation: the examples of train and validation in parts of equal size.

The test split is used only on request. If each example has a class, every fold has the same proportions of
the classes. A fold of overlapping rows of one text is a piece of the text.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from dl.data.permutation import random_order
from dl.data.source import ArraySource
from dl.data.splits import ChangedSplits
from dl.errors import UserError
from dl.labels import is_class_label
from dl.stopping import FINAL_SPLIT
from dl.types import Source, Splits

_FOLD_KEY = (1, 2**63)  # different from the keys of epochs, (seed, epoch), and from that of `carve`
_CHUNK = 1024  # examples read at once


def stratified_folds(labels: np.ndarray, num_folds: int) -> list[np.ndarray]:
    """Returns the rows of each fold, in increasing order: disjoint, and together all rows.

    Between folds the number of examples of a class differs by at most one, and so does the size, as in
    scikit-learn's StratifiedKFold. The same labels always give the same folds.

    Args:
      labels: class of each row, any integers.
      num_folds: number of folds, at least 2 and at most the size of the smallest class.

    Raises:
      UserError: `num_folds` is out of range.
    """
    labels = np.asarray(labels)
    _check_num_folds(num_folds)
    classes, counts = np.unique(labels, return_counts=True)
    if num_folds > counts.min(initial=len(labels)):
        smallest = int(counts.argmin())
        raise UserError(
            f"folds={num_folds} is more than the {counts[smallest]} examples of class {classes[smallest]}; "
            f"choose at most {counts[smallest]}"
        )
    order = random_order(len(labels), *_FOLD_KEY)
    by_class = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(by_class[fold::num_folds]) for fold in range(num_folds)]


def plain_folds(num_examples: int, num_folds: int) -> list[np.ndarray]:
    """Returns the rows of each fold, in increasing order: disjoint, together all rows, drawn at random.

    The sizes differ by at most one, as in scikit-learn's KFold. The same arguments always give the same
    folds.

    Raises:
      UserError: `num_folds` is out of range.
    """
    _check_num_folds(num_folds)
    if num_folds > num_examples:
        raise UserError(
            f"folds={num_folds} is more than the number of examples; choose at most {num_examples}"
        )
    order = random_order(num_examples, *_FOLD_KEY)
    return [np.sort(order[fold::num_folds]) for fold in range(num_folds)]


def _check_num_folds(num_folds: int) -> None:
    if num_folds < 2:
        raise UserError(f"folds={num_folds} is out of range; it must be at least 2")


class Rows:
    """A view of some rows of a source, which need not fit into memory."""

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
    """Returns the rows `rows` of a source: a copy if it is an `ArraySource`, otherwise a view."""
    return source.take(rows) if isinstance(source, ArraySource) else Rows(source, rows)


def join(sources: Sequence[Source]) -> Source:
    """Returns the rows of all sources: a copy if all are `ArraySource`s, otherwise a view."""
    in_memory = [source for source in sources if isinstance(source, ArraySource)]
    return in_memory[0].joined(in_memory[1:]) if len(in_memory) == len(sources) else Joined(sources)


@runtime_checkable
class Divisible(Protocol):
    """A source whose rows overlap, and which therefore divides itself into folds."""

    def divide(self, others: Sequence[Source], num_folds: int) -> list[tuple[Source, Source]]:
        """Returns the training rows and the held-out rows of each fold of this source and others."""
        ...


class Folds:
    """The examples of train and validation of a data set, divided into folds.

    The rows of train come first, then those of validation, and of test if it is asked for. Other splits are
    not used.

    Attributes:
      how: how the folds are made, as text.
      unstratified: reason why the folds are not stratified, as text. `None` means that they are: each example
        has a whole number `label`, and each label has at least as many examples as there are folds.
    """

    def __init__(self, data: Splits, num_folds: int, with_test: bool = False):
        """Reads all labels. This decodes a set that does not fit into memory once.

        Args:
          data: the data.
          num_folds: number of folds.
          with_test: whether the test split is divided too. Published results on a set without an official
            test split are over all of its examples.

        Raises:
          UserError: `num_folds` is out of range, or there is no test split although it is asked for.
        """
        _check_num_folds(num_folds)
        if with_test and FINAL_SPLIT not in data.evaluations:
            raise UserError(
                f"{data.identity.name} has no test split to divide; leave --folds-with-test out: the folds "
                "are of all examples already"
            )
        names = ("validation", FINAL_SPLIT) if with_test else ("validation",)
        others = [data.evaluations[name] for name in names if name in data.evaluations]
        self._data = data
        if isinstance(data.train, Divisible):
            self.unstratified: str | None = "rows overlap"
            self.how = "pieces of the text, one after the other"
            self._divided = data.train.divide(others, num_folds)
            return
        self._divided = []
        self._pool = pool = join([data.train, *others])
        labels = None
        if is_class_label(pool.spec.get("label")):
            labels = _labels(pool).reshape(-1)
        self.unstratified = _why_not_stratified(labels, num_folds)
        self.how = f"drawn at random, as {self.unstratified}" if self.unstratified else "stratified by label"
        if labels is not None and self.unstratified is None:
            self._folds = stratified_folds(labels, num_folds)
        else:
            self._folds = plain_folds(len(pool), num_folds)

    def __len__(self) -> int:
        return len(self._divided or self._folds)

    def __getitem__(self, fold: int) -> ChangedSplits:
        """Returns the splits of a fold, numbered from 0: `validation` is that fold, `train` is all others.

        There is no other split. The name of the data contains the number of the fold and of all folds.
        """
        if self._divided:
            train, held_out = self._divided[fold]
        else:
            others = np.sort(np.concatenate([rows for k, rows in enumerate(self._folds) if k != fold]))
            train, held_out = take(self._pool, others), take(self._pool, self._folds[fold])
        return ChangedSplits(
            self._data,
            {"train": train, "validation": held_out},
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
    starts = range(0, len(source), _CHUNK)
    chunks = [np.arange(start, min(start + _CHUNK, len(source))) for start in starts]
    return np.concatenate([source[chunk]["label"] for chunk in chunks])
