"""JSON files with a digest of their content, so that damaged files are detected."""

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
    """Writes JSON so that a reader sees either the old or the new file. Returns what `read_json` returns.

    A mapping is written with an extra key `sha256`, the digest of the other keys. `read_json` checks and
    removes it.

    Raises:
      UserError: the file cannot be written.
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
    hint: str = "restore it from a copy, or create it again",
    max_bytes: int = MAX_JSON_BYTES,
) -> Any:
    """Returns the value of a JSON file, or None if the file does not exist.

    A file without a digest, as older versions wrote, is read without a check.

    Args:
      path: path of the file.
      hint: advice for a damaged file, which ends the error message.
      max_bytes: largest size of the file.

    Raises:
      UserError: the file is damaged, too large, nested too deeply, or not a regular file.
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
    except ValueError as error:  # not UTF-8, not JSON, or a number with thousands of digits
        brief = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({brief}); {hint}") from None
    return value


def _is_too_deep(value: Any) -> bool:
    # This goes level by level, because later code may be recursive.
    level = [value]
    for _ in range(_MAX_DEPTH):
        branches = [branch for branch in level if isinstance(branch, dict | list)]
        level = [item for b in branches for item in (b.values() if isinstance(b, dict) else b)]
        if not branches:
            return False
    return True


def json_digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value. It depends neither on the layout nor on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
