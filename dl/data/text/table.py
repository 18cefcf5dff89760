"""Tables of texts: the rows of a data set in its official splits, found by name or by path."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dl.data.source import chunks
from dl.data.text.builtin import NUMBER_WORDS, PYTHON_TOPICS, read_builtin
from dl.data.text.files import SUFFIXES, read_files, unread
from dl.data.tfds import folders
from dl.data.tfds.find import find, names_path, not_found
from dl.data.tfds.prepared import PreparedSet, describe_set, kind
from dl.data.tfds.records import Records
from dl.errors import UserError
from dl.system.text import printable
from dl.types import Identity

BUILTIN = (PYTHON_TOPICS, NUMBER_WORDS)
_WHAT = "file or folder of texts"
_NO_LABEL = -1


@dataclass(frozen=True)
class TextTable:
    """The rows of a data set of texts.

    Attributes:
      name: name of the data set.
      version: its version; "1.0.0" for files.
      origin: what was read, for `provenance`.
      splits: for each official split (train, and maybe validation and test) the values of each column: texts,
        and for "label" numbers of classes.
      class_names: name of each class; empty without labels.
      notice: warning for a reader; see `Splits`.
    """

    name: str
    version: str
    origin: str
    splits: Mapping[str, Mapping[str, Sequence[Any]]]
    class_names: tuple[str, ...] = ()
    notice: str | None = None

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(next(iter(columns.values()))) for split, columns in self.splits.items()}

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over the names of the splits and columns, the number of rows, and all texts and labels."""
        content = hashlib.sha256()
        for split, columns in sorted(self.splits.items()):
            for column, values in sorted(columns.items()):
                content.update(f"{split} {column} {len(values)} ".encode())
                for value in values:
                    text = str(value).encode("utf-8", "surrogatepass")
                    content.update(f"{len(text)} ".encode() + text)
        return content.hexdigest()

    def identity_of(self, sizes: Mapping[str, int], split_rule: str = "") -> Identity:
        """Returns the identity of data that are made of these rows; see `Identity`."""
        return Identity(self.name, self.version, self.checksum, dict(sizes), split_rule)


def check_dataset(dataset: str | Path, auto: str | Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Checks the name or path of a data set, without looking for it. Returns it, and the names of "auto".

    Raises:
      UserError: it is neither a name nor a path.
    """
    if not isinstance(dataset, str | Path):
        raise UserError(f"dataset={dataset!r:.80} is not a text; give the name or the path of a data set")
    if isinstance(dataset, Path):
        dataset = str(dataset) if dataset.is_absolute() else f"./{dataset}"
    names = (auto,) if isinstance(auto, str) else tuple(auto)
    for name in names:
        folders.parse_request(name)
    if dataset != "auto" and not _is_path(dataset):
        folders.parse_request(dataset)
    return dataset, names


def read_table(
    dataset: str,
    fields: Mapping[str, str | None],
    auto: Sequence[str],
    fallback: str,
    data_dir: Path | None = None,
) -> TextTable:
    """Reads all official splits of a data set.

    Args:
      dataset: NAME or NAME/CONFIG of a set that TFDS prepared, optionally with :VERSION, the name of a
        built-in set, or the path of a file or folder (see `dl.data.text.files`). "auto" means the first of
        `auto` that is prepared, or else the built-in set `fallback`, with a notice.
      fields: names of the fields, by column. The columns are "label", a class, and others, which are text.
        `None` means the name of the column in files, and the only fitting feature of a prepared set.
      auto: names of the sets that "auto" means.
      fallback: name of a built-in set.
      data_dir: folder of prepared sets; see `folders.data_folder`.

    Raises:
      UserError: the set is missing or damaged, or does not have such fields.
    """
    if dataset == "auto":
        root = folders.data_folder(data_dir)
        for name in auto:
            if found := find(folders.parse_request(name), root):
                return _read_prepared(describe_set(found[1]), fields)
        return _read_fallback(auto[0], fallback, fields, root)
    if dataset in BUILTIN:
        return _read_builtin(dataset, fields, None)
    if _is_path(dataset) or names_path(dataset, data_dir):
        return _read_path(dataset, fields)
    request, root = folders.parse_request(dataset), folders.data_folder(data_dir)
    found = find(request, root)
    if found is None:
        raise not_found(request, root, BUILTIN, _WHAT)
    return _read_prepared(describe_set(found[1]), fields)


def _is_path(dataset: str) -> bool:
    # The name of a set has no ending, so a file that does not exist is a path too.
    return folders.is_path(dataset) or ("/" not in dataset and dataset.lower().endswith(SUFFIXES))


def _read_fallback(wanted: str, name: str, fields: Mapping[str, str | None], root: Path) -> TextTable:
    what = {PYTHON_TOPICS: "Python's help texts", NUMBER_WORDS: "Number words"}[name]
    request = folders.parse_request(wanted)
    notice = (
        f"{what}, not {wanted}.\n"  # This line is shown beside every result.
        f"Wanted {wanted}, but it is not prepared in {root}.\n"
        f"The built-in set {name} is used INSTEAD (see dl.data.text.builtin).\n"
        f"So no result is a result of {wanted}.\n"
        f"To get {wanted}: {not_found(request, root, BUILTIN, _WHAT)}."
    )
    return _read_builtin(name, dict.fromkeys(fields), notice)


def _read_builtin(name: str, fields: Mapping[str, str | None], notice: str | None) -> TextTable:
    defaults = {"source": "en", "target": "de"}
    columns, version = read_builtin(name, {c: f or defaults.get(c, c) for c, f in fields.items()})
    splits, class_names = _with_classes({"train": columns}, name)
    return TextTable(name, version, f"the built-in set {name}", splits, class_names, notice)


def _read_path(dataset: str, fields: Mapping[str, str | None]) -> TextTable:
    path = Path(os.path.abspath(os.path.expanduser(dataset)))
    read = read_files(path, {column: field or column for column, field in fields.items()})
    splits, class_names = _with_classes(read, printable(path))
    origin, left_out = "the file" if path.is_file() else "the folder", unread(path)
    if left_out:
        others = f" and {len(left_out) - 1:,} others" if len(left_out) > 1 else ""
        origin += f" (not read: {printable(left_out[0])}{others})"
    return TextTable(path.name, "1.0.0", origin, splits, class_names)


def _with_classes(
    splits: Mapping[str, Mapping[str, list[Any]]], where: str
) -> tuple[dict[str, dict[str, Sequence[Any]]], tuple[str, ...]]:
    """Returns splits whose labels are numbers, and the names of the classes: the labels of train, sorted.

    Raises:
      UserError: a label is neither text nor a whole number, or a label of another split is not in train.
    """
    result: dict[str, dict[str, Sequence[Any]]] = {split: dict(columns) for split, columns in splits.items()}
    if "label" not in result["train"]:
        return result, ()
    for columns in result.values():
        for label in columns["label"]:
            if type(label) not in (str, int) or label == "":
                raise UserError(f"{where} has the label {label!r:.50}; labels must be text or whole numbers")
    known = sorted({str(label) for label in result["train"]["label"]})
    if all(name.isdecimal() for name in known):
        known = sorted(known, key=int)
    number_of = {name: number for number, name in enumerate(known)}
    for split, columns in result.items():
        unknown = [label for label in columns["label"] if str(label) not in number_of]
        if unknown:
            raise UserError(
                f"the label {printable(unknown[0])!r:.50} of the {split} split of {where} is not in train; "
                "correct it or remove its rows"
            )
        columns["label"] = [number_of[str(label)] for label in columns["label"]]
    return result, tuple(known)


def _read_prepared(described: PreparedSet, fields: Mapping[str, str | None]) -> TextTable:
    keys = _choose_features(described, fields)
    label_key = keys.get("label")
    class_names = () if label_key is None else described.class_names(label_key)
    splits = {split: _read_split(described, split, keys) for split in described.shards}
    origin = "the prepared set"
    for split, columns in list(splits.items()):
        if split != "train" and {*columns.get("label", ())} == {_NO_LABEL}:  # kept secret, as in GLUE
            del splits[split]
            origin += f" without its {split} split, which has no labels"
        elif "label" in columns:
            _check_labels(described, split, columns["label"], len(class_names))
    return TextTable(described.name, described.version, origin, splits, class_names)


def _choose_features(described: PreparedSet, fields: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the name of the feature of each column."""
    of_kind = {
        "text": [key for key, feature in described.features.items() if _is_text(feature)],
        "class label": [k for k, feature in described.features.items() if kind(feature) == "ClassLabel"],
    }
    supervised = [key for key in described.supervised_keys if key in of_kind["text"]]
    chosen: dict[str, str] = {}
    for column, field in fields.items():
        what = "class label" if column == "label" else "text"
        keys = of_kind[what]
        if field is None and what == "text" and len(fields) - ("label" in fields) > 1:
            # Source and target of a translation, in the order that the set states.
            keys = supervised if len(supervised) == 2 else keys
            keys = keys[len(chosen) : len(chosen) + 1] if len(keys) == 2 else keys
        elif field is None and len(keys) > 1:
            keys = [key for key in keys if key in described.supervised_keys] or keys
        elif field is not None:
            keys = [field] if field in keys else []
        if len(keys) != 1:
            wanted = "" if field is None else f" {field!r}"
            found = f"several ({', '.join(keys)}); name one of them" if keys else "none; choose another set"
            raise UserError(
                f"{described.name} needs one {what}{wanted} as the {column}, but has {found}. Its features: "
                f"{described.listed}"
            )
        chosen[column] = keys[0]
    return chosen


def _is_text(feature: Mapping[str, Any]) -> bool:
    if kind(feature) in ("Text", "String"):
        return True
    stated = feature.get("tensor")
    if kind(feature) not in ("Tensor", "Scalar") or not isinstance(stated, Mapping):
        return False
    return stated.get("dtype") == "string" and not stated.get("shape", {}).get("dimensions")


def _read_split(described: PreparedSet, split: str, keys: Mapping[str, str]) -> dict[str, list[Any]]:
    records = Records(described.folder, split, described.shards[split], keys.values())
    records.check_lengths()
    columns: dict[str, list[Any]] = {column: [] for column in keys}
    for rows in chunks(described.sizes[split]):
        for row, record in zip(rows.tolist(), records.read(rows), strict=True):
            example = records.parse(row, record)
            for column, key in keys.items():
                stored = example[key]
                try:
                    value = int(stored) if column == "label" else bytes(stored).decode("utf-8")
                except (ValueError, TypeError) as error:
                    raise described.damaged(f"{records.where(row)} in {described.folder}", error) from None
                columns[column].append(value)
    return columns


def _check_labels(described: PreparedSet, split: str, labels: Sequence[int], num_classes: int) -> None:
    for row, label in enumerate(labels):
        if not 0 <= label < num_classes:
            raise UserError(
                f"{described.name} in {described.folder}: record {row} of split {split!r} has the label "
                f"{label}, expected 0 to {num_classes - 1}: prepare the set again with correct labels"
            )
