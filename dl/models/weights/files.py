"""Safetensors files: reading and writing them, also in the shards of a folder or from the Hugging Face hub.

A safetensors file holds only numbers. Pickled files are never read, because they could run code.

This module needs the extra `weights`: pip install 'dl[weights]'.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.models.weights.names import LinenPath
from dl.system.files import replace_file
from dl.system.json_files import read_json
from dl.system.text import printable

# The errors that NumPy raises for an invalid shape or type in a header, in addition to those of safetensors.
_OF_A_HEADER = (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def save_safetensors(path: str | Path, tree: Any, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a nested dict of arrays. The names in the file are the paths, joined by `/`.

    The file is written completely or not at all.

    Args:
      path: path of the file. Its folder is created if it does not exist.
      tree: nested dict of arrays.
      metadata: texts that the file keeps beside the arrays; see `read_metadata`.

    Raises:
      UserError: a key is not a string or contains `/`, or a leaf is not an array of a supported dtype.
    """
    tensors = {}
    for keys, leaf in flax.traverse_util.flatten_dict(dict(tree)).items():
        if not all(isinstance(key, str) and "/" not in key for key in keys):
            raise UserError(f"the key {keys} cannot be a name in a safetensors file; use strings without '/'")
        tensors["/".join(keys)] = np.asarray(leaf)
    write_tensors(Path(path), tensors, metadata)


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays under their names into a safetensors file, completely or not at all.

    Raises:
      UserError: a value is not an array of a supported dtype.
    """
    in_c_order = {}
    for name, array in tensors.items():
        if array.dtype == object:
            raise UserError(f"{name} is of type object; it must be an array of numbers")
        in_c_order[name] = np.asarray(array, order="C")  # because safetensors ignores strides
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        content = _require("safetensors.numpy").save(in_c_order, metadata)
    except _require("safetensors").SafetensorError as error:
        raise UserError(f"{path}: {_one_line(error)}") from error
    replace_file(path, lambda file: file.write(content))


def load_safetensors(path: str | Path, like: Any = None) -> Any:
    """Returns the nested dict of NumPy arrays that `save_safetensors` wrote, bit for bit.

    Args:
      path: path of the file.
      like: tree of arrays, or of their shapes, that the file must match. `None` means that every file is
        accepted.

    Raises:
      UserError: the file cannot be read, or a tensor is missing, unexpected or has another shape.
    """
    found = {tuple(name.split("/")): (name, array) for name, array in read_tensors(path)}
    for keys, (name, _) in found.items():
        if inside := next((keys[:k] for k in range(1, len(keys)) if keys[:k] in found), None):
            raise UserError(
                f"{path}: {'/'.join(inside)!r} is a tensor, so there cannot be a tensor {name!r}; rename one"
            )
    if like is None:
        loaded = {keys: array for keys, (_, array) in found.items()}
    else:
        loaded = fit_to(str(path), found, flax.traverse_util.flatten_dict(dict(like)))
    return flax.traverse_util.unflatten_dict(loaded)


def read_tensors(source: str | Path, *, revision: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and values of each tensor of a file, a folder, or a model on the hub.

    Raises:
      UserError: the source does not exist, or is damaged.
    """
    safetensors = _require("safetensors")
    for file in _files(source, revision):
        if not file.is_file():
            raise UserError(f"{file} cannot be read as safetensors: it is not a regular file")
        try:
            with safetensors.safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118, it is not a mapping
                    yield name, tensors.get_tensor(name)
        except (safetensors.SafetensorError, OSError, *_OF_A_HEADER) as error:
            raise UserError(f"{file} cannot be read as safetensors: {_one_line(error)}") from error


def fit_to(
    source: str, found: dict[LinenPath, tuple[str, np.ndarray]], wanted: dict[LinenPath, Any]
) -> dict[LinenPath, np.ndarray]:
    """Returns the values for each wanted path. Raises UserError for the first one that does not fit."""
    for path, (name, values) in found.items():
        path_text = "/".join(path)
        if path not in wanted:
            raise UserError(
                f"{source}: the tensor {name!r} is not expected, because the model has no {path_text}; "
                "use the model of the same size, or skip the module"
            )
        leaf = wanted[path]
        if values.shape != tuple(leaf.shape):
            raise UserError(
                f"{source}: the tensor {name!r} has shape {values.shape} as {path_text}, and the model needs "
                f"{tuple(leaf.shape)}; use the model of the same size, or skip the module"
            )
        if jnp.issubdtype(values.dtype, jnp.floating) != jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"{source}: the tensor {name!r} is {values.dtype}, and {path_text} is {leaf.dtype} in the "
                "model; use another source"
            )
    missing = ["/".join(path) for path in wanted if path not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{source}: there is no tensor for {missing[0]}{more} of the model; use the model of the same "
            "size, or skip the module"
        )
    return {path: found[path][1] for path in wanted}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns the texts that a safetensors file holds beside its arrays.

    Raises:
      UserError: the file cannot be read.
    """
    safetensors = _require("safetensors")
    if not Path(path).is_file():
        raise UserError(f"{path} cannot be read as safetensors: it is not a regular file")
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            return dict(tensors.metadata() or {})
    except (safetensors.SafetensorError, OSError, *_OF_A_HEADER) as error:
        raise UserError(f"{path} cannot be read as safetensors: {_one_line(error)}") from error


def local_copy(source: str | Path, revision: str | None = None, more: Sequence[str] = ()) -> Path:
    """Returns a file or folder as it is, or the folder of a model on the hub, downloaded if it is not cached.

    Args:
      source: path, or name of a model on the hub.
      revision: commit on the hub. `None` means the newest commit.
      more: patterns of the files that are needed beside the weights.

    Raises:
      UserError: the source does not exist.
    """
    path = Path(source).expanduser()
    return path if path.exists() else _fetch(str(source), revision, [*_WEIGHTS, *more])


def _files(source: str | Path, revision: str | None) -> list[Path]:
    path = local_copy(source, revision)
    if not path.is_dir():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            if outside := next((name for name in names if Path(name).name != name), None):
                raise UserError(f"{index} names {outside!r}, which is not in its folder; correct the index")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is not an index of safetensors files: {_one_line(error)}") from error
        return [path / name for name in names]
    files = sorted(path.glob("*.safetensors"))
    if len(files) > 1:
        files = [file for file in files if file.name == "model.safetensors"] or files
    if len(files) != 1:
        raise UserError(
            f"{path} holds {len(files)} safetensors files; it must hold one, model.safetensors, or an index "
            f"{index.name} (pickled weights, .bin and .pt, are never read)"
        )
    return files


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"there is no file or folder {name}, and it is not a name of a model on the Hugging Face hub; "
            "give a path, or a name such as microsoft/resnet-50"
        )
    hub = _require("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no file or folder {name}, and it cannot be downloaded from the Hugging Face hub: "
            f"{_one_line(error)}"
        ) from error


def _require(module: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise UserError(f"{module} is not installed; pip install 'dl[weights]'") from error


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:200]
