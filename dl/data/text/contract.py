"""What all tokenizers share: functions from text to tokens and back, special tokens, and a definition."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from dl.errors import UserError

ROLES = {  # roles of special tokens, and the names of the tokens in a vocabulary that this codebase makes
    "padding": "[PAD]",
    "unknown": "[UNK]",
    "start": "[BOS]",
    "end": "[EOS]",
    "mask": "[MASK]",
    "separator": "[SEP]",
    "class": "[CLS]",
}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # shows an unknown token, and bytes that are not UTF-8


class Tokenizer(ABC):
    """A fixed vocabulary, and the rule by which text is divided into its tokens.

    The tokens are 0, …, `vocab_size` - 1. Special tokens have roles and stand for no text: `encode` never
    returns one, except that of unknown text. An id whose role the vocabulary does not have is `None`.
    Tokenizers with the same definition are equal.
    """

    @property
    @abstractmethod
    def definition(self) -> Mapping[str, Any]:
        """The definition as values of JSON, from which `tokenizer_from_json` makes the same tokenizer."""

    @property
    @abstractmethod
    def token_names(self) -> tuple[str, ...]:
        """The text of each token as a reader sees it."""

    @property
    @abstractmethod
    def special_ids(self) -> Mapping[str, int]:
        """The special tokens by role; see `ROLES`."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Returns the tokens of a text."""

    @abstractmethod
    def _decode(self, tokens: list[int]) -> str:
        """Returns the text of tokens of the vocabulary. None is special, except that of unknown text."""

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without special tokens before or after it.

        Text that the vocabulary does not have becomes `unknown_id`. The name of a special token in a text is
        ordinary text.

        Raises:
          UserError: the text has a part that is not in the vocabulary, and there is no `unknown_id`.
        """
        return self._encode(text)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each text, as `encode` does."""
        return [self._encode(text) for text in texts]

    def decode(self, tokens: Iterable[int] | np.ndarray) -> str:
        """Returns the text of tokens. Special tokens are left out, but an unknown one is shown as U+FFFD.

        Raises:
          UserError: a token is not in the vocabulary.
        """
        ids = [int(token) for token in tokens]
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise UserError(
                    f"the token {token} is not in the vocabulary; expected 0 to {self.vocab_size - 1}"
                )
        hidden = {token for role, token in self.special_ids.items() if role != "unknown"}
        return self._decode([token for token in ids if token not in hidden])

    def to_json(self) -> str:
        """Returns the definition as JSON: the same text on every machine."""
        return json.dumps(self.definition, sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the definition, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return len(self.token_names)

    @property
    def padding_id(self) -> int | None:
        return self.special_ids.get("padding")

    @property
    def unknown_id(self) -> int | None:
        return self.special_ids.get("unknown")

    @property
    def start_id(self) -> int | None:
        return self.special_ids.get("start")

    @property
    def end_id(self) -> int | None:
        return self.special_ids.get("end")

    @property
    def mask_id(self) -> int | None:
        return self.special_ids.get("mask")

    @property
    def separator_id(self) -> int | None:
        return self.special_ids.get("separator")

    @property
    def class_id(self) -> int | None:
        return self.special_ids.get("class")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} tokens, {self.digest[:8]})"


def check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Returns roles of special tokens as a tuple.

    Raises:
      UserError: a role does not exist, or occurs twice.
    """
    checked = tuple(roles)
    for role in checked:
        if role not in ROLES:
            raise UserError(f"{role!r} is not a role of a special token; choose from {', '.join(ROLES)}")
    if len(set(checked)) < len(checked):
        raise UserError(f"the roles {', '.join(checked)} of special tokens contain one twice; remove it")
    return checked
