"""Data sets as random-access sources, found or prepared in TFDS's on-disk format."""

from dl.data.catalogue import ImageClassification, image_classification
from dl.data.pipeline import steps_per_epoch
from dl.data.source import ArraySource, Source
from dl.data.splits import ArraySplits, Identity

__all__ = [
    "ArraySource",
    "ArraySplits",
    "Identity",
    "ImageClassification",
    "Source",
    "image_classification",
    "steps_per_epoch",
]
