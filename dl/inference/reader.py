"""Reads an exported model with jax, numpy and flatbuffers alone. `python reader.py` runs its self-test.

A copy of this file lies in the folder of each exported model. For example::

    functions = load(pathlib.Path("."))
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

_DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_KINDS = {"F": "float", "I": "int", "U": "uint", "C": "complex"}
_MAX_VALUES = 2**14  # of each example that a self-test compares


def load(folder: pathlib.Path) -> dict[str, Callable[..., Any]]:
    """Returns the functions of an exported model by name; raises ValueError if a file is damaged."""
    record = verified(folder)
    variables = jax.device_put(tensors(folder / "variables.safetensors"))
    return {
        name: functools.partial(jax.jit(function(folder, name).call), variables)
        for name in record["functions"]
    }


def verified(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the content of export.json; raises ValueError if a file does not match SHA256SUMS."""
    *lines, end = (folder / "SHA256SUMS").read_bytes().decode("latin-1").split("\n")
    for path, line in ((folder / line[66:], line) for line in lines):
        if path.parent != folder or not path.is_file() or line != f"{_digest(path)}  {path.name}":
            raise ValueError(f"{path} is missing, or does not match SHA256SUMS")
    record = json.loads((folder / "export.json").read_bytes())
    if end or sorted(line[66:] for line in lines) != sorted([*record["files"], "export.json"]):
        raise ValueError(f"{folder / 'SHA256SUMS'} does not list the files of export.json")
    return record


def function(folder: pathlib.Path, name: str) -> export.Exported:
    """Returns a function whose first argument is the variables by name."""
    return export.deserialize(bytearray((folder / f"{name}.jax_export").read_bytes()))


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name."""
    content = np.fromfile(path, np.uint8)
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    arrays = {}
    for name, facts in header.items():
        if name != "__metadata__":
            kind, (begin, stop) = facts["dtype"], facts["data_offsets"]
            values = content[start + begin : start + stop]
            dtype = _DTYPES.get(kind) or _KINDS[kind[0]] + kind[1:]
            arrays[name] = values.view(np.dtype(dtype)).reshape(facts["shape"])
    return arrays


def differences(folder: pathlib.Path, functions: dict[str, Callable[..., Any]]) -> dict[str, float]:
    """Returns the largest difference of each function's outputs from those of the self-test.

    It is relative to the largest expected value, or to 1 if that is larger.
    """
    test = tensors(folder / "self_test.safetensors")
    made = {"predict": functions["predict"](_inputs(test, "predict"))}
    if "decode" in functions:
        made["prefill"], cache = functions["prefill"](_inputs(test, "prefill"))
        made["decode"], _ = functions["decode"](cache, test["decode/inputs/tokens"])
    return {
        name: max(
            _difference(compared(leaf), test[f"{name}/outputs/{number}"])
            for number, leaf in enumerate(jax.tree.leaves(outputs))
        )
        for name, outputs in made.items()
    }


def compared(outputs: Any) -> np.ndarray:
    """Returns the values of an array of outputs that a self-test compares, as float64."""
    rows = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    return rows[:, :: max(1, -(-rows.shape[1] // _MAX_VALUES))]


def _inputs(test: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    start = f"{name}/inputs/"
    return {key.removeprefix(start): array for key, array in test.items() if key.startswith(start)}


def _difference(made: np.ndarray, expected: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # of infinities
        gap = np.where((made == expected) | (np.isnan(made) & np.isnan(expected)), 0, np.abs(made - expected))
    return float(gap.max(initial=0) / np.abs(expected).max(initial=1, where=np.isfinite(expected)))


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    print("largest relative differences:", differences(here, load(here)))
