"""Data: examples with random access, their splits, and batches of them.

`images` is for image data, `text` for texts, and `tfds` for the format of TensorFlow Datasets. The folder
may import `dl.system` and the modules at the top of `dl`. Read `source` first, then `pipeline`.
"""

from typing import TYPE_CHECKING

from dl.system.lazy import on_first_use

if TYPE_CHECKING:
    from dl.data.images.classification import ImageClassification, image_classification
    from dl.data.source import ArraySource
    from dl.data.splits import ArraySplits
    from dl.data.steps import steps_per_epoch
    from dl.data.text.classification import TextClassification, text_classification
    from dl.data.text.language_modeling import LanguageModeling, language_modeling
    from dl.data.text.translation import Translation, translation
    from dl.data.tfds.folders import using_data_dir
    from dl.types import Identity, Source
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "ArraySource",
    "ArraySplits",
    "Identity",
    "ImageClassification",
    "LanguageModeling",
    "Source",
    "TextClassification",
    "Translation",
    "image_classification",
    "language_modeling",
    "steps_per_epoch",
    "text_classification",
    "translation",
    "using_data_dir",
]
