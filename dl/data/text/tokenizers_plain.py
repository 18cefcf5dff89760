"""Tokenizers of bytes and of characters, which need no library. Special tokens follow the other tokens."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dl.data.text.contract import REPLACEMENT, ROLES, Tokenizer, check_roles
from dl.errors import UserError


@dataclass(frozen=True, eq=False, repr=False)
class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8. Every text is encoded, and `decode(encode(text))` is the same text.

    Attributes:
      special: roles of the special tokens, which are 256, 257, … in this order.
    """

    special: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_roles(self.special)

    @property
    def definition(self) -> Mapping[str, Any]:
        return {"kind": "bytes", "special": list(self.special)}

    @cached_property
    def token_names(self) -> tuple[str, ...]:
        of_bytes = (chr(byte) if 0 < byte < 128 else f"\\x{byte:02x}" for byte in range(256))
        return (*of_bytes, *(ROLES[role] for role in self.special))

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        return {role: 256 + k for k, role in enumerate(self.special)}

    def _encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogatepass"))

    def _decode(self, tokens: list[int]) -> str:
        unknown = REPLACEMENT.encode()
        content = b"".join(bytes([token]) if token < 256 else unknown for token in tokens)
        try:
            return content.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # such as the first byte of a character of three
            return content.decode("utf-8", "replace")


@dataclass(frozen=True, eq=False, repr=False)
class CharacterTokenizer(Tokenizer):
    """The characters (code points) of a text. A text of these characters is decoded without a change.

    Attributes:
      characters: the characters in the order of their tokens, each once.
      special: roles of the special tokens, which follow the characters in this order.
    """

    characters: str
    special: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_roles(self.special)
        if not self.characters or len(set(self.characters)) < len(self.characters):
            raise UserError(
                "the characters of a vocabulary must be one or more, and each can occur only once"
            )

    @property
    def definition(self) -> Mapping[str, Any]:
        return {"kind": "characters", "characters": self.characters, "special": list(self.special)}

    @cached_property
    def token_names(self) -> tuple[str, ...]:
        return (*self.characters, *(ROLES[role] for role in self.special))

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        return {role: len(self.characters) + k for k, role in enumerate(self.special)}

    @cached_property
    def _id_of(self) -> Mapping[str, int]:
        return {character: k for k, character in enumerate(self.characters)}

    def _encode(self, text: str) -> list[int]:
        try:
            return [self._id_of[character] for character in text]
        except KeyError as error:
            if (unknown := self.unknown_id) is not None:
                return [self._id_of.get(character, unknown) for character in text]
            raise UserError(
                f"the character {error.args[0]!r} is not in the vocabulary of {len(self.characters)} "
                "characters; remove it from the text, or choose the tokenizer bytes"
            ) from None

    def _decode(self, tokens: list[int]) -> str:
        known = len(self.characters)
        return "".join(self.characters[token] if token < known else REPLACEMENT for token in tokens)


def characters_of(
    texts: Iterable[str], others: Iterable[str] = (), special: Iterable[str] = ()
) -> CharacterTokenizer:
    """Returns the tokenizer of the characters of training texts, sorted by code point.

    Args:
      texts: the texts of the training split.
      others: texts of other splits. If one has a character that no training text has, the vocabulary has a
        token for unknown characters.
      special: roles of special tokens.

    Raises:
      UserError: the training texts are empty.
    """
    known: set[str] = set()
    for text in texts:
        known.update(text)
    roles = check_roles(special)
    if "unknown" not in roles and any(not known.issuperset(text) for text in others):
        roles = (*roles, "unknown")
    return CharacterTokenizer("".join(sorted(known)), roles)
