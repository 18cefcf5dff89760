"""Files of texts: plain text, JSON lines, and tables with a header, alone or in folders.

A file is a set whose rows are all train, and so is a folder. A folder that has files or folders named train,
validation (or valid, val, dev) or test has these splits. Case does not matter, and a number may follow, as in
train-00000-of-00002.jsonl. Nothing else may then lie beside them.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dl.data.tfds import folders
from dl.errors import UserError
from dl.system.files import read_regular
from dl.system.text import printable

_MAX_BYTES = 2**32  # of one file
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON = (".jsonl", ".ndjson")
SUFFIXES = (".txt", *_JSON, *_SEPARATORS)

Columns = dict[str, list[Any]]


def read_files(path: Path, fields: Mapping[str, str]) -> dict[str, Columns]:
    """Reads a file, or all files below a folder in the order of their paths.

    A file .txt is one row. Its label is the name of the folder that it lies in, directly below the folder of
    the split. In other files a row is a line, and a field is found by its name. A file .tsv has no quotation
    marks around its fields.

    Args:
      path: the file or folder.
      fields: names of the fields, by column. The columns are "label" and others, which are text.

    Returns:
      For each split the values of each column: text, and for "label" any value of JSON.

    Raises:
      UserError: a file cannot be read, is not UTF-8, is empty or does not have the fields.
    """
    found = _files_of(path)
    kinds = sorted({file.suffix.lower() for files in found.values() for _, file in files})
    if len(kinds) > 1:
        raise UserError(f"{path} holds files of several kinds ({', '.join(kinds)}); keep one of them")
    read = _read_plain if kinds == [".txt"] else _read_lines
    result: dict[str, Columns] = {}
    for split, files in found.items():
        columns: Columns = {column: [] for column in fields}
        for below, file in files:
            for column, values in read(file, below, fields).items():
                columns[column] += values
        result[split] = columns
    return result


def _files_of(path: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Returns for each split its folder, or that of the file, and the paths of its files."""
    if os.path.isfile(path):  # which answers False where a name is too long
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{printable(path)} is not a file of texts; its name must end in {_listed()}")
        return {"train": [(path.parent, path)]}
    if not os.path.isdir(path):
        raise UserError(f"there is no file or folder {printable(path)}; give one with texts ({_listed()})")
    if (path / "dataset_info.json").exists() or folders.versions(path):
        raise UserError(
            f"{path} holds a set that TFDS prepared, not files of texts: give its NAME or NAME/CONFIG, and "
            "set --data-dir (TFDS_DATA_DIR) to the folder that contains NAME"
        )
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): change its permissions") from None
    named: dict[str, list[Path]] = {split: [] for split in SPLIT_NAMES}
    others: list[Path] = []
    for entry in entries:
        if not entry.is_dir() and entry.suffix.lower() not in SUFFIXES:
            continue
        split = _split_of(entry.name if entry.is_dir() else entry.stem)
        (others if split is None else named[split]).append(entry)
    splits = {split: places for split, places in named.items() if places}
    if not splits:
        splits = {"train": [path]}
    elif left := [place.name for place in others if place.is_file() or _below(place)]:
        raise UserError(
            f"{path} has {' and '.join(splits)}, and {left[0]} belongs to none of them; move it away, or "
            "name it after a split"
        )
    if "train" not in splits:
        raise UserError(f"{path} has {' and '.join(splits)} but no train; add a file or folder train")
    result = {}
    for split, places in splits.items():
        are_parts = all(place.is_file() and place.stem[-1:].isdigit() for place in places)
        if len(places) > 1 and not are_parts:
            listed = " and ".join(place.name for place in places)
            raise UserError(f"{path} has both {listed}; keep one of them as the {split} split")
        place = places[0]
        if place.is_dir():
            result[split] = [(place, file) for file in _below(place)]
        else:
            result[split] = [(path, file) for file in places]
        if not result[split]:
            raise UserError(f"{place} holds no file of texts (none ends in {_listed()}); add one")
    return result


def _split_of(name: str) -> str | None:
    """Returns the split that the name of a file or folder states."""
    match = re.fullmatch(r"([a-z]+)(?:[-_.]?\d[\w-]*)?", name.lower())
    word = match[1] if match else None
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def _below(folder: Path) -> list[Path]:
    """Returns the files of texts below a folder at any depth, sorted, without hidden ones."""
    found = []
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if file.suffix.lower() in SUFFIXES and not is_hidden and file.is_file():
            found.append(file)
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def unread(folder: Path) -> list[str]:
    """Returns the paths below a folder of the files that are not read, sorted, without hidden ones."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        str(path)
        for path in paths
        if path.suffix.lower() not in SUFFIXES and not any(part.startswith(".") for part in path.parts)
    )


def _read_plain(file: Path, below: Path, fields: Mapping[str, str]) -> Columns:
    text = _read(file)
    row: dict[str, Any] = {}
    for column in fields:
        parts = file.relative_to(below).parts
        if column != "label":
            row[column] = text
        elif len(parts) > 1:
            row["label"] = parts[0]
        else:
            raise UserError(
                f"{printable(file)} has no label: expected {below}/CLASS/{file.name}, or JSON lines with the "
                "fields text and label"
            )
    if len(fields) - ("label" in fields) > 1:
        raise UserError(
            f"{printable(file)} is plain text, but the fields {', '.join(fields.values())} are needed; "
            "give a file .tsv, .csv or .jsonl that has them"
        )
    return {column: [value] for column, value in row.items()}


def _read_lines(file: Path, below: Path, fields: Mapping[str, str]) -> Columns:
    rows = _json_rows if file.suffix.lower() in _JSON else _table_rows
    columns: Columns = {column: [] for column in fields}
    for number, row in rows(file, _read(file)):
        for column, field in fields.items():
            if field not in row:
                raise UserError(
                    f"line {number} of {printable(file)} has no field {field!r}; its fields are "
                    f"{printable(', '.join(map(str, row)))[:200]}"
                )
            value = row[field]
            if column != "label" and not isinstance(value, str):
                raise UserError(
                    f"the field {field!r} of line {number} of {printable(file)} is {value!r:.50}, not text"
                )
            columns[column].append(value)
    if not next(iter(columns.values())):
        raise UserError(f"{printable(file)} has no rows; fill it or remove it")
    return columns


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {number} of {printable(file)} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"line {number} of {printable(file)} is not a JSON object with fields")
            yield number, row


def _table_rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    separator = _SEPARATORS[file.suffix.lower()]
    lines = io.StringIO(text, newline="")
    if separator == "\t":
        reader = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        header: Sequence[str] = next(reader)
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"line {reader.line_num} of {printable(file)} has {len(row)} fields, but the header has "
                    f"{len(header)}; correct it"
                )
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"line {reader.line_num} of {printable(file)} cannot be read as a table ({error}); correct it, "
            "or store JSON lines"
        ) from None


def _read(file: Path) -> str:
    try:
        content = read_regular(file, _MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"there is no file {printable(file)}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{printable(file)} is not UTF-8 text (byte {error.start} is {content[error.start]:#04x}); "
            "convert it to UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{printable(file)} is empty; fill it or remove it")
    return text


def _listed() -> str:
    return ", ".join(SUFFIXES)
