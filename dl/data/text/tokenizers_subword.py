"""Tokenizers of subwords, by the library `tokenizers` of Hugging Face (extra `text`).

Byte-level BPE: Radford et al. 2019, after Sennrich et al. 2016 (arXiv:1508.07909). WordPiece: Devlin et al.
2019 (arXiv:1810.04805). `published` reads the tokenizer.json of a model that others have trained.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dl.data.text.contract import REPLACEMENT, ROLES, Tokenizer, check_roles
from dl.errors import UserError
from dl.system.files import read_regular

_MAX_BYTES = 2**28  # of a tokenizer.json
_MAX_ALPHABET = 1000  # characters of a WordPiece vocabulary, as in BERT's; rarer ones are unknown
_CONFIG_KEYS = {  # role -> key in tokenizer_config.json and special_tokens_map.json
    "padding": "pad_token",
    "unknown": "unk_token",
    "start": "bos_token",
    "end": "eos_token",
    "mask": "mask_token",
    "separator": "sep_token",
    "class": "cls_token",
}
_KNOWN_NAMES = {  # names that published vocabularies use; the first one that is in a vocabulary counts
    "padding": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>"),
    "unknown": ("[UNK]", "<unk>"),
    "start": ("[BOS]", "<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"),
    "end": ("[EOS]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
    "separator": ("[SEP]", "<sep>"),
    "class": ("[CLS]", "<cls>"),
}


@dataclass(frozen=True, eq=False, repr=False)
class SubwordTokenizer(Tokenizer):
    """A tokenizer of the library `tokenizers`.

    Byte-level BPE encodes every text, and `decode(encode(text))` is the same text; a surrogate that is not a
    pair becomes "?". WordPiece and many published tokenizers change the text, for example its spaces.

    Attributes:
      tokenizer: content of tokenizer.json.
      special: the special tokens by role.
    """

    tokenizer: str
    special: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_roles(self.special)
        for role, token in self.special.items():
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise UserError(
                    f"the special token {role} is {token!r}, expected a token from 0 to {self.vocab_size - 1}"
                )

    @property
    def definition(self) -> Mapping[str, Any]:
        return {"kind": "subwords", "special": dict(self.special), "tokenizer": self.tokenizer}

    @property
    def special_ids(self) -> Mapping[str, int]:
        return self.special

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @cached_property
    def token_names(self) -> tuple[str, ...]:
        is_of_bytes = '"ByteLevel"' in str(self._made.decoder.__getstate__())
        names = []
        for token in range(self.vocab_size):
            name = self._made.id_to_token(token) or f"<{token}>"
            if is_of_bytes and REPLACEMENT not in (shown := self._made.decode([token])):
                name = shown or name
            names.append(name)
        return tuple(names)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._made.encode_batch(list(map(_valid, texts)), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def _encode(self, text: str) -> list[int]:
        return self._made.encode(_valid(text), add_special_tokens=False).ids

    def _decode(self, tokens: list[int]) -> str:
        unknown = self.unknown_id
        if unknown not in tokens or self._made.decoder is None:
            return self._made.decode(tokens, skip_special_tokens=False)
        names = [REPLACEMENT if token == unknown else self._made.id_to_token(token) for token in tokens]
        return self._made.decoder.decode([name for name in names if name is not None])

    @cached_property
    def _vocab_size(self) -> int:
        # A vocabulary may have gaps, so that the largest token counts.
        return max(self._made.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def _made(self) -> Any:
        """The tokenizer of the library."""
        tokenizers = _library()
        try:
            made = tokenizers.Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the library raises Exception itself
            raise UserError(
                f"the definition of a tokenizer is damaged ({str(error)[:100]}); restore its tokenizer.json"
            ) from None
        made.no_truncation()
        made.no_padding()
        made.encode_special_tokens = True  # The name of a special token in a text is ordinary text.
        return made


def train_bpe(texts: Iterable[str], vocab_size: int, special: Iterable[str] = ()) -> SubwordTokenizer:
    """Returns a byte-level BPE tokenizer that is trained on texts. The same texts give the same tokenizer.

    Args:
      texts: the texts of the training split.
      vocab_size: largest size of the vocabulary with its special tokens. A short text gives a smaller one.
      special: roles of the special tokens, which are 0, 1, … in this order.

    Raises:
      UserError: the vocabulary has no place for 256 bytes and the special tokens.
    """
    tokenizers, roles = _library(), check_roles(special)
    if vocab_size < 256 + len(roles):
        raise UserError(
            f"a vocabulary of {vocab_size} tokens is too small for byte-level BPE, which has 256 bytes and "
            f"{len(roles)} special tokens; choose at least bpe:{256 + len(roles)}, or the tokenizer bytes"
        )
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[ROLES[role] for role in roles],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(map(_valid, texts), trainer)
    return SubwordTokenizer(made.to_str(), {role: k for k, role in enumerate(roles)})


def train_wordpiece(texts: Iterable[str], vocab_size: int, special: Iterable[str] = ()) -> SubwordTokenizer:
    """Returns a WordPiece tokenizer that is trained on texts, as BERT's: accents and case are kept.

    The same texts give the same tokenizer. The library merges by frequency, like BPE.

    Args:
      texts: the texts of the training split.
      vocab_size: largest size of the vocabulary with its special tokens. A short text gives a smaller one.
      special: roles of the special tokens, which are 0, 1, … in this order. That of unknown text is added.

    Raises:
      UserError: the vocabulary has no place for the characters of the texts.
    """
    tokenizers, roles = _library(), check_roles(special)
    if "unknown" not in roles:
        roles = (*roles, "unknown")
    normalizer = tokenizers.normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        pieces = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(_valid(text)))
        words.update(word for word, _ in pieces)
    kept, later = _alphabet(words)
    names = [ROLES[role] for role in roles]
    # The library would number these in an order that differs between processes.
    alphabet = [*sorted(kept), *(f"##{character}" for character in sorted(later))]
    if vocab_size < len(names) + len(alphabet):
        raise UserError(
            f"a vocabulary of {vocab_size} tokens is too small for the {len(alphabet)} characters of these "
            f"texts, at the start and inside of words; choose at least wordpiece:{len(names) + len(alphabet)}"
        )
    scratch = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=ROLES["unknown"]))
    scratch.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=names + alphabet, show_progress=False
    )
    scratch.train_from_iterator((word for word in words.elements() if kept.issuperset(word)), trainer)
    vocabulary = scratch.get_vocab(with_added_tokens=False)
    model = tokenizers.models.WordPiece(vocabulary, unk_token=ROLES["unknown"])
    made = tokenizers.Tokenizer(model)
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(names)
    return SubwordTokenizer(made.to_str(), {role: k for k, role in enumerate(roles)})


def _alphabet(words: Mapping[str, int]) -> tuple[set[str], set[str]]:
    """Returns the most frequent characters of words, and those of them that stand inside of a word."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = set(sorted(counts, key=lambda character: (-counts[character], character))[:_MAX_ALPHABET])
    return kept, {character for word in words for character in word[1:]} & kept


def published(path: str | Path) -> SubwordTokenizer:
    """Returns the tokenizer of a published model.

    The special tokens come from tokenizer_config.json and special_tokens_map.json beside the file. For a role
    that neither names, the names that are common in published vocabularies are tried.

    Args:
      path: a file tokenizer.json, or a folder that holds one.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    given = Path(path).expanduser()
    file = given / "tokenizer.json" if given.is_dir() else given
    tokenizer = SubwordTokenizer(_read(file))
    named = _named_special(file.parent)
    special = {}
    for role in ROLES:
        for name in [named[role]] if role in named else _KNOWN_NAMES[role]:
            if (token := tokenizer._made.token_to_id(name)) is not None:
                special[role] = token
                break
    return SubwordTokenizer(tokenizer.tokenizer, special)


def _read(file: Path) -> str:
    try:
        return read_regular(file, _MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no file {file}; give a tokenizer.json, or a folder with one") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; download it again") from None


def _named_special(folder: Path) -> dict[str, str]:
    """Returns the names of special tokens by role, as the files beside a tokenizer.json state them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not os.path.exists(folder / name):
            continue
        try:
            stated = json.loads(_read(folder / name))
        except (ValueError, RecursionError):
            raise UserError(f"{folder / name} is not JSON; download it again, or remove it") from None
        for role, key in _CONFIG_KEYS.items():
            token = stated.get(key) if isinstance(stated, dict) else None
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[role] = token
    return found


def _valid(text: str) -> str:
    """Returns a text without surrogates that are not a pair, which the library refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "tokenizers of subwords need the library tokenizers: pip install 'dl[text]', or choose "
            "the tokenizer bytes or characters"
        ) from None
    return tokenizers
