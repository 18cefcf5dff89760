"""Vocabularies: the tokenizer that a word such as "bpe:8000" means for the texts of a training split.

Subwords are trained at the first use and kept in the user's cache folder.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dl.data.text.contract import Tokenizer, check_roles
from dl.data.text.tokenizer import tokenizer_from_json
from dl.data.text.tokenizers_plain import ByteTokenizer, characters_of
from dl.data.text.tokenizers_subword import published, train_bpe, train_wordpiece
from dl.data.tfds import folders
from dl.errors import UserError
from dl.system.files import read_regular, replace_text

_TRAINED = {"bpe": train_bpe, "wordpiece": train_wordpiece}
_EXPECTED = "bytes, characters, bpe:SIZE, wordpiece:SIZE (such as bpe:8000), or the path of a tokenizer.json"
_MAX_BYTES = 2**28  # of a tokenizer in the cache


@dataclass(frozen=True)
class TokenizerSpec:
    """What a tokenizer is made of, apart from the texts. `check_tokenizer` makes it.

    Attributes:
      word: the word as it was given, or the definition of a given tokenizer.
      kind: "bytes", "characters", "bpe", "wordpiece", "path" or "given".
      size: size of the vocabulary, of "bpe" and "wordpiece".
      given: the tokenizer, of "given".
    """

    word: str
    kind: str
    size: int = 0
    given: Tokenizer | None = None


def check_tokenizer(tokenizer: str | Tokenizer) -> TokenizerSpec:
    """Checks a tokenizer or a word for one: bytes, characters, bpe:SIZE, wordpiece:SIZE, or a path.

    A path contains `/`, starts with `~`, or ends in `.json`. Nothing is read yet.

    Raises:
      UserError: the word is none of these.
    """
    if isinstance(tokenizer, Tokenizer):
        return TokenizerSpec(tokenizer.digest, "given", given=tokenizer)
    if not isinstance(tokenizer, str):
        raise UserError(f"tokenizer={tokenizer!r}: expected {_EXPECTED}")
    if tokenizer in ("bytes", "characters"):
        return TokenizerSpec(tokenizer, tokenizer)
    if "/" in tokenizer or tokenizer.startswith("~") or tokenizer.endswith(".json"):
        return TokenizerSpec(tokenizer, "path")
    match = re.fullmatch(r"(\w+):([0-9]{1,9})", tokenizer, re.ASCII)
    if match is None or match[1] not in _TRAINED:
        raise UserError(f"tokenizer={tokenizer!r}: expected {_EXPECTED}")
    return TokenizerSpec(tokenizer, match[1], int(match[2]))


def make_tokenizer(
    spec: TokenizerSpec,
    texts: Sequence[str],
    others: Iterable[str] = (),
    special: Iterable[str] = (),
    helpful: Iterable[str] = (),
) -> Tokenizer:
    """Returns the tokenizer of a training split.

    Args:
      spec: what `check_tokenizer` returned.
      texts: the texts of the training split.
      others: texts of other splits. They only decide whether characters have a token for unknown ones.
      special: roles of special tokens that are needed; see `ROLES`.
      helpful: roles of special tokens that a new vocabulary has too, and a published one need not have.

    Raises:
      UserError: the size of the vocabulary is too small, a published tokenizer cannot be read, or a given or
        published one does not have the special tokens.
    """
    needed = check_roles(special)
    roles = check_roles(dict.fromkeys([*helpful, *needed]))
    if spec.kind == "bytes":
        return ByteTokenizer(roles)
    if spec.kind == "characters":
        return characters_of(texts, others, roles)
    if spec.kind in _TRAINED:
        return _trained(spec, texts, roles)
    tokenizer = spec.given or published(spec.word)
    if lacking := [role for role in needed if role not in tokenizer.special_ids]:
        named = "the given tokenizer" if spec.given else f"the tokenizer {spec.word}"
        raise UserError(
            f"{named} has no special token for {' and '.join(lacking)}, which these data need; choose "
            "another, or name the token in its tokenizer_config.json"
        )
    return tokenizer


def _trained(spec: TokenizerSpec, texts: Sequence[str], roles: tuple[str, ...]) -> Tokenizer:
    """Returns a trained tokenizer, from the cache if it holds one."""
    content = hashlib.sha256(f"1 {spec.word} {roles} {len(texts)} ".encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        content.update(f"{len(encoded)} ".encode() + encoded)
    path = folders.user_cache() / "tokenizers" / f"{spec.kind}-{spec.size}-{content.hexdigest()}.json"
    with contextlib.suppress(OSError, UserError, UnicodeDecodeError):  # A damaged cache is ignored.
        digest, _, definition = read_regular(path, _MAX_BYTES).decode().partition("\n")
        if digest == hashlib.sha256(definition.encode()).hexdigest():
            return tokenizer_from_json(definition)
    tokenizer = _TRAINED[spec.kind](texts, spec.size, roles)
    with contextlib.suppress(OSError):  # Without a cache it is trained each time.
        folders.make_private(folders.user_cache())
        path.parent.mkdir(exist_ok=True)
        replace_text(path, f"{tokenizer.digest}\n{tokenizer.to_json()}")
    return tokenizer
