"""Prepared sets of images by class: which features of a set that TFDS prepared are image and label."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dl.data.images.disk_dataset import DEFAULT_IMAGE_SIZE, Stored
from dl.data.tfds.prepared import PreparedSet, damaged, describe_set, kind
from dl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Prepared(Stored):
    """The description of a set of images that TFDS prepared. Its folder holds `dataset_info.json`.

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


def describe(folder: Path, image_size: int | None = None) -> Prepared:
    """Returns the description of a set from `dataset_info.json` and `features.json`.

    Args:
      folder: folder of one version, as `locate` returns it.
      image_size: side of the square that images of varying size are resized to, in pixels. `None` means 96.

    Raises:
      UserError: the files are damaged, the set is not stored as array_record, or it does not have exactly one
        image feature and one class label that can be used.
    """
    described = describe_set(folder)
    try:
        image_key, label_key = _choose_features(described)
        image = described.features[image_key]
        height, width, channels = _dimensions(image)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(folder, folder / "features.json", repr(error)) from None
    is_resized = height < 1 or width < 1
    if is_resized:
        height = width = image_size or DEFAULT_IMAGE_SIZE
    return Prepared(
        folder=folder,
        name=described.name,
        version=described.version,
        image_key=image_key,
        image_is_encoded=kind(image) == "Image",
        image_shape=(height, width, channels if channels > 0 else 3),
        is_resized=is_resized,
        label_key=label_key,
        class_names=described.class_names(label_key),
        shards=described.shards,
        digest=described.digest(label_key),
    )


def _dimensions(feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns (H, W, C), with 0 or -1 for a size that varies."""
    shape = feature["image" if kind(feature) == "Image" else "tensor"].get("shape", {})
    dimensions = [int(d) for d in shape.get("dimensions", ("-1", "-1", "3"))]
    height, width, channels = [*dimensions, 1] if len(dimensions) == 2 else dimensions
    return height, width, channels


def _choose_features(described: PreparedSet) -> tuple[str, str]:
    features = described.features

    def is_image(feature: Mapping[str, Any]) -> bool:
        if kind(feature) == "Image":
            return feature["image"].get("dtype", "uint8") == "uint8"
        if kind(feature) != "Tensor" or feature["tensor"].get("dtype") != "uint8":
            return False
        return len(feature["tensor"].get("shape", {}).get("dimensions", ())) in (2, 3)

    def choose(what: str, keys: list[str]) -> str:
        chosen = keys if len(keys) == 1 else [key for key in keys if key in described.supervised_keys]
        if len(chosen) == 1:
            return chosen[0]
        problem = f"several {what}s ({', '.join(keys)})" if keys else f"no {what}"
        raise UserError(
            f"{described.name} cannot be used for image classification: it has {problem} among its "
            f"features {described.listed}; exactly one uint8 image and one ClassLabel are needed"
        )

    return (
        choose("uint8 image", [key for key, feature in features.items() if is_image(feature)]),
        choose("ClassLabel", [k for k, feature in features.items() if kind(feature) == "ClassLabel"]),
    )
