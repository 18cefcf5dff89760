"""Pretrained weights: safetensors files in the layout of Hugging Face, read into the models of `dl`.

A safetensors file holds only numbers. Pickled files are never read, because they could run code.

This module needs the extra `weights`: pip install 'dl[weights]'.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.models.weights.names import LinenPath, NameMap
from dl.system.files import replace_file
from dl.system.json_files import read_json
from dl.system.text import printable
from dl.types import Variables
from dl.warm_start import WarmStart, nested

# The errors that NumPy raises for an invalid shape or type in a header, in addition to those of safetensors.
_OF_A_HEADER = (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError)
Fit = Callable[[LinenPath, np.ndarray, tuple[int, ...]], np.ndarray]


def load_pretrained(
    source: str | Path,
    variables: Variables,
    name_map: NameMap,
    *,
    skip: Sequence[str] = (),
    revision: str | None = None,
    fit: Fit | None = None,
) -> Variables:
    """Returns `variables` with the values of `source`, as NumPy arrays in the dtypes of `variables`.

    For example, this keeps the new head of a network::

        variables = model.init(key, batch["image"])
        load_pretrained("microsoft/resnet-50", variables, torch_names.resnet, skip=["head"])

    Args:
      source: a safetensors file, a folder with one file or with an index of several files, or the name of a
        model on the Hugging Face hub, such as `microsoft/resnet-50`.
      variables: the variables of the model, or their shapes: `jax.eval_shape(model.init, key, images)`.
      name_map: name map of the model's family, from `dl.models.weights.names`.
      skip: top-level modules of the model that are not read, such as `head` for another number of classes.
        Their values in `variables` are returned unchanged.
      revision: commit on the hub, so that the weights cannot change later. `None` means the newest commit.
      fit: function from a path, its values and the shape in the model to values of that shape, if the shapes
        differ: `vit.fit_positions` for images of another size.

    Raises:
      UserError: a tensor is missing, unexpected or has another shape, or the source cannot be read.
    """
    targets = flax.traverse_util.flatten_dict(dict(variables))
    kept = {path: leaf for path, leaf in targets.items() if path[1] in skip}
    found: dict[LinenPath, tuple[str, np.ndarray]] = {}
    skipped = {path[1] for path in kept}
    for name, array in read_tensors(source, revision=revision):
        if name.endswith(".num_batches_tracked"):  # PyTorch's counter, without effect at a fixed momentum
            continue
        mapped = name_map(name, array)
        if mapped is None:
            raise UserError(
                f"{source}: the tensor {name!r} does not belong to the model family {name_map.__name__!r}; "
                "use another name map or another source"
            )
        path, values = mapped
        if path[1] in skip:
            skipped.add(path[1])
            continue
        if path in found:
            raise UserError(
                f"{source}: both tensors {found[path][0]!r} and {name!r} map to {'/'.join(path)}; remove one"
            )
        if fit is not None and path in targets:
            values = fit(path, values, tuple(targets[path].shape))
        found[path] = name, values
    for module in skip:
        if module not in skipped:
            raise UserError(
                f"skip={module!r} is neither a module of the model nor of {source}; remove or correct it"
            )
    wanted = {path: leaf for path, leaf in targets.items() if path not in kept}
    loaded = _fit(str(source), found, wanted)
    cast = {path: values.astype(wanted[path].dtype) for path, values in loaded.items()}
    return flax.traverse_util.unflatten_dict({path: {**kept, **cast}[path] for path in targets})


def save_safetensors(path: str | Path, tree: Any) -> None:
    """Writes a nested dict of arrays. The names in the file are the paths, joined by `/`.

    The file is written completely or not at all.

    Raises:
      UserError: a key is not a string or contains `/`, or a leaf is not an array of a supported dtype.
    """
    from_numpy = _require("safetensors.numpy")
    tensors = {}
    for keys, leaf in flax.traverse_util.flatten_dict(dict(tree)).items():
        if not all(isinstance(key, str) and "/" not in key for key in keys):
            raise UserError(f"the key {keys} cannot be a name in a safetensors file; use strings without '/'")
        # The array must be in C order, because safetensors ignores strides.
        array = np.asarray(leaf, order="C")
        if array.dtype == object:
            raise UserError(f"{'/'.join(keys)} is of type {type(leaf).__name__}; it must be an array")
        tensors["/".join(keys)] = array
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        content = from_numpy.save(tensors)
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
        loaded = _fit(str(path), found, flax.traverse_util.flatten_dict(dict(like)))
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


def _fit(
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


def _files(source: str | Path, revision: str | None) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        path = _fetch(str(source), revision)
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


def _fetch(name: str, revision: str | None) -> Path:
    """Returns the folder with the files of a model on the hub. They are downloaded if they are not cached."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"there is no file or folder {name}, and it is not a name of a model on the Hugging Face hub; "
            "give a path, or a name such as microsoft/resnet-50"
        )
    hub = _require("huggingface_hub")
    patterns = ["*.safetensors", "*.safetensors.index.json"]
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


def pretrained(
    source: str | Path, name_map: NameMap, under: str, skip: Sequence[str] = (), **options: Any
) -> WarmStart:
    """Returns a warm start of the submodule `under` with pretrained weights.

    Args:
      source: source of the weights, as for `load_pretrained`.
      name_map: name map of the submodule's family.
      under: name of the submodule.
      skip: modules of the submodule that are not read. They are initialised at random.
      options: other options of `load_pretrained`.
    """

    def start(model_shapes: Variables) -> Variables:
        shapes = {name: tree[under] for name, tree in model_shapes.items() if under in tree}
        if not shapes:
            known = ", ".join(model_shapes["params"])
            raise UserError(f"under={under!r} is not a module of the model; it must be one of {known}")
        return nested(load_pretrained(source, shapes, name_map, skip=skip, **options), under, drop=skip)

    return start
