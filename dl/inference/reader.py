"""Reads an exported model with jax, numpy and flatbuffers alone.

A copy of this file lies in the folder of each exported model. For example::

    functions = reader.load(pathlib.Path("."))
    outputs = functions["predict"]({"image": images})
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export

DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
KINDS = {"F": "float", "I": "int", "U": "uint", "C": "complex"}


def load(folder: pathlib.Path) -> dict[str, Callable[..., Any]]:
    """Returns the functions of an exported model by name; raises ValueError if a file is damaged."""
    names = verified(folder)["functions"]
    variables = jax.device_put(tensors(folder / "variables.safetensors"))
    return {name: functools.partial(jax.jit(function(folder, name).call), variables) for name in names}


def verified(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the content of export.json; raises ValueError if a file does not match SHA256SUMS."""
    *lines, end = (folder / "SHA256SUMS").read_bytes().decode("latin-1").split("\n")
    for path, line in ((folder / line[66:], line) for line in lines):
        if not path.is_file() or line != f"{digest(path)}  {path.name}":
            raise ValueError(f"{path} is missing, or does not match SHA256SUMS")
    record = json.loads((folder / "export.json").read_bytes())
    if end or sorted(line[66:] for line in lines) != sorted([*record["files"], "export.json"]):
        raise ValueError(f"{folder / 'SHA256SUMS'} does not list the files of export.json")
    return record


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def function(folder: pathlib.Path, name: str) -> export.Exported:
    """Returns a function whose first argument is the variables by name."""
    return export.deserialize(bytearray((folder / f"{name}.jax_export").read_bytes()))


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name."""
    content = np.fromfile(path, np.uint8)
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)

    def array(dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
        values = content[start + data_offsets[0] : start + data_offsets[1]]
        return values.view(np.dtype(DTYPES.get(dtype) or KINDS[dtype[0]] + dtype[1:])).reshape(shape)

    return {name: array(**facts) for name, facts in header.items()}
