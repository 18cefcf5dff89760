"""Data: examples by random access, their splits, and the batches that are made of them.

`images` and `tfds` hold what is particular to a kind of data or to a format on disk. It may import
`dl.system` and the words at the top of `dl`. Read `source` first, then `pipeline`.
"""

from dl.data.images.classification import ImageClassification, image_classification
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.data.steps import steps_per_epoch
from dl.data.tfds.folders import using_data_dir
from dl.types import Identity, Source

__all__ = [
    "ArraySource",
    "ArraySplits",
    "Identity",
    "ImageClassification",
    "Source",
    "image_classification",
    "steps_per_epoch",
    "using_data_dir",
]
