"""Prepared sets: descriptions of the data sets that TFDS wrote to disk, without importing TFDS."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl.errors import UserError

SPLITS = ("train", "validation", "test")

_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """The description of a set that TFDS prepared, with features of any kind.

    Attributes:
      folder: folder of one version of the set. It holds `dataset_info.json`.
      name: name of the set with its config, such as "colours/dark".
      version: version of the set.
      features: description of each feature, as in `features.json`.
      supervised_keys: names of the features that are input and output of supervised learning, in this order.
      shards: for each official split (train, validation, test), number of examples by path of a shard.
      files: contents of the files that describe the set.
    """

    folder: Path
    name: str
    version: str
    features: Mapping[str, Mapping[str, Any]]
    supervised_keys: tuple[str, ...]
    shards: Mapping[str, Mapping[Path, int]]
    files: tuple[bytes, ...]

    @property
    def sizes(self) -> dict[str, int]:
        return {split: sum(shards.values()) for split, shards in self.shards.items()}

    @property
    def listed(self) -> str:
        """The features and their kinds, for errors."""
        return ", ".join(f"{key} ({kind(feature)})" for key, feature in self.features.items())

    def class_names(self, label_key: str) -> tuple[str, ...]:
        """Returns the name of each class of a ClassLabel; "0", "1", … if the set has no names.

        Raises:
          UserError: the set is damaged.
        """
        return _class_names(self, label_key)[0]

    def digest(self, label_key: str | None = None) -> str:
        """Returns the SHA-256 of the description of the set, with the names of classes of `label_key`."""
        names = () if label_key is None else (_class_names(self, label_key)[1],)
        content = hashlib.sha256()
        for part in (*self.files, *names):
            content.update(hashlib.sha256(part).digest())
        return content.hexdigest()

    def damaged(self, where: Path | str, reason: object) -> UserError:
        """Returns the error for a set that cannot be read. `where` is the damaged file or record."""
        return damaged(self.folder, where, reason)


def damaged(folder: Path, where: Path | str, reason: object) -> UserError:
    """Returns the error for a set that cannot be read. `where` is the damaged file or record."""
    text = " ".join(str(reason).split())[:300]
    return UserError(
        f"{where} is damaged ({text}): delete {folder} and prepare the set again, or copy it again"
    )


def describe_set(folder: Path) -> PreparedSet:
    """Returns the description of a set from `dataset_info.json` and `features.json`.

    Args:
      folder: folder of one version, as `locate` returns it.

    Raises:
      UserError: the files are damaged, the set is not stored as array_record, or it has no train split.
    """
    info, info_bytes = _read_json(folder, "dataset_info.json")
    features_json, features_bytes = _read_json(folder, "features.json")
    try:
        dataset, config = str(info["name"]), info.get("configName")
        name = f"{dataset}/{config}" if config else dataset
        formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ())]
        shards = {
            split["name"]: _shards(folder, dataset, split)
            for split in info["splits"]
            if split["name"] in SPLITS
        }
        split_names = [split["name"] for split in info["splits"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(folder, folder / "dataset_info.json", repr(error)) from None
    if "array_record" not in formats:
        raise UserError(
            f"{name} in {folder} is stored as {formats[0]}, which cannot be read without "
            "TensorFlow: prepare it again with file_format='array_record'"
        )
    if "train" not in shards:
        raise UserError(f"{name} in {folder} has no train split; it has {split_names}: choose another set")
    try:
        features = _features(features_json)
        for feature in features.values():
            kind(feature)
        supervised_keys = tuple(str(key) for key in _supervised_keys(info) if key in features)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(folder, folder / "features.json", repr(error)) from None
    return PreparedSet(
        folder=folder,
        name=name,
        version=folder.name,
        features=features,
        supervised_keys=supervised_keys,
        shards={split: shards[split] for split in SPLITS if split in shards},
        files=(info_bytes, features_bytes),
    )


def kind(feature: Mapping[str, Any]) -> str:
    """Returns the class of a feature in TFDS, such as "ClassLabel"."""
    return str(feature["pythonClassName"].rpartition(".")[2])


def _read_json(folder: Path, name: str) -> tuple[Any, bytes]:
    try:
        content = (folder / name).read_bytes()
        return json.loads(content), content
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, folder / name, error) from None


def _shards(folder: Path, dataset: str, split: Mapping[str, Any]) -> dict[Path, int]:
    lengths = [int(length) for length in split.get("shardLengths", ())]
    shards = {}
    for index, length in enumerate(lengths):
        file_name = split.get("filepathTemplate") or _DEFAULT_TEMPLATE
        for field, value in {
            "DATASET": dataset,
            "SPLIT": split["name"],
            "FILEFORMAT": "array_record",
            "SHARD_X_OF_Y": f"{index:05d}-of-{len(lengths):05d}",
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
        }.items():
            file_name = file_name.replace(f"{{{field}}}", value)
        shards[folder / file_name] = length
    return shards


def _features(features_json: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    if "translation" in features_json:  # a set of translations, with a text for each language
        languages = features_json["translation"]["languages"]
        return {str(language): {"pythonClassName": "Text", "text": {}} for language in languages}
    return dict(features_json["featuresDict"]["features"])


def _supervised_keys(info: Mapping[str, Any]) -> list[Any]:
    keys = info.get("supervisedKeys", {})
    items = keys.get("tuple", {}).get("items", ())
    return [keys.get("input"), keys.get("output"), *(item.get("featureKey") for item in items)]


def _class_names(described: PreparedSet, label_key: str) -> tuple[tuple[str, ...], bytes]:
    folder, path = described.folder, described.folder / f"{label_key}.labels.txt"
    try:
        num_classes = int(described.features[label_key]["classLabel"]["numClasses"])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder, folder / "features.json", repr(error)) from None
    try:
        content = path.read_bytes()
        names = tuple(line.strip() for line in content.decode().splitlines() if line.strip())
    except FileNotFoundError:
        return tuple(map(str, range(num_classes))), b""
    except (OSError, ValueError) as error:
        raise damaged(folder, path, error) from None
    if len(names) != num_classes:
        raise damaged(folder, path, f"{len(names)} class names for {num_classes} classes")
    return names, content
