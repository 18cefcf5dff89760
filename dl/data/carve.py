"""Carving: what validation and test take from train, in sets without official ones."""

from collections.abc import Mapping

import numpy as np

from dl.data.permutation import random_order
from dl.errors import UserError

_TEST_FRACTION = 0.2  # of a set that has but a train split
_SPLIT_KEY = (0, 2**63)  # apart from the keys of epochs, (seed, epoch)
_MANY = 100  # examples that every class gives: then a plain random draw is near enough to the shares


def split_rows(
    name: str, sizes: Mapping[str, int], validation_fraction: float, labels: np.ndarray | None = None
) -> dict[str, tuple[str, np.ndarray | None]]:
    """Which rows of which official split make up train, validation and test.

    What is taken from train is stratified by label: each class gives its share, and one example at least
    where it has two. Where every class gives about 100 or more, the rows are drawn at random from all, whose
    shares differ little.

    Args:
      name: of the set, for errors.
      sizes: of the official splits; "train" is among them.
      validation_fraction: of train (of what is left of it), where there is no validation split.
      labels: of the rows of train; None: the rows stand sorted by class.

    Returns:
      By split as used: the official split, and its rows in increasing order (None means all).

    Raises:
      UserError: if a split would be empty.
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
    """Returns how `split_rows` takes rows from train: empty if it takes none, or draws them from all rows."""
    counts = check_sizes("", sizes, validation_fraction)
    return "stratified by label" if counts and not _is_plain(sizes["train"], counts, labels) else ""


def check_sizes(name: str, sizes: Mapping[str, int], validation_fraction: float) -> dict[str, int]:
    """Returns how many rows each split takes from train; raises UserError if a split would be empty."""
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
                f"validation_fraction={validation_fraction}): choose another set or fraction"
            )
    return counts


def stratified(labels: np.ndarray, num_chosen: int, *key: int) -> np.ndarray:
    """Marks examples chosen at random, a like share of each class; on every machine the same.

    A class of two examples or more is among the chosen and among the others, where `num_chosen` allows it.

    Args:
      labels: the class of each example, any whole numbers.
      num_chosen: how many.
      key: of the random order, as in `random_order`.
    """
    order = random_order(len(labels), *key)
    by_class = order[np.argsort(labels[order], kind="stable")]
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[_evenly(len(labels), num_chosen)]] = True
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rows_of = np.split(by_class, np.cumsum(sizes)[:-1])
    count_of = np.bincount(class_of[chosen], minlength=len(sizes))

    def exchange(gives: int, takes: int) -> None:
        """One example of one class is chosen no more, and one of another is instead."""
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
    """Returns the rows that each split takes from `size` ones, in increasing order."""
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
    """Whether every class gives so many rows that a draw from all of them is near enough."""
    if labels is None:
        return False
    smallest = np.unique(labels, return_counts=True)[1].min(initial=size)
    return all(smallest * count >= _MANY * size for count in counts.values())


def _official(sizes: Mapping[str, int]) -> dict[str, str]:
    """Returns which official split each one is; without a test split the validation split is that."""
    if "test" not in sizes and "validation" in sizes:
        return {"train": "train", "test": "validation"}
    return {split: split for split in ("train", "validation", "test") if split in sizes}


def _evenly(size: int, num_chosen: int) -> np.ndarray:
    """Marks `num_chosen` of `size` places at equal distances, or nearly so."""
    return np.diff(np.arange(size + 1) * num_chosen // size) > 0
