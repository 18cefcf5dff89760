"""Commands about data: token files from texts."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dl.cli.command import Call
from dl.errors import UserError
from dl.option_types import PositiveInt
from dl.system.files import named_path
from dl.system.text import printable

if TYPE_CHECKING:
    from dl.data.text.contract import Tokenizer


@dataclasses.dataclass(frozen=True)
class TokenOptions:
    """Options of `write-tokens`.

    Attributes:
      tokenizer: Tokenizer: bytes, characters, bpe:SIZE or wordpiece:SIZE, the path of a tokenizer.json, or
        a FOLDER that was written before, such as that of the training split.
      shard_tokens: Largest number of tokens in a file.
    """

    tokenizer: str = "bytes"
    shard_tokens: PositiveInt = 2**28


def tokenize(call: Call) -> int:
    """Encodes text files, and writes their tokens to a new folder. The texts may be larger than memory.

    Each file is one document. Write one folder for each split, such as corpus/train, corpus/validation and
    corpus/test. Then `language_modeling("corpus", …)` reads them. The vocabulary of characters, bpe:SIZE and
    wordpiece:SIZE is made from the first 64 million characters.
    """
    from dl.data.text import write_tokens

    options: TokenOptions = call.own
    folder, *words = map(named_path, call.words)
    paths = [path for word in words for path in _texts(word)]
    tokens = write_tokens(
        folder, _tokenizer(options.tokenizer, paths), paths, shard_tokens=options.shard_tokens
    )
    assert tokens.tokenizer is not None
    print(
        f"wrote {printable(folder)}: {len(tokens):,} tokens of {tokens.num_bytes:,} bytes, vocabulary of "
        f"{tokens.tokenizer.vocab_size:,}"
    )
    return 0


def _texts(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (files := sorted(path.rglob("*.txt"))):
        raise UserError(f"{printable(path)} holds no files .txt; name the files themselves")
    return files


def _tokenizer(word: str, paths: list[Path]) -> "Tokenizer":
    from dl.data.text.token_files import INDEX, read_tokens
    from dl.data.text.token_writer import first_texts
    from dl.data.text.vocabulary import check_tokenizer, make_tokenizer

    if (Path(word).expanduser() / INDEX).exists():
        known = read_tokens(word).tokenizer
        assert known is not None
        return known
    spec = check_tokenizer(word)
    is_made = spec.kind in ("characters", "bpe", "wordpiece")
    roles = () if spec.kind == "path" else ("end",)
    return make_tokenizer(spec, first_texts(paths) if is_made else (), special=roles)
