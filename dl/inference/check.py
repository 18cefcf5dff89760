"""Runs the self-test of an exported model: `python check.py` in its folder, beside reader.py."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

MAX_VALUES = 2**14  # of each example that are compared


def differences(functions: dict[str, Callable[..., Any]], test: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the largest difference of each function's outputs from the expected ones.

    It is relative to the largest expected value, or to 1 if that is larger.

    Args:
      functions: the functions by name, as `reader.load` returns them.
      test: the arrays of self_test.safetensors.
    """
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
    """Returns the values of an array of outputs that are compared, as float64: at most MAX_VALUES a row."""
    rows = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    return rows[:, :: max(1, -(-rows.shape[1] // MAX_VALUES))]


def _inputs(test: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    start = f"{name}/inputs/"
    return {key.removeprefix(start): array for key, array in test.items() if key.startswith(start)}


def _difference(made: np.ndarray, expected: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # of infinities
        gap = np.where((made == expected) | (np.isnan(made) & np.isnan(expected)), 0, np.abs(made - expected))
    return float(gap.max(initial=0) / np.abs(expected).max(initial=1, where=np.isfinite(expected)))


if __name__ == "__main__":
    import reader  # type: ignore[import-not-found]  # beside this file

    here = pathlib.Path(__file__).parent
    found = differences(reader.load(here), reader.tensors(here / "self_test.safetensors"))
    print("largest difference from the expected outputs, relative to the largest of them:", found)
