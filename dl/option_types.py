"""Types of options: an annotation states which values an option accepts, and its help text.

An option that many experiments share, such as the seed, has its help text in its type. The docstring of an
experiment documents only the other options. If it documents a shared option too, that text is shown.
"""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

from dl.errors import UserError
from dl.ranges import Range
from dl.system.bucket import refuse_url, url_of
from dl.system.files import named_path, why_no_output
from dl.types import Remat


@dataclasses.dataclass(frozen=True)
class Output:
    """Marks an option as an output file, as metadata of an annotation. Its path must be writable."""


@dataclasses.dataclass(frozen=True)
class Help:
    """The help text of an option, as metadata of an annotation: a phrase that stands alone.

    Attributes:
      text: what `--help` shows, unless the docstring of the experiment documents the option.
    """

    text: str


OutputFile = Annotated[Path, Output()]
PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, above_low=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]

BatchSize = Annotated[PositiveInt, Help("Number of examples in each update.")]
DatasetName = Annotated[
    str,
    Help(
        "Name of a data set (NAME or NAME/CONFIG), or path of a folder (such as ./photos). The folder must "
        "contain one subfolder of images for each class. auto: MNIST, or the digits of scikit-learn if MNIST "
        "is not available."
    ),
]
ImageSize = Annotated[PositiveInt, Help("Height and width of the resized images, in pixels.")]
LabelSmoothing = Annotated[Fraction, Help("Share of each target that is spread evenly over all classes.")]
LearningRate = Annotated[PositiveFloat, Help("Peak learning rate.")]
NumEpochs = Annotated[PositiveInt, Help("Number of passes over the training split.")]
SequenceLength = Annotated[PositiveInt, Help("Number of tokens in a row.")]
Rematerialization = Annotated[
    Remat,
    Help(
        "What is computed again in the backward pass to save memory. none: nothing. layers: all within a "
        "layer, which needs least memory and most time. dots: all but the results of dense layers."
    ),
]
TextDatasetName = Annotated[
    str,
    Help(
        "Name of a data set (NAME or NAME/CONFIG), or path of a file or folder of texts (such as "
        "./novel.txt). auto: the set that the experiment was measured on, or texts that come with Python if "
        "that set is not available."
    ),
]
TokenizerName = Annotated[
    str,
    Help(
        "Tokenizer: bytes, characters, bpe:SIZE or wordpiece:SIZE (trained on the training split), or the "
        "path of a tokenizer.json."
    ),
]
Seed = Annotated[
    int,
    Range(0, 2**32 - 1),
    Help("Random seed of initialisation, batch order, dropout and augmentation."),
]
WeightDecay = Annotated[NonNegativeFloat, Help("Weight decay, on kernels only.")]

Options = dict[str, Any]


def type_name(kind: Any) -> str:
    """Returns a description of an annotation, such as `a whole number`, also inside `int | None`."""
    if choices := _choices(kind):
        return f"one of {', '.join(map(str, choices))}"
    names = {int: "a whole number", float: "a number", bool: "True or False"}
    kinds = [kind, *typing.get_args(kind), *(a for k in typing.get_args(kind) for a in typing.get_args(k))]
    return next((names[k] for k in kinds if k in names), "of another form")


def _choices(kind: Any) -> list[Any]:
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [choice for inner in typing.get_args(kind) for choice in _choices(inner)]


def check_value(name: str, kind: Any, value: Any) -> None:
    """Raises UserError if the annotation of an option does not allow a value."""
    if isinstance(value, Path) and url_of(value) is None:
        named_path(value)
    for metadata in _all_metadata(kind):
        if isinstance(metadata, Range) and value is not None and value not in metadata:
            raise UserError(f"{flag(name)} {value} is out of range; it must be {metadata}")
        if isinstance(metadata, Output):
            refuse_url(value, flag(name))
        if isinstance(metadata, Output) and value is not None and (reason := why_no_output(value)):
            raise UserError(f"{flag(name)} {value} cannot be written ({reason}); choose another file")


def help_of(kind: Any) -> str:
    """Returns the help text of an annotation, also inside `Seed | None`; empty if there is none."""
    texts = (metadata.text for metadata in _all_metadata(kind) if isinstance(metadata, Help))
    return next(texts, "")


def _all_metadata(kind: Any) -> list[Any]:
    """Returns the metadata of an annotation, also inside `PositiveInt | None`."""
    outer = list(getattr(kind, "__metadata__", ()))
    inner = [typing.get_origin(kind) and arg for arg in typing.get_args(kind)]
    return outer + [m for arg in inner if arg is not kind for m in _all_metadata(arg)]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
