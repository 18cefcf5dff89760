"""Data sets for language models: windows of texts, or documents packed into rows."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dl.data.recorded import remembered
from dl.data.text.contract import Tokenizer, check_roles
from dl.data.text.corpus import TextCorpus, read_texts
from dl.data.text.packing import pack
from dl.data.text.splits import TextSplits, Tokenized
from dl.data.text.table import check_dataset
from dl.data.text.token_folders import holds_tokens, read_token_splits
from dl.data.text.vocabulary import check_tokenizer, make_tokenizer
from dl.data.text.windows import Tokens, TokenWindows, smallest_dtype
from dl.data.tfds import folders
from dl.data.tfds.find import names_path
from dl.errors import UserError
from dl.losses import NOT_COUNTED
from dl.ranges import STEPS, Range, check_count
from dl.types import Identity, Source


def language_modeling(
    dataset: str | Path = "auto",
    *,
    sequence_length: int,
    tokenizer: str | Tokenizer | None = None,
    packing: bool = False,
    stride: int | None = None,
    eval_context: int = 1,
    join_held_out: bool = False,
    special: Sequence[str] = (),
    auto: str | Sequence[str] = "tiny_shakespeare",
    text_field: str | None = None,
    data_dir: str | Path | None = None,
) -> "LanguageModeling":
    """Returns a data set for language models. Nothing is read yet.

    The splits are those of `corpus.read_texts`. Without packing, the texts of a split are one sequence, which
    is divided into rows (`windows.TokenWindows`). Where splits have several documents, the end token follows
    each of them. In evaluation every token after the first counts exactly once.

    Args:
      dataset: NAME or NAME/CONFIG of a prepared set, optionally with :VERSION; a built-in set
        (`dl.data.text.builtin`); the path of a file or folder of texts (`dl.data.text.files`); or the path of
        token files, which may be larger than memory (`token_folders.read_token_splits`). "auto" means the
        first of `auto` that is prepared, or else the help texts of Python, with a notice.
      sequence_length: number of tokens of a row, T.
      tokenizer: bytes, characters, bpe:SIZE, wordpiece:SIZE, or the path of a tokenizer.json; or a tokenizer.
        It is made from the training split. `None` means that of the token files, or else characters.
      packing: whether documents are packed into rows without parts of others (`packing.pack`).
      stride: distance between the starts of rows of train, from 1 to T. With 1, an epoch has a row for every
        token. `None` means T: an epoch reads each token once.
      eval_context: smallest number of tokens before each counted token in evaluation, from 1 to T, except in
        the first row. A larger context gives a lower loss, and an evaluation takes T / (T + 1 - eval_context)
        times as long. With 1, rows do not overlap.
      join_held_out: whether validation and test are one split `test`, and no split is `validation`. In
        tiny_shakespeare they are the last tenth of the text, which other projects evaluate on.
      special: roles of special tokens that the tokenizer must have, such as "mask".
      auto: names of the sets that "auto" means.
      text_field: name of the field of the texts. `None` means "text", and the only text of a prepared set.
      data_dir: folder of prepared sets. `None` means that of `using_data_dir` at the time of this call, else
        `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      UserError: an argument is not valid. Attributes of the result also raise it, if the set is missing or
        damaged, or its texts are too short.
    """
    dataset, names = check_dataset(dataset, auto)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    sequence_length = check_count("sequence_length", sequence_length, STEPS)
    of_row = Range(1, sequence_length)
    if packing and (stride is not None or eval_context != 1):
        raise UserError(
            "packed rows do not overlap, so stride and eval_context cannot be chosen; leave them out, or set "
            "packing=False"
        )
    data = LanguageModeling(
        dataset=dataset,
        auto=names,
        sequence_length=sequence_length,
        chosen_tokenizer=tokenizer,
        packing=packing,
        stride=None if stride is None else check_count("stride", stride, of_row),
        eval_context=check_count("eval_context", eval_context, of_row),
        join_held_out=join_held_out,
        special=check_roles(special),
        text_field=text_field,
        data_dir=folders.data_dir_in_use() if data_dir is None else Path(data_dir),
    )
    return replace(data, known=remembered(data.request, ("tokens", "targets")))


@dataclass(frozen=True, kw_only=True)
class _Tokenized(Tokenized):
    """Tokenized texts, with what `LanguageModeling` states about each split."""

    num_targets: Mapping[str, int]
    num_bytes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class LanguageModeling(TextSplits):
    """A data set for language models, made by `language_modeling`.

    Examples are {"tokens": int32 (T,), "targets": int32 (T,)}. A target is the token that follows, or
    `losses.NOT_COUNTED`. With packing they also have "segment_ids" and "positions", int32 (T,).
    """

    dataset: str
    auto: tuple[str, ...]
    sequence_length: int
    chosen_tokenizer: str | Tokenizer | None
    packing: bool
    stride: int | None
    eval_context: int
    join_held_out: bool
    special: tuple[str, ...]
    text_field: str | None
    data_dir: Path | None

    @property
    def request(self) -> dict[str, Any]:
        names = ("dataset", "sequence_length", "packing", "stride", "eval_context", "join_held_out")
        chosen = self.chosen_tokenizer
        return {
            "kind": "language_modeling",
            "auto": list(self.auto),
            "tokenizer": None if chosen is None else check_tokenizer(chosen).word,
            "special": list(self.special),
            **{name: getattr(self, name) for name in (*names, "text_field")},
        }

    @property
    def num_targets(self) -> Mapping[str, int]:
        """Number of targets of each split, each token once."""
        return self._counts.num_targets

    @property
    def num_bytes(self) -> Mapping[str, int]:
        """Size of the text of the targets of each split, in bytes of UTF-8, if it is known.

        It does not contain special tokens and the tokens that are no target. A loss of L nats a token is
        L / ln 2 × num_targets / num_bytes bits a byte, which does not depend on the tokenizer. The size is
        not known for token files of other projects, and for tokens that were held out from them.
        """
        return self._counts.num_bytes

    @property
    def _counts(self) -> "_Tokenized":
        made = self._made if self.known is None else self._read_again
        assert isinstance(made, _Tokenized)
        return made

    def _tokenize(self, tokenizer: Tokenizer | None) -> Tokenized:
        path = Path(self.dataset).expanduser()
        is_path = self.dataset != "auto" and names_path(self.dataset, self.data_dir)
        if is_path and holds_tokens(path):
            return self._from_files(path, tokenizer)
        corpus = read_texts(self.dataset, auto=self.auto, text_field=self.text_field, data_dir=self.data_dir)
        return self._from_texts(corpus, tokenizer)

    def _from_texts(self, corpus: TextCorpus, tokenizer: Tokenizer | None) -> Tokenized:
        documents = dict(corpus.splits)
        if self.join_held_out:
            held_out = [*documents.pop("validation"), *documents["test"]]
            is_one_text = len(held_out) == 2 and len(documents["train"]) == 1
            documents["test"] = ["".join(held_out)] if is_one_text else held_out
        is_divided = self.packing or any(len(of_split) > 1 for of_split in documents.values())
        if tokenizer is None:
            spec = check_tokenizer(self.chosen_tokenizer or "characters")
            roles = list(self.special)
            if is_divided and spec.kind not in ("path", "given") and "end" not in roles:
                roles.append("end")
            others = (text for name, of_split in documents.items() if name != "train" for text in of_split)
            tokenizer = make_tokenizer(spec, documents["train"], others, roles)
        end = [tokenizer.end_id] if is_divided and tokenizer.end_id is not None else []
        dtype = smallest_dtype(tokenizer.vocab_size)
        splits: dict[str, Source] = {}
        num_targets, num_bytes, notes = {}, {}, []
        for name, texts in documents.items():
            arrays = [np.array([*tokens, *end], dtype) for tokens in tokenizer.encode_all(texts)]
            if self.packing:
                source, utilization = pack(arrays, self.sequence_length, tokenizer.padding_id)
                splits[name] = source
                notes.append(f"{name} packed into {len(source)} rows, {utilization:.1%} of them tokens")
                num_targets[name] = int((source.arrays["targets"] != NOT_COUNTED).sum())
            else:
                tokens = np.concatenate(arrays)
                splits[name] = self._windows(name, tokens, tokenizer)
                num_targets[name] = len(tokens) - 1
            firsts = [int(array[0]) for array in arrays if array.size]
            num_bytes[name] = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
            num_bytes[name] -= _num_bytes(tokenizer, firsts if self.packing else firsts[:1])
        sizes = {name: len(source) for name, source in splits.items()}
        what = f"texts from {corpus.origin}, {num_targets['train']:,} tokens to predict in train"
        return _Tokenized(
            splits=splits,
            tokenizer=tokenizer,
            identity=corpus.identity_of(sizes),
            provenance="; ".join([f"{what}, vocabulary of {tokenizer.vocab_size}", *notes]),
            notice=corpus.notice,
            num_targets=num_targets,
            num_bytes=num_bytes,
        )

    def _from_files(self, path: Path, tokenizer: Tokenizer | None) -> Tokenized:
        if self.packing:
            raise UserError(
                f"{path} holds tokens without marks between documents, which cannot be packed; give the "
                "texts themselves, or set packing=False"
            )
        if tokenizer is None and self.chosen_tokenizer is not None:
            spec = check_tokenizer(self.chosen_tokenizer)
            if spec.kind not in ("path", "given", "bytes"):
                raise UserError(
                    f"tokenizer={spec.word!r} is made from texts, and {path} holds tokens; leave it out, or "
                    "give the tokenizer that the tokens were made with"
                )
            tokenizer = make_tokenizer(spec, (), special=self.special)
        found = read_token_splits(path, tokenizer)
        tokens = dict(found.splits)
        if self.join_held_out:
            tokens["test"] = tokens.pop("validation").then(tokens["test"])
        splits = {name: self._windows(name, of_split, found.tokenizer) for name, of_split in tokens.items()}
        sizes = {name: len(source) for name, source in splits.items()}
        checksums = sorted(f"{name} {of_split.checksum}" for name, of_split in found.splits.items())
        checksum = hashlib.sha256(" ".join(checksums).encode()).hexdigest()
        return _Tokenized(
            splits=splits,
            tokenizer=found.tokenizer,
            identity=Identity(path.name, "1.0.0", checksum, sizes, found.split_rule),
            provenance=f"token files of {path.name}, {len(tokens['train']) - 1:,} tokens to predict in "
            f"train, vocabulary of {found.tokenizer.vocab_size}",
            num_targets={name: len(of_split) - 1 for name, of_split in tokens.items()},
            num_bytes={
                name: of_split.num_bytes - _num_bytes(found.tokenizer, of_split[:1].tolist())
                for name, of_split in tokens.items()
                if of_split.num_bytes is not None
            },
        )

    def _windows(self, split: str, tokens: Tokens, tokenizer: Tokenizer) -> TokenWindows:
        """Returns the rows of a split."""
        how = {"stride": self.stride} if split == "train" else {"context": self.eval_context}
        return TokenWindows(tokens, self.sequence_length, vocab_size=tokenizer.vocab_size, **how)


def _num_bytes(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    """Returns the size of the texts of single tokens in bytes. A part of a character counts as one byte."""
    texts = (tokenizer.decode([token]).replace("\N{REPLACEMENT CHARACTER}", "?") for token in tokens)
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
