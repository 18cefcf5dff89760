"""Writing of tokens to files, which may become larger than memory."""

import hashlib
import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dl.data.text.contract import Tokenizer
from dl.data.text.token_files import INDEX, TokenFiles, read_tokens
from dl.errors import UserError
from dl.ranges import Range, check_count
from dl.system.files import storage_error
from dl.system.json_files import write_json

_BLOCK = 2**20  # characters that are encoded at once
_SAMPLE = 2**26  # characters from which a vocabulary is made


def write_tokens(
    folder: str | Path,
    tokenizer: Tokenizer,
    documents: Iterable[str | Path],
    *,
    shard_tokens: int = 2**28,
) -> TokenFiles:
    """Encodes documents and writes their tokens to a new folder. Memory does not grow with their number.

    The end token follows each document, if the tokenizer has one. The folder appears under its name when it
    is complete. The shards have 2 bytes a token for a vocabulary of at most 65,536 tokens, and otherwise 4.

    Args:
      folder: new or empty folder.
      tokenizer: the tokenizer. The folder keeps its definition.
      documents: texts. A `Path` is a file of UTF-8 that holds one document. It is read in blocks that end
        before a space between words, so a file may be larger than memory.
      shard_tokens: number of tokens of a shard. The last one may have fewer.

    Raises:
      UserError: the folder has content or cannot be written, a file cannot be read, or there is no text.
    """
    folder = Path(folder).expanduser()
    shard_tokens = check_count("shard_tokens", shard_tokens, Range(1, 2**40))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; remove it, or choose a new folder")
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:16]}.tmp"
    try:
        temporary.mkdir(parents=True)
        _write(temporary, tokenizer, documents, shard_tokens)
        os.replace(temporary, folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_tokens(folder, tokenizer)


def first_texts(paths: Iterable[Path]) -> list[str]:
    """Returns the first 64 million characters of files, in parts, to make a vocabulary from."""
    parts, size = [], 0
    for part, _ in itertools.chain.from_iterable(map(_blocks, paths)):
        parts.append(part)
        size += len(part)
        if size >= _SAMPLE:
            break
    return parts


def _write(folder: Path, tokenizer: Tokenizer, documents: Iterable[str | Path], shard_tokens: int) -> None:
    """Writes the shards and the index to an empty folder."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    shards: list[dict[str, Any]] = []
    num_bytes = 0

    def encoded() -> Iterator[np.ndarray]:
        nonlocal num_bytes
        for blocks in _batches(documents):
            texts = [text for text, _ in blocks]
            num_bytes += sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
            for ids, (_, ends) in zip(tokenizer.encode_all(texts), blocks, strict=True):
                end = [tokenizer.end_id] if ends and tokenizer.end_id is not None else []
                if tokens := ids + end:
                    yield np.array(tokens, dtype)

    arrays = encoded()
    left = next(arrays, np.empty(0, dtype))
    while left.size:
        name = f"tokens-{len(shards):05d}.bin"
        with (folder / name).open("xb") as file:
            size, checksum, left = _write_shard(file, left, arrays, shard_tokens)
        shards.append({"name": name, "tokens": size, "sha256": checksum})
    if not shards:
        raise UserError("the documents have no text; give at least one text")
    definition = {"tokenizer": tokenizer.to_json(), "num_bytes": num_bytes}
    write_json(folder / INDEX, {"dtype": dtype.name, "shards": shards, **definition})


def _write_shard(
    file: BinaryIO, first: np.ndarray, arrays: Iterator[np.ndarray], size: int
) -> tuple[int, str, np.ndarray]:
    """Writes `size` tokens, or all. Returns their number, their SHA-256, and the tokens that are left."""
    digest, written, left = hashlib.sha256(), 0, first
    for tokens in itertools.chain([first], arrays):
        taken, left = tokens[: size - written], tokens[size - written :]
        content = taken.tobytes()
        file.write(content)
        digest.update(content)
        written += len(taken)
        if left.size:
            break
    file.flush()
    os.fsync(file.fileno())
    return written, digest.hexdigest(), left


def _batches(documents: Iterable[str | Path]) -> Iterator[list[tuple[str, bool]]]:
    """Yields blocks of text, and whether each ends its document, in lists of at least `_BLOCK` characters."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        for block in _blocks(document) if isinstance(document, Path) else [(document, True)]:
            batch.append(block)
            size += len(block[0])
            if size >= _BLOCK:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _blocks(path: Path) -> Iterator[tuple[str, bool]]:
    """Yields the text of a file in blocks, and whether each is the last one.

    A block ends before a space between letters or digits. The usual tokenizers divide the text there anyway.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            held = file.read(_BLOCK)
            while following := file.read(_BLOCK):
                cut = _last_space(held)
                yield held[:cut], False
                held = held[cut:] + following
            yield held, True
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; convert it to UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); choose another file") from None


def _last_space(text: str) -> int:
    """Returns the position of the last space between letters or digits, or the length of the text."""
    at = text.rfind(" ", 0, len(text) - 1)
    while at > 0 and not (text[at - 1].isalnum() and text[at + 1].isalnum()):
        at = text.rfind(" ", 0, at)
    return at if at > 0 else len(text)
