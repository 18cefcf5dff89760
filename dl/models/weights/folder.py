"""The tensors of a language model in a folder, read and written by the table of its family."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.models.blocks.scan import stack_layers, unstack_layers
from dl.models.weights.family import Family
from dl.models.weights.files import read_tensors, write_tensors
from dl.system.files import replace_text
from dl.types import Params
from dl.warm_start import ADAPTERS

Found = dict[tuple[str, ...], tuple[str, np.ndarray]]
"""Name and values of the tensor of each path. A path starts with `params`."""


def read_family(folder: Path, family: Family, model: Any) -> Found:
    """Returns the name and values of the tensor of each path, without those that the file lacks."""
    rows = {row.name.removeprefix(family.prefix): row for row in family.tensors(model)}
    copies = {
        copy.removeprefix(family.prefix): original.removeprefix(family.prefix)
        for copy, original in family.copies(model).items()
    }
    tensors: dict[str, np.ndarray] = {}
    for full_name, tensor in read_tensors(folder):
        name = full_name.removeprefix(family.prefix)
        for old, new in family.spellings.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if name not in rows and name not in copies:
            if re.search(family.ignored, name):
                continue
            raise UserError(
                f"{folder}: the tensor {full_name!r} does not belong to the {type(model).__name__} that its "
                "config.json describes; use another model"
            )
        tensors[name] = tensor
    for copy, original in copies.items():
        if copy in tensors:
            values = tensors.pop(copy)
            if not np.array_equal(tensors.setdefault(original, values), values):
                raise UserError(
                    f"{folder}: the tensors {copy!r} and {original!r} differ, and the config.json says that "
                    "they are tied; use another model"
                )
    found: Found = {}
    for name, tensor in tensors.items():
        row = rows[name]
        parts = row.layout.split(tensor, len(row.paths))
        # A fused tensor of a wrong shape stays whole, so that a later check reports its shape.
        for path, part in zip(row.paths, parts, strict=False):
            found["params", *path.split("/")] = row.name, part
    return found


def stack_found(found: Found) -> Found:
    """Returns what was read for a model whose layers are scanned."""
    arrays = stack_layers(unflatten_dict({path: array for path, (_, array) in found.items()}))

    def name(path: tuple[str, ...]) -> str:
        return found[path if path in found else tuple("layer0" if p == "layer" else p for p in path)][0]

    return {path: (name(path), array) for path, array in flatten_dict(arrays).items()}


def tensors_of(family: Family, model: Any, params: Params) -> dict[str, np.ndarray]:
    """Returns the tensors of a model by name."""
    if family.base_of(model).is_scanned:
        params = unstack_layers(params)
    leaves = flatten_dict(params, sep="/")
    rows = family.tensors(model)
    known = {path for row in rows for path in row.paths}
    if adapters := [path for path in leaves if path.rpartition("/")[2] in ADAPTERS]:
        raise UserError(
            f"the parameters hold adapters ({adapters[0]}); merge them first, by dl.methods.lora.merge"
        )
    if missing := sorted(known - leaves.keys()):
        raise UserError(f"the variables lack {missing[0]} of the model; give those of the same model")
    if unknown := sorted(leaves.keys() - known):
        raise UserError(f"the model has no {unknown[0]}; give the variables of the same model")
    return {row.name: row.layout.join([np.asarray(leaves[path]) for path in row.paths]) for row in rows}


def write_shards(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    """Writes model.safetensors, or several files of at most this size and their index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + array.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    count = len(shards)
    files = {
        "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }
    for name, shard in files.items():
        write_tensors(folder / name, shard, {"format": "pt"})  # transformers refuses a file without it
    if count > 1:
        index = {
            "metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
            "weight_map": {tensor: name for name, shard in files.items() for tensor in shard},
        }
        replace_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
