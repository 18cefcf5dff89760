"""Token files: sequences of tokens on disk, which may be larger than memory.

A folder of `token_writer.write_tokens` has shards NAME.bin, which hold the tokens as little-endian unsigned
integers and nothing else, and `index.json`. `read_tokens` maps it into memory. It also reads the files .bin
of nanoGPT, which are the same without an index, and those of llm.c, which have a header of 1024 bytes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dl.data.text.contract import Tokenizer
from dl.data.text.tokenizer import tokenizer_from_json
from dl.errors import UserError
from dl.system.files import file_digest
from dl.system.json_files import read_json

INDEX = "index.json"
MAX_VERIFIED_BYTES = 2**28  # a larger set is not read completely when it is opened
_HEADER = 256  # numbers of 4 bytes in the header of llm.c
# The first number in a file of llm.c, for tokens of GPT-2 and of Llama 3, and the type of its tokens.
_MAGIC: dict[int, np.dtype] = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}


class TokenFiles:
    """The tokens of several files, one after the other, as one sequence with random access.

    Attributes:
      dtype: the type of a token.
      checksum: SHA-256 of the tokens. Of a large set without an index it is over the names and sizes of the
        files.
      tokenizer: the tokenizer that made the tokens, if it is known.
      num_bytes: size of the text in bytes of UTF-8, if it is known.
    """

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        checksum: str,
        tokenizer: Tokenizer | None = None,
        num_bytes: int | None = None,
    ):
        """Joins arrays of the same type, such as `np.memmap`. Nothing is read."""
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.dtype: np.dtype = parts[0].dtype
        self.checksum = checksum
        self.tokenizer = tokenizer
        self.num_bytes = num_bytes

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, positions: Any) -> np.ndarray:
        """Returns the tokens at positions, an array of any shape or a slice of step 1."""
        if isinstance(positions, slice):
            return np.concatenate([*self._cut(*positions.indices(len(self))[:2]), np.empty(0, self.dtype)])
        positions = np.asarray(positions)
        if len(self._parts) == 1:
            return self._parts[0][positions]
        part_of = np.searchsorted(self._ends, positions, "right")
        tokens = np.empty(positions.shape, self.dtype)
        for k in np.unique(part_of):
            mine = part_of == k
            tokens[mine] = self._parts[k][positions[mine] - self._ends[k] + len(self._parts[k])]
        return tokens

    def part(self, start: int, stop: int) -> "TokenFiles":
        """Returns the tokens start, …, stop - 1. Nothing is read."""
        checksum = hashlib.sha256(f"{self.checksum} {start} {stop}".encode()).hexdigest()
        return TokenFiles(self._cut(start, stop), checksum, self.tokenizer)

    def then(self, other: "TokenFiles") -> "TokenFiles":
        """Returns these tokens and then those of another one, which has the same type. Nothing is read."""
        checksum = hashlib.sha256(f"{self.checksum} {other.checksum}".encode()).hexdigest()
        both = (self.num_bytes, other.num_bytes)
        num_bytes = None if None in both else sum(filter(None, both))
        return TokenFiles([*self._parts, *other._parts], checksum, self.tokenizer, num_bytes)

    def _cut(self, start: int, stop: int) -> list[np.ndarray]:
        starts = self._ends - [len(part) for part in self._parts]
        cut = [
            part[max(start - first, 0) : max(stop - first, 0)]
            for part, first in zip(self._parts, starts.tolist(), strict=True)
        ]
        return [part for part in cut if len(part)] or cut[:1]


def read_tokens(path: str | Path, tokenizer: Tokenizer | None = None) -> TokenFiles:
    """Returns the tokens of a folder of `token_writer.write_tokens`, or of files .bin of nanoGPT or llm.c.

    The files are mapped into memory. The checksums of the shards of at most `MAX_VERIFIED_BYTES` are checked.
    Of a larger set only the sizes are checked; `verify_tokens` checks the rest.

    Args:
      path: the folder, or one file .bin.
      tokenizer: the tokenizer that must have made the tokens. `None` means any.

    Raises:
      UserError: a file is missing or damaged, or another tokenizer made the tokens.
    """
    path = Path(path).expanduser()
    if not (path / INDEX).exists():
        return read_bare_files(_files_in(path), tokenizer)
    index = _read_index(path)
    if tokenizer is not None and tokenizer.digest != index.tokenizer.digest:
        raise UserError(
            f"{path} was written by another tokenizer ({index.tokenizer!r}) than the given one "
            f"({tokenizer!r}); use the tokenizer of the folder, or write the tokens again"
        )
    if index.num_tokens * index.dtype.itemsize <= MAX_VERIFIED_BYTES:
        _verify(path, index)
    parts = [_map(path / name, index.dtype, 0, size, _again(path)) for name, size, _ in index.shards]
    checksum = hashlib.sha256(repr([index.dtype.str, index.shards]).encode()).hexdigest()
    return TokenFiles(parts, checksum, index.tokenizer, index.num_bytes)


def read_bare_files(paths: Sequence[Path], tokenizer: Tokenizer | None = None) -> TokenFiles:
    """Returns the tokens of files without an index, of nanoGPT or llm.c; see `read_tokens`."""
    parts = []
    for path in paths:
        dtype, offset, size = _describe_bare(path)
        parts.append(_map(path, dtype, offset, size, "copy it again"))
    if len({part.dtype for part in parts}) > 1:
        raise UserError(f"the files in {paths[0].parent} have tokens of 2 and of 4 bytes; keep one kind")
    is_small = sum(part.nbytes for part in parts) <= MAX_VERIFIED_BYTES
    facts = [
        (p.name, len(part), file_digest(p) if is_small else "") for p, part in zip(paths, parts, strict=True)
    ]
    return TokenFiles(parts, hashlib.sha256(repr(facts).encode()).hexdigest(), tokenizer)


def verify_tokens(folder: str | Path) -> None:
    """Reads all shards of a folder of `token_writer.write_tokens` and compares them with their checksums.

    Raises:
      UserError: a file is missing or damaged.
    """
    folder = Path(folder).expanduser()
    _verify(folder, _read_index(folder))


@dataclass(frozen=True)
class _Index:
    """The content of `index.json`. Each shard has a name, a number of tokens and a SHA-256."""

    dtype: np.dtype
    shards: Sequence[tuple[str, int, str]]
    tokenizer: Tokenizer
    num_bytes: int

    @property
    def num_tokens(self) -> int:
        return sum(size for _, size, _ in self.shards)


def _read_index(folder: Path) -> _Index:
    index = read_json(folder / INDEX, _again(folder))
    try:
        shards = [(str(s["name"]), int(s["tokens"]), str(s["sha256"])) for s in index["shards"]]
        if not shards or any(Path(name).name != name or size < 1 for name, size, _ in shards):
            raise ValueError("its list of shards is not valid")
        dtype, num_bytes = np.dtype(str(index["dtype"])), int(index["num_bytes"])
        if dtype not in _MAGIC.values():
            raise ValueError(f"its tokens are {dtype}, expected uint16 or uint32")
        return _Index(dtype, shards, tokenizer_from_json(index["tokenizer"]), num_bytes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is damaged ({error!r:.80}); {_again(folder)}") from None


def _verify(folder: Path, index: _Index) -> None:
    for name, size, checksum in index.shards:
        path = folder / name
        _map(path, index.dtype, 0, size, _again(folder))
        if file_digest(path) != checksum:
            raise UserError(f"{path} is damaged (its content does not match its checksum); {_again(folder)}")


def _again(folder: Path) -> str:
    return f"delete {folder} and write the tokens again, or copy them again"


def _map(path: Path, dtype: np.dtype, offset: int, size: int, hint: str) -> np.ndarray:
    """Returns the tokens of a file, mapped into memory, after a check of its size."""
    try:
        held = path.stat().st_size
        if held != offset + size * dtype.itemsize:
            expected = offset + size * dtype.itemsize
            raise UserError(f"{path} is damaged (it has {held:,} bytes, expected {expected:,}); {hint}")
        return np.memmap(path, dtype, "r", offset, (size,))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); {hint}") from None


def _files_in(path: Path) -> list[Path]:
    files = sorted(path.glob("*.bin")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"there are no token files at {path}; give a folder with files .bin, or such a file")
    return files


def _describe_bare(path: Path) -> tuple[np.dtype, int, int]:
    """Returns the type of the tokens of a file, where they begin, and their number."""
    try:
        with path.open("rb") as file:
            header = np.frombuffer(file.read(4 * _HEADER), "<i4", count=3)
        held = path.stat().st_size
    except (OSError, ValueError):
        header, held = np.zeros(3, "<i4"), path.stat().st_size if path.is_file() else 0
    if dtype := _MAGIC.get(int(header[0])):
        return dtype, 4 * _HEADER, int(header[2])
    if held < 2 or held % 2:
        raise UserError(f"{path} has {held} bytes, so it does not hold tokens of 2 bytes; copy it again")
    return np.dtype("<u2"), 0, held // 2
