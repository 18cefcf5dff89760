"""Validation and test splits that are taken from train, for data sets without official ones."""

from collections.abc import Mapping

import numpy as np

from dl.data.permutation import random_order
from dl.errors import UserError

_TEST_FRACTION = 0.2  # of train, in a set that has only a train split
_SPLIT_KEY = (0, 2**63)  # different from the keys of epochs, (seed, epoch)
_MANY = 100  # If every class gives this many examples, a plain random draw is nearly stratified.


def split_rows(
    name: str, sizes: Mapping[str, int], validation_fraction: float, labels: np.ndarray | None = None
) -> dict[str, tuple[str, np.ndarray | None]]:
    """Returns which rows of the official splits are used for train, validation and test.

    Rows that are taken from train are stratified by label. Each class gives its share, and at least one
    example if it has two. If every class gives about 100 examples or more, the rows are drawn at random from
    all rows instead, because the shares then differ little.

    Args:
      name: name of the data set, for errors.
      sizes: number of examples in each official split, including "train".
      validation_fraction: fraction of the remaining train examples for validation, if there is no official
        validation split.
      labels: labels of the rows of train. `None` means that the rows are sorted by class.

    Returns:
      For each split, its official split and the rows of it in increasing order. `None` means all rows.

    Raises:
      UserError: a split would be empty.
    """
    result: dict[str, tuple[str, np.ndarray | None]] = {
        used: (split, None) for used, split in _official(sizes).items()
    }
    if counts := check_sizes(name, sizes, validation_fraction):
        taken = _taken(sizes["train"], counts, labels)
        rest = np.setdiff1d(np.arange(sizes["train"]), np.concatenate(list(taken.values())))
        result |= {used: ("train", rows) for used, rows in {**taken, "train": rest}.items()}
    return {used: result[used] for used in ("train", "validation", "test")}


def split_rule(sizes: Mapping[str, int], validation_fraction: float, labels: np.ndarray | None) -> str:
    """Returns a description of how `split_rows` takes rows from train; empty for none or a random draw."""
    counts = check_sizes("", sizes, validation_fraction)
    return "stratified by label" if counts and not _is_plain(sizes["train"], counts, labels) else ""


def check_sizes(name: str, sizes: Mapping[str, int], validation_fraction: float) -> dict[str, int]:
    """Returns the number of rows that each split takes from train. Raises UserError for an empty split."""
    left, counts = sizes["train"], {}
    if "test" not in sizes and "validation" not in sizes:
        counts["test"] = round(_TEST_FRACTION * left)
        left -= counts["test"]
    if not {"validation", "test"} <= sizes.keys():
        counts["validation"] = round(validation_fraction * left)
        left -= counts["validation"]
    used = {used: sizes[split] for used, split in _official(sizes).items()} | counts | {"train": left}
    for split, size in used.items():
        if not size:
            raise UserError(
                f"the {split} split of {name} would be empty (its official splits: {dict(sizes)}, "
                f"validation_fraction={validation_fraction}); choose another data set or fraction"
            )
    return counts


def stratified(labels: np.ndarray, num_chosen: int, *key: int) -> np.ndarray:
    """Returns a mask of examples that are chosen at random, with the same fraction of each class.

    It is the same on every machine. If `num_chosen` allows it, a class with at least two examples has both a
    chosen example and one that is not chosen.

    Args:
      labels: class of each example, any whole numbers.
      num_chosen: number of chosen examples.
      key: key of the random order, as in `random_order`.
    """
    order = random_order(len(labels), *key)
    by_class = order[np.argsort(labels[order], kind="stable")]
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[_evenly(len(labels), num_chosen)]] = True
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rows_of = np.split(by_class, np.cumsum(sizes)[:-1])
    count_of = np.bincount(class_of[chosen], minlength=len(sizes))

    def exchange(gives: int, takes: int) -> None:
        """Replaces one chosen example of one class by an example of another class."""
        for c, is_taken in ((gives, False), (takes, True)):
            rows = rows_of[c]
            chosen[rows[chosen[rows] != is_taken][0]] = is_taken
            count_of[c] += 1 if is_taken else -1

    for c in np.flatnonzero((count_of == 0) & (sizes > 1)):
        if count_of.max() > 1:
            exchange(int(count_of.argmax()), int(c))
    for c in np.flatnonzero(count_of == sizes):
        left_of = sizes - count_of
        if left_of.max() > 1:
            exchange(int(c), int(left_of.argmax()))
    return chosen


def _taken(size: int, counts: Mapping[str, int], labels: np.ndarray | None) -> dict[str, np.ndarray]:
    """Returns which of `size` rows each split takes, in increasing order."""
    taken = {}
    if _is_plain(size, counts, labels):
        order = random_order(size, *_SPLIT_KEY)
        for used, count in counts.items():
            taken[used], order = np.sort(order[:count]), order[count:]
        return taken
    rest = np.arange(size)
    for used, count in counts.items():
        if labels is None:
            is_taken = _evenly(len(rest), count)
        else:
            is_taken = stratified(labels[rest], count, *_SPLIT_KEY)
        taken[used], rest = rest[is_taken], rest[~is_taken]
    return taken


def _is_plain(size: int, counts: Mapping[str, int], labels: np.ndarray | None) -> bool:
    """Returns whether every class gives enough rows for a random draw from all rows."""
    if labels is None:
        return False
    smallest = np.unique(labels, return_counts=True)[1].min(initial=size)
    return all(smallest * count >= _MANY * size for count in counts.values())


def _official(sizes: Mapping[str, int]) -> dict[str, str]:
    """Returns the official split of each split. Without a test split, validation is used as test."""
    if "test" not in sizes and "validation" in sizes:
        return {"train": "train", "test": "validation"}
    return {split: split for split in ("train", "validation", "test") if split in sizes}


def _evenly(size: int, num_chosen: int) -> np.ndarray:
    """Returns a mask of `num_chosen` of `size` positions at nearly equal distances."""
    return np.diff(np.arange(size + 1) * num_chosen // size) > 0
