"""Tokenizers by name or by definition.

`contract` holds what all of them share, `tokenizers_plain` has bytes and characters, and `tokenizers_subword`
has subwords.
"""

import json

from dl.data.text.contract import Tokenizer
from dl.data.text.tokenizers_plain import ByteTokenizer, CharacterTokenizer
from dl.data.text.tokenizers_subword import SubwordTokenizer
from dl.errors import UserError

__all__ = ["ByteTokenizer", "CharacterTokenizer", "SubwordTokenizer", "Tokenizer", "tokenizer_from_json"]


def tokenizer_from_json(text: str) -> Tokenizer:
    """Returns the tokenizer whose `to_json` is `text`.

    Raises:
      UserError: the text is not the definition of a tokenizer.
    """
    makers = {
        "bytes": lambda of: ByteTokenizer(tuple(of["special"])),
        "characters": lambda of: CharacterTokenizer(str(of["characters"]), tuple(of["special"])),
        "subwords": lambda of: SubwordTokenizer(str(of["tokenizer"]), dict(of["special"])),
    }
    try:
        definition = json.loads(text)
        return makers[definition["kind"]](definition)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"the definition of a tokenizer is damaged ({error!r:.80}); restore it, or train again"
        ) from None
