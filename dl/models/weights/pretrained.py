"""Weights from elsewhere: safetensors files in the layout of Hugging Face, read into the models of `dl`.

A safetensors file holds numbers only; nothing here reads a pickle, which could run code.

Needs the extra `weights`: pip install 'dl[weights]'.
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

# What NumPy raises for a shape or a type that a header claims, beside the errors of safetensors itself.
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

    An experiment starts from them by `init` of its task, which may give the network a new head:

        variables = model.init(key, batch["image"])
        load_pretrained("microsoft/resnet-50", variables, torch_names.resnet, skip=["head"])

    Args:
      source: a safetensors file, a folder with one (or with an index of several), or the name of a model on
        the Hugging Face hub, such as `microsoft/resnet-50`.
      variables: of the model, or their shapes: `jax.eval_shape(model.init, key, images)`.
      name_map: of the model's family, one of `dl.models.weights.names`.
      skip: modules at the top of the model that are not read, such as `head` where the number of classes is
        another or there is no head; what `variables` has of them is returned as it is.
      revision: on the hub, a commit, so that the name means the same weights for ever.
      fit: from a path, its values and the model's shape to values of that shape, where those of the source
        need not have it: `vit.fit_positions` for images of another size.

    Raises:
      UserError: if a tensor is missing, surplus or misshapen, or the source cannot be read.
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
                f"{source}: the tensor {name!r} has no place in a model of the family {name_map.__name__!r}"
            )
        path, values = mapped
        if path[1] in skip:
            skipped.add(path[1])
            continue
        if path in found:
            raise UserError(f"{source}: both {found[path][0]!r} and {name!r} are {'/'.join(path)}")
        if fit is not None and path in targets:
            values = fit(path, values, tuple(targets[path].shape))
        found[path] = name, values
    for module in skip:
        if module not in skipped:
            raise UserError(f"skip={module!r} is a module of neither the model nor {source}")
    wanted = {path: leaf for path, leaf in targets.items() if path not in kept}
    loaded = _fit(str(source), found, wanted)
    cast = {path: values.astype(wanted[path].dtype) for path, values in loaded.items()}
    return flax.traverse_util.unflatten_dict({path: {**kept, **cast}[path] for path in targets})


def save_safetensors(path: str | Path, tree: Any) -> None:
    """Writes a nested dict of arrays; the names in the file are the paths, joined by `/`.

    The file appears complete or not at all.

    Raises:
      UserError: if a key is no string or has a `/`, or a leaf is no array of a dtype that the format has.
    """
    from_numpy = _require("safetensors.numpy")
    tensors = {}
    for keys, leaf in flax.traverse_util.flatten_dict(dict(tree)).items():
        if not all(isinstance(key, str) and "/" not in key for key in keys):
            raise UserError(f"the key {keys} cannot be a name in a safetensors file; use strings without '/'")
        # In C order: safetensors writes the memory as it lies, whatever the strides.
        array = np.asarray(leaf, order="C")
        if array.dtype == object:
            raise UserError(f"{'/'.join(keys)} is of type {type(leaf).__name__}, expected an array")
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
      path: the file.
      like: a tree of arrays, or of their shapes, that the file must match; None to take what there is.

    Raises:
      UserError: if the file cannot be read, or a tensor is missing, surplus or misshapen.
    """
    found = {tuple(name.split("/")): (name, array) for name, array in read_tensors(path)}
    for keys, (name, _) in found.items():
        if inside := next((keys[:k] for k in range(1, len(keys)) if keys[:k] in found), None):
            raise UserError(f"{path}: {'/'.join(inside)!r} is a tensor, and {name!r} would lie inside it")
    if like is None:
        loaded = {keys: array for keys, (_, array) in found.items()}
    else:
        loaded = _fit(str(path), found, flax.traverse_util.flatten_dict(dict(like)))
    return flax.traverse_util.unflatten_dict(loaded)


def read_tensors(source: str | Path, *, revision: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and values of each tensor of a file, a folder, or a model on the hub.

    Raises:
      UserError: if there is no such source, or it is damaged.
    """
    safetensors = _require("safetensors")
    for file in _files(source, revision):
        if not file.is_file():
            raise UserError(f"{file} cannot be read as safetensors: it is not a regular file")
        try:
            with safetensors.safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118, it is no mapping
                    yield name, tensors.get_tensor(name)
        except (safetensors.SafetensorError, OSError, *_OF_A_HEADER) as error:
            raise UserError(f"{file} cannot be read as safetensors: {_one_line(error)}") from error


def _fit(
    source: str, found: dict[LinenPath, tuple[str, np.ndarray]], wanted: dict[LinenPath, Any]
) -> dict[LinenPath, np.ndarray]:
    """Returns the values for each wanted path; raises UserError naming the first that does not fit."""
    for path, (name, values) in found.items():
        where = "/".join(path)
        if path not in wanted:
            raise UserError(
                f"{source}: the tensor {name!r} is surplus, the model has no {where}; "
                "is it another size of the family, or a module to skip?"
            )
        leaf = wanted[path]
        if values.shape != tuple(leaf.shape):
            raise UserError(
                f"{source}: the tensor {name!r} has shape {values.shape} as {where}, "
                f"where the model has {tuple(leaf.shape)}"
            )
        if jnp.issubdtype(values.dtype, jnp.floating) != jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"{source}: the tensor {name!r} is {values.dtype}, where {where} is {leaf.dtype} in the model"
            )
    missing = ["/".join(path) for path in wanted if path not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{source}: no tensor for {missing[0]}{more}, which the model has")
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
                raise UserError(f"{index} names {outside!r}, which does not lie in its folder")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is no index of safetensors files: {_one_line(error)}") from error
        return [path / name for name in names]
    files = sorted(path.glob("*.safetensors"))
    if len(files) > 1:
        files = [file for file in files if file.name == "model.safetensors"] or files
    if len(files) != 1:
        raise UserError(
            f"{path} holds {len(files)} safetensors files, expected one, model.safetensors, or an index "
            f"{index.name}; pickled weights (.bin, .pt) are never read"
        )
    return files


def _fetch(name: str, revision: str | None) -> Path:
    """Returns the folder with the files of a model on the hub, fetched if they are not cached."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"no file or folder {name}, and it is no name of a model on the Hugging Face hub")
    hub = _require("huggingface_hub")
    patterns = ["*.safetensors", "*.safetensors.index.json"]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no file or folder {name}, and the Hugging Face hub does not give it: {_one_line(error)}"
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
    """Returns what `load_pretrained(source, ..., name_map, **options)` reads, for the submodule `under`.

    Its modules `skip` are not read: what the model has of them starts from the seed.
    """

    def start(model_shapes: Variables) -> Variables:
        shapes = {name: tree[under] for name, tree in model_shapes.items() if under in tree}
        if not shapes:
            known = ", ".join(model_shapes["params"])
            raise UserError(f"under={under!r} is no module of the model, expected one of {known}")
        return nested(load_pretrained(source, shapes, name_map, skip=skip, **options), under, drop=skip)

    return start
