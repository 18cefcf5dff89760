"""JSON files that carry a digest of their content, so that what is damaged is noticed and never believed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dl.errors import UserError
from dl.system.files import read_regular, replace_text, storage_error

DIGEST_KEY = "sha256"
MAX_JSON_BYTES = 2**30
_MAX_DEPTH = 64


def write_json(path: Path, value: Any) -> Any:
    """Writes JSON so that a reader sees the old file or the new one; returns what `read_json` will.

    A mapping gets the key `sha256`, the digest of the rest, which `read_json` checks and takes off.

    Raises:
      UserError: it cannot be written.
    """
    value = json.loads(json.dumps(value))
    stored = value
    if isinstance(value, dict):
        value.pop(DIGEST_KEY, None)
        stored = {**value, DIGEST_KEY: json_digest(value)}
    try:
        replace_text(path, json.dumps(stored, indent=2) + "\n")
    except OSError as error:
        raise storage_error(path, error) from error
    return value


def read_json(
    path: Path,
    hint: str = "restore it from a copy, or make it again",
    max_bytes: int = MAX_JSON_BYTES,
) -> Any:
    """Returns what a JSON file says, None if there is none; one without a digest, as of old, is believed.

    Args:
      path: of the file.
      hint: what to do about a damaged one.
      max_bytes: that it may have.

    Raises:
      UserError: it is damaged, too large or nested too deeply, or is not a regular file.
    """
    try:
        value = json.loads(read_regular(path, max_bytes).decode("utf-8"))
        if _is_too_deep(value):
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        digest = value.pop(DIGEST_KEY, None) if isinstance(value, dict) else None
        if digest is not None and digest != json_digest(value):
            raise ValueError("its content does not match its digest")
    except FileNotFoundError:
        return None
    except RecursionError:
        raise UserError(f"{path} is damaged (it is nested more than {_MAX_DEPTH} deep); {hint}") from None
    except ValueError as error:  # no UTF-8, no JSON, a number of thousands of digits
        brief = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({brief}); {hint}") from None
    return value


def _is_too_deep(value: Any) -> bool:
    # A level at a time: what walks through the value afterwards may be a recursion.
    level = [value]
    for _ in range(_MAX_DEPTH):
        branches = [branch for branch in level if isinstance(branch, dict | list)]
        level = [item for b in branches for item in (b.values() if isinstance(b, dict) else b)]
        if not branches:
            return False
    return True


def json_digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, which neither layout nor the order of keys changes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
