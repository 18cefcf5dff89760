"""The comparison of two runs: the recorded options and facts that a resumed run must not change."""

import enum
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAX_SHOWN = 6  # differences in one message
# The names of settings that older versions recorded, and their present names.
RENAMED = {"report_every": "eval_every", "report_start": "eval_at_start", "target": "stop_at"}


def as_recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as run.json records them. Values that are not JSON, such as paths, become text."""
    return {str(name): _recorded(value) for name, value in options.items()}


def _recorded(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name  # as the command line spells it
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return as_recorded(value)
    if isinstance(value, tuple | list):
        return [_recorded(item) for item in value]
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], legacy_code: str = "", *, is_strict: bool = False
) -> list[str]:
    """Returns text about each difference in experiment, code, options and data.

    Devices and versions may differ.

    Args:
      there: the content of run.json.
      here: the same facts about the present run, as far as they are known.
      legacy_code: the digest of the present code as runs without an `id` recorded it.
      is_strict: whether an experiment without code of its own, as in a notebook, is told apart from one that
        was begun under other versions. Only its traces tell what it computes, and they differ by version.
    """
    code = there.get("code")
    is_same_code = code and "id" not in there and code == legacy_code
    pairs = [("experiment", there.get("experiment"), here["experiment"])]
    pairs += [] if is_same_code else [("code", code, here["code"])]
    if "initial" in here:  # else it is not known yet
        pairs.append(("initial", there.get("initial"), here["initial"]))
    for group in ("options", "dataset"):
        old, new = there.get(group) or {}, here.get(group) or {}
        if group == "dataset":  # older versions did not record what is empty here
            old, new = ({key: value for key, value in data.items() if value != ""} for data in (old, new))
        pairs += [(key, old.get(key), new.get(key)) for key in {**old, **new}]
    for group in ("numerics", "settings"):  # another version may record other keys
        old, new = there.get(group) or {}, here.get(group) or {}
        old = {RENAMED.get(key, key): value for key, value in old.items()}
        pairs += [(key, old[key], new[key]) for key in old if key in new]
    found = [
        f"{name}: {json.dumps(old)} there, {json.dumps(new)} here"
        for name, old, new in pairs
        if not _is_same(old, new)
    ]
    old, new = there.get("traced") or {}, here.get("traced") or {}
    if old.get("under") == new.get("under"):
        keys = [key for key in old if key in new and key != "under"]
        found += [f"the {key} computes something else" for key in keys if not _is_close(old[key], new[key])]
    elif old and new and is_strict and not here.get("code"):
        found.append("it was begun under other versions, so what it computes cannot be compared")
    return found


def in_one_line(found: Sequence[str]) -> str:
    """Returns differences as the middle of an error message; of many, the first ones and how many more."""
    more = [f"{len(found) - MAX_SHOWN} more differences"] if len(found) > MAX_SHOWN else []
    return "; ".join([*found[:MAX_SHOWN], *more])


def _is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; NaN equals NaN."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return one == other


def _is_close(one: Any, other: Any) -> bool:
    """Whether two computations are the same: equal digests, and equal numbers up to rounding."""
    (digest, numbers), (other_digest, other_numbers) = one, other
    pairs = zip(numbers, other_numbers, strict=True)
    return digest == other_digest and all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in pairs)
