"""Corpora: the documents of a data set in train, validation and test, for language models.

`read_texts` reads a set by name or path. Its splits are the official ones where there are any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dl.data.permutation import random_order
from dl.data.text.builtin import PYTHON_TOPICS
from dl.data.text.table import check_dataset, read_table
from dl.errors import UserError
from dl.types import Identity

_HELD_OUT = 0.05  # of the documents or characters of train, for each split that is missing
_MANY = 100  # documents from which whole ones are held out
_KEY = (2, 2**63)  # different from the keys of epochs, (seed, epoch), and from those of other splits


@dataclass(frozen=True)
class TextCorpus:
    """The documents of a data set.

    Attributes:
      name: name of the data set.
      version: its version.
      checksum: SHA-256 of the texts of all official splits.
      origin: what was read, for `provenance`, such as "the prepared set".
      splits: the documents of train, validation and test.
      split_rule: how documents were held out from train; empty if all splits are official.
      notice: warning for a reader; see `Splits`.
    """

    name: str
    version: str
    checksum: str
    origin: str
    splits: Mapping[str, Sequence[str]]
    split_rule: str = ""
    notice: str | None = None

    def identity_of(self, sizes: Mapping[str, int]) -> Identity:
        """Returns the identity of data that are made of these texts.

        Args:
          sizes: number of examples in each split, such as rows of tokens.
        """
        return Identity(self.name, self.version, self.checksum, dict(sizes), self.split_rule)


def read_texts(
    dataset: str | Path = "auto",
    *,
    auto: str | Sequence[str] = "tiny_shakespeare",
    text_field: str | None = None,
    data_dir: str | Path | None = None,
) -> TextCorpus:
    """Reads all documents of a data set.

    Without a test split, the official validation split is used as test. For each split that is missing, 5 %
    of train is held out: of fewer than 100 documents the last characters of each (first validation, then
    test, as in tiny_shakespeare), otherwise whole documents, drawn at random but always the same.

    Args:
      dataset: NAME or NAME/CONFIG of a prepared set, optionally with :VERSION; a built-in set
        (`dl.data.text.builtin`); or the path of a file or folder of texts (`dl.data.text.files`). "auto"
        means the first of `auto` that is prepared, or else the help texts of Python, with a notice.
      auto: names of the sets that "auto" means.
      text_field: name of the field of the texts. `None` means "text", and the only text of a prepared set.
      data_dir: folder of prepared sets. `None` means that of `using_data_dir`, else `TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`.

    Raises:
      UserError: the set is missing or damaged, or a split would be empty.
    """
    dataset, names = check_dataset(dataset, auto)
    folder = None if data_dir is None else Path(data_dir)
    table = read_table(dataset, {"text": text_field}, names, PYTHON_TOPICS, folder)
    official = {split: columns["text"] for split, columns in table.splits.items()}
    splits, rule = hold_out(official, table.name)
    return TextCorpus(table.name, table.version, table.checksum, table.origin, splits, rule, table.notice)


def hold_out(official: Mapping[str, Sequence[str]], name: str) -> tuple[dict[str, Sequence[str]], str]:
    """Returns train, validation and test, and the rule by which documents are held out; see `read_texts`.

    Raises:
      UserError: a split would be empty.
    """
    splits = {split: documents for split, documents in official.items() if split != "validation"}
    if "validation" in official:
        splits["validation" if "test" in official else "test"] = official["validation"]
    missing = [split for split in ("validation", "test") if split not in splits]
    train, rule = splits["train"], ""
    if missing and len(train) < _MANY:
        rule = "the last characters of each document held out"
        cut = [_cut(document, len(missing)) for document in train]
        for part, split in enumerate(["train", *missing]):
            splits[split] = [parts[part] for parts in cut if parts[part]]
    elif missing:
        rule = "documents held out at random"
        order, count = random_order(len(train), *_KEY), round(_HELD_OUT * len(train))
        for split in reversed(missing):
            splits[split] = [train[row] for row in np.sort(order[:count]).tolist()]
            order = order[count:]
        splits["train"] = [train[row] for row in np.sort(order).tolist()]
    for split in ("train", "validation", "test"):
        if not any(splits[split]):
            raise UserError(f"the {split} split of {name} would be empty; give more text, or other data")
    return {split: splits[split] for split in ("train", "validation", "test")}, rule


def _cut(document: str, num_held_out: int) -> list[str]:
    """Returns the first part of a document, and `num_held_out` parts of 5 % of its characters after it."""
    size = len(document)
    ends = [int(size * (1 - _HELD_OUT * k)) for k in range(num_held_out, -1, -1)]
    return [document[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
