"""Loads an exported model. It needs neither the code of its experiment nor the data.

Shapes: B examples or rows, T tokens of a prompt, S tokens of an encoder's input, V vocabulary.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export
from numpy.typing import ArrayLike

from dl.errors import UserError
from dl.inference import reader
from dl.inference.check import differences
from dl.system.files import expand
from dl.system.text import printable

FORMAT = 1  # of the folder
NO_FLATBUFFERS = "flatbuffers is not installed, which jax.export needs; pip install 'dl[export]'"
BATCH_SIZE = 256  # examples that are computed at once, if the caller does not state another number
SMALLEST_BUCKET = 4  # tokens; shorter prompts are padded to it, so that few programs are compiled


class Cache(NamedTuple):
    """What a decoder remembers of the tokens that it has read.

    Attributes:
      arrays: arrays whose first axis is the row.
      num_tokens: largest number of tokens that a row has.
    """

    arrays: tuple[jax.Array, ...]
    num_tokens: int


class ExportedModel:
    """A model that was exported: functions of NumPy arrays.

    Attributes:
      folder: the folder of the exported model.
      record: the content of export.json.
      variables: the arrays of the model by name.
    """

    def __init__(self, folder: Path):
        """Reads and verifies the folder; see `load_exported`."""
        self.folder = folder
        try:
            self.record = reader.verified(folder)
            if self.record["format"] != FORMAT:
                raise UserError(f"{folder} was written by a later version of dl; use that version")
            self.variables = reader.tensors(folder / "variables.safetensors")
            self._functions = {name: self._function(name) for name in self.record["functions"]}
        except ImportError:
            raise UserError(NO_FLATBUFFERS) from None
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            brief = printable(" ".join(str(error).split()))[:300]
            raise UserError(
                f"{folder} is damaged ({brief}); copy it again, or export the model again"
            ) from error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.folder}: {', '.join(self._functions)}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty if the data do not name them."""
        return tuple(self.record["class_names"])

    def predict(self, inputs: ArrayLike | Mapping[str, ArrayLike], batch_size: int = BATCH_SIZE) -> Any:
        """Computes the outputs of the model, such as the logits of a classifier.

        Args:
          inputs: the input feature of the model as the data store it, such as images of uint8, with a leading
            axis of examples. Several features are given by name.
          batch_size: number of examples that are computed at once. The last batch is padded, so that the
            model is compiled once.

        Returns:
          NumPy arrays with one row for each example.

        Raises:
          UserError: a feature is missing, or has another shape or dtype than the stored ones.
        """
        given = inputs if isinstance(inputs, Mapping) else {self.record["input_name"]: inputs}
        features = self._checked("predict", given)
        size = len(next(iter(features.values())))
        step = min(batch_size, size)
        parts = []
        for start in range(0, size, step):
            rows = np.minimum(np.arange(start, start + step), size - 1)
            outputs = self._call("predict", {name: values[rows] for name, values in features.items()})
            parts.append(jax.tree.map(lambda x, n=size - start: np.asarray(x)[:n], outputs))
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    def prefill(
        self,
        tokens: ArrayLike,
        mask: ArrayLike | None = None,
        source: ArrayLike | None = None,
        source_mask: ArrayLike | None = None,
    ) -> tuple[np.ndarray, Cache]:
        """Reads prompts, and returns the logits of the next token, shape B × V, and the cache.

        Args:
          tokens: tokens of the prompts, shape B × T.
          mask: which of them are not padding. `None` means all. Padding may lie before or after a prompt.
          source: for a sequence-to-sequence model, the tokens that its encoder reads, shape B × S.
          source_mask: which of these are not padding. `None` means all.

        Raises:
          UserError: the model does not write sequences, a shape is wrong, or a prompt is too long.
        """
        length = self._length
        given: dict[str, Any] = {"tokens": tokens, "mask": mask, "source": source, "source_mask": source_mask}
        for name, of in (("mask", "tokens"), ("source_mask", "source")):
            if given[name] is None and given[of] is not None:
                given[name] = np.ones(np.shape(given[of]), bool)
        prompt = self._checked("prefill", {name: x for name, x in given.items() if x is not None})
        num_tokens = prompt["tokens"].shape[1]
        if not 1 <= num_tokens <= length:
            raise UserError(f"the prompts have {num_tokens} tokens; the model reads from 1 to {length}")
        bucket = min(max(SMALLEST_BUCKET, 1 << (num_tokens - 1).bit_length()), length)
        padding = ((0, 0), (0, bucket - num_tokens))
        padded = {name: np.pad(prompt[name], padding) for name in ("tokens", "mask")}
        logits_BV, arrays = self._call("prefill", {**prompt, **padded})
        return np.asarray(logits_BV), Cache(arrays, int(prompt["mask"].sum(1).max()))

    def decode(self, cache: Cache, tokens: ArrayLike) -> tuple[np.ndarray, Cache]:
        """Reads one more token of each row, and returns the logits of the next, shape B × V, and the cache.

        Args:
          cache: cache that `prefill` or `decode` returned.
          tokens: the next token of each row, shape B.

        Raises:
          UserError: the rows are full, or the shape is wrong.
        """
        if cache.num_tokens >= self._length:
            raise UserError(
                f"a row has {cache.num_tokens} tokens already, which is all that the model can read"
            )
        tokens_B = self._checked("decode", {"tokens": tokens})["tokens"]
        if len(tokens_B) != len(cache.arrays[0]):
            raise UserError(
                f"there are {len(tokens_B)} tokens for {len(cache.arrays[0])} rows; give one for each"
            )
        logits_BV, arrays = self._call("decode", cache.arrays, tokens_B)
        return np.asarray(logits_BV), Cache(arrays, cache.num_tokens + 1)

    def check(self) -> dict[str, float]:
        """Runs the self-test, and returns the largest difference of each function from the expected outputs.

        It is relative to the largest expected value, or to 1 if that is larger.

        Raises:
          UserError: a difference is larger than `record["tolerance"]` of the platform.
        """
        platform = self._platform()
        functions: dict[str, Callable[..., Any]] = {
            name: functools.partial(self._call, name) for name in self._functions
        }
        found = differences(functions, reader.tensors(self.folder / "self_test.safetensors"))
        tolerance = self.record["tolerance"][platform]
        for name, difference in found.items():
            if not difference <= tolerance:  # also where it is NaN
                raise UserError(
                    f"{self.folder}: the outputs of {name} differ from the expected ones by "
                    f"{difference:.1e} of the largest, and {platform} allows {tolerance:.0e}; a model must "
                    "compute each example alone, and be read by a JAX at most six months newer"
                )
        return found

    def _function(self, name: str) -> export.Exported:
        try:
            return reader.function(self.folder, name)
        except ImportError:
            raise
        except Exception as error:  # of flatbuffers or MLIR
            versions = self.record["versions"]
            raise UserError(
                f"{self.folder / f'{name}.jax_export'} cannot be read by JAX {jax.__version__}; JAX "
                f"{versions['jax']} wrote it: export the model again"
            ) from error

    def _platform(self) -> str:
        platform = export.default_export_platform()
        if platform not in self.record["platforms"]:
            raise UserError(
                f"{self.folder} was exported for {', '.join(self.record['platforms'])}, and this process "
                f"runs on {platform}; export the model again with --platforms {platform}"
            )
        return platform

    @property
    def _length(self) -> int:
        if "decode" not in self._functions:
            raise UserError(f"{self.folder} holds a model that does not write sequences; use predict")
        return self.record["length"]

    @functools.cached_property
    def _on_device(self) -> dict[str, jax.Array]:
        return jax.device_put(self.variables)

    @functools.cached_property
    def _compiled(self) -> dict[str, Any]:
        self._platform()
        return {name: jax.jit(function.call) for name, function in self._functions.items()}

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._compiled[name](self._on_device, *arguments)

    def _checked(self, function: str, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns the inputs of a function as arrays of the stored dtypes.

        Raises:
          UserError: a feature is missing or not known, or has another shape or dtype.
        """
        wanted = self.record["functions"][function]["inputs"]
        if "dtype" in wanted:
            wanted = {"tokens": wanted}
        if given.keys() != wanted.keys():
            raise UserError(
                f"{function} got {', '.join(given) or 'nothing'}; expected {', '.join(wanted)} by name"
            )
        features = {name: _as_stored(name, values, wanted[name]) for name, values in given.items()}
        if len({len(values) for values in features.values()}) > 1 or not len(next(iter(features.values()))):
            sizes = {name: len(values) for name, values in features.items()}
            raise UserError(f"the inputs have {sizes} examples; give the same number of each, at least one")
        return features


def load_exported(folder: Path | str) -> ExportedModel:
    """Loads a model that `python -m dl export` or `dl.inference.export.export_model` wrote.

    Every file is compared with its checksum. For example::

        model = dl.load_exported("runs/mine-export")
        logits = model.predict(images)

    Args:
      folder: the folder of the exported model.

    Raises:
      UserError: the folder does not hold an exported model, is damaged, or cannot be read by this version of
        JAX; or flatbuffers is not installed.
    """
    folder = expand(Path(folder))
    if not (folder / "SHA256SUMS").is_file():
        raise UserError(f"{folder} does not hold an exported model; give a folder that dl export wrote")
    return ExportedModel(folder)


def _as_stored(name: str, values: Any, wanted: Mapping[str, Any]) -> np.ndarray:
    """Returns the values of a feature in the dtype of the stored ones."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{name} is not an array ({error}); give every example the same shape") from None
    dtype, shape = np.dtype(wanted["dtype"]), wanted["shape"]
    fits = [isinstance(size, str) or size == given for size, given in zip(shape, array.shape, strict=False)]
    if array.ndim != len(shape) or not all(fits):
        raise UserError(f"{name} has the shape {array.shape}; expected ({', '.join(map(str, shape))})")
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "iu" and dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if limits.min <= array.min() and array.max() <= limits.max:
            return array.astype(dtype)
    elif np.can_cast(array.dtype, dtype, "same_kind") and array.dtype.kind != "b":
        return array.astype(dtype)
    raise UserError(f"{name} is given as {array.dtype}; the model reads {dtype} as the data store it")
