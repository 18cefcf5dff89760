"""Prepared sets: descriptions of the data sets that TFDS wrote to disk, without importing TFDS."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dl.data.images.disk_dataset import DEFAULT_IMAGE_SIZE, SPLITS, Stored
from dl.errors import UserError

_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True, kw_only=True)
class Prepared(Stored):
    """The description of a set that TFDS prepared. Its folder holds `dataset_info.json`.

    Attributes:
      image_key: name of the image feature.
      image_is_encoded: True for PNG or JPEG bytes, False for a plain tensor.
      label_key: name of the feature that holds the class label.
    """

    origin: ClassVar[str] = "the prepared set"
    many_examples: ClassVar[int] = 20_000

    image_key: str
    image_is_encoded: bool
    label_key: str

    def damaged(self, where: Path | str, reason: object) -> UserError:
        return damaged(self.folder, where, reason)


def damaged(folder: Path, where: Path | str, reason: object) -> UserError:
    """Returns the error for a set that cannot be read. `where` is the damaged file or record."""
    text = " ".join(str(reason).split())[:300]
    return UserError(
        f"{where} is damaged ({text}): delete {folder} and prepare the set again, or copy it again"
    )


def describe(folder: Path, image_size: int | None = None) -> Prepared:
    """Returns the description of a set from `dataset_info.json` and `features.json`.

    Args:
      folder: folder of one version, as `locate` returns it.
      image_size: side of the square that images of varying size are resized to, in pixels. `None` means 96.

    Raises:
      UserError: the files are damaged, the set is not stored as array_record, or it does not have exactly one
        image feature and one class label that can be used.
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
        features = features_json["featuresDict"]["features"]
        image_key, label_key = _choose_features(name, features, _supervised_keys(info))
        image = features[image_key]
        height, width, channels = _dimensions(image)
        num_classes = int(features[label_key]["classLabel"]["numClasses"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(folder, folder / "features.json", repr(error)) from None
    is_resized = height < 1 or width < 1
    if is_resized:
        height = width = image_size or DEFAULT_IMAGE_SIZE
    class_names, names_bytes = _class_names(folder, label_key, num_classes)
    digest = hashlib.sha256()
    for part in (info_bytes, features_bytes, names_bytes):
        digest.update(hashlib.sha256(part).digest())
    return Prepared(
        folder=folder,
        name=name,
        version=folder.name,
        image_key=image_key,
        image_is_encoded=_kind(image) == "Image",
        image_shape=(height, width, channels if channels > 0 else 3),
        is_resized=is_resized,
        label_key=label_key,
        class_names=class_names,
        shards={split: shards[split] for split in SPLITS if split in shards},
        digest=digest.hexdigest(),
    )


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


def _kind(feature: Mapping[str, Any]) -> str:
    return feature["pythonClassName"].rpartition(".")[2]


def _dimensions(feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns (H, W, C), with 0 or -1 for a size that varies."""
    shape = feature["image" if _kind(feature) == "Image" else "tensor"].get("shape", {})
    dimensions = [int(d) for d in shape.get("dimensions", ("-1", "-1", "3"))]
    height, width, channels = [*dimensions, 1] if len(dimensions) == 2 else dimensions
    return height, width, channels


def _supervised_keys(info: Mapping[str, Any]) -> list[Any]:
    keys = info.get("supervisedKeys", {})
    items = keys.get("tuple", {}).get("items", ())
    return [keys.get("input"), keys.get("output"), *(item.get("featureKey") for item in items)]


def _choose_features(name: str, features: Mapping[str, Any], supervised_keys: list[Any]) -> tuple[str, str]:
    def is_image(feature: Mapping[str, Any]) -> bool:
        if _kind(feature) == "Image":
            return feature["image"].get("dtype", "uint8") == "uint8"
        if _kind(feature) != "Tensor" or feature["tensor"].get("dtype") != "uint8":
            return False
        return len(feature["tensor"].get("shape", {}).get("dimensions", ())) in (2, 3)

    def choose(what: str, keys: list[str]) -> str:
        chosen = keys if len(keys) == 1 else [key for key in keys if key in supervised_keys]
        if len(chosen) == 1:
            return chosen[0]
        listed = ", ".join(f"{key} ({_kind(feature)})" for key, feature in features.items())
        problem = f"several {what}s ({', '.join(keys)})" if keys else f"no {what}"
        raise UserError(
            f"{name} cannot be used for image classification: it has {problem} among its "
            f"features {listed}; exactly one uint8 image and one ClassLabel are needed"
        )

    return (
        choose("uint8 image", [key for key, feature in features.items() if is_image(feature)]),
        choose("ClassLabel", [k for k, feature in features.items() if _kind(feature) == "ClassLabel"]),
    )


def _class_names(folder: Path, label_key: str, num_classes: int) -> tuple[tuple[str, ...], bytes]:
    path = folder / f"{label_key}.labels.txt"
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
