"""Data sets for text classification, by name or path, with the same rule for all splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dl.data.carve import split_rows, split_rule
from dl.data.recorded import remembered
from dl.data.text.builtin import PYTHON_TOPICS
from dl.data.text.contract import Tokenizer, check_roles
from dl.data.text.splits import TextSource, TextSplits, Tokenized, check_buckets, counted, padded
from dl.data.text.table import check_dataset, read_table
from dl.data.text.vocabulary import check_tokenizer, make_tokenizer
from dl.data.tfds import folders
from dl.ranges import Range, check, check_count
from dl.types import Source

_LENGTHS = Range(1, 2**20)


def text_classification(
    dataset: str | Path = "auto",
    *,
    auto: str | Sequence[str] = "sst2_sentences",
    max_length: int = 256,
    buckets: Sequence[int] = (),
    tokenizer: str | Tokenizer = "bytes",
    first_token: str | None = None,
    last_token: str | None = None,
    special: Sequence[str] = (),
    validation_fraction: float = 0.1,
    text_field: str | None = None,
    label_field: str | None = None,
    data_dir: str | Path | None = None,
) -> "TextClassification":
    """Returns a data set for text classification. Nothing is read yet.

    The splits are the official train, validation and test. Missing ones are taken from train, as in
    `image_classification`. The tokenizer is made from the training split. Folds of the data
    (`dl.data.folds`) share that tokenizer, which may have seen texts of the fold that is held out, but not
    their labels.

    Args:
      dataset: NAME or NAME/CONFIG of a prepared set, optionally with :VERSION; a built-in set
        (`dl.data.text.builtin`); or the path of a file or folder of texts (`dl.data.text.files`). "auto"
        means the first of `auto` that is prepared, or else paragraphs of the help texts of Python, whose
        classes are six topics, with a notice.
      auto: names of the sets that "auto" means.
      max_length: number of tokens that are kept of a text.
      buckets: lengths such as (16, 32), besides `max_length`. A batch in training consists of texts of
        similar length, and is padded to the smallest of these that they fit into. Each length is compiled.
        Without any, all batches have the length `max_length`.
      tokenizer: bytes, characters, bpe:SIZE, wordpiece:SIZE, or the path of a tokenizer.json; or a tokenizer.
      first_token: role of a special token before each text, such as "class". `None` means no token.
      last_token: role of a special token after each text, such as "separator". A text that is cut keeps it.
      special: roles of more special tokens that the tokenizer must have, such as "mask".
      validation_fraction: fraction of train that is used for validation if there is no official validation
        split, in (0, 1).
      text_field: name of the field of the texts. `None` means "text", and the only text of a prepared set.
      label_field: name of the field of the labels. `None` means "label", and the only class label of a
        prepared set.
      data_dir: folder of prepared sets. `None` means that of `using_data_dir` at the time of this call, else
        `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      UserError: an argument is not valid. Attributes of the result also raise it, if the set is missing or
        damaged, or does not have texts and classes.
    """
    dataset, names = check_dataset(dataset, auto)
    check_tokenizer(tokenizer)
    ends = [role for role in (first_token, last_token) if role is not None]
    check_roles(ends)
    max_length = check_count("max_length", max_length, Range(1 + len(ends), _LENGTHS.high))
    check("validation_fraction", validation_fraction, Range(0, 1, above_low=True, below_high=True))
    data = TextClassification(
        dataset=dataset,
        auto=names,
        max_length=max_length,
        buckets=check_buckets(buckets, max_length),
        chosen_tokenizer=tokenizer,
        first_token=first_token,
        last_token=last_token,
        special=check_roles(special),
        validation_fraction=validation_fraction,
        text_field=text_field,
        label_field=label_field,
        data_dir=folders.data_dir_in_use() if data_dir is None else Path(data_dir),
    )
    return replace(data, known=remembered(data.request, ("tokens", "segment_ids", "label"), has_classes=True))


@dataclass(frozen=True, kw_only=True)
class TextClassification(TextSplits):
    """A data set for text classification, made by `text_classification`.

    Examples are {"tokens": int32 (T,), "segment_ids": int32 (T,), "label": int32 ()}. The segment id is 1 for
    the tokens of the text and 0 for the padding after them. A text without tokens is one token, the unknown
    one or else that of padding or 0. Each split is a `TextSource`, which has the texts themselves as "text".
    """

    dataset: str
    auto: tuple[str, ...]
    max_length: int
    buckets: tuple[int, ...]
    chosen_tokenizer: str | Tokenizer
    first_token: str | None
    last_token: str | None
    special: tuple[str, ...]
    validation_fraction: float
    text_field: str | None
    label_field: str | None
    data_dir: Path | None

    @property
    def request(self) -> dict[str, Any]:
        names = ("dataset", "max_length", "first_token", "last_token", "validation_fraction")
        return {
            "kind": "text_classification",
            "auto": list(self.auto),
            **({"buckets": list(self.buckets)} if self.buckets else {}),
            "tokenizer": check_tokenizer(self.chosen_tokenizer).word,
            "special": list(self.special),
            **{name: getattr(self, name) for name in (*names, "text_field", "label_field")},
        }

    @property
    def validation(self) -> Source:
        return self._made.splits["validation"]

    @property
    def test(self) -> Source:
        return self._made.splits["test"]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; "0", "1", … if the set has no names."""
        return self._made.class_names

    def features_of(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns `tokens` and `segment_ids` of new texts, as those of the examples."""
        return self._arrays(self.tokenizer, texts)[0]

    def _tokenize(self, tokenizer: Tokenizer | None) -> Tokenized:
        fields = {"text": self.text_field, "label": self.label_field}
        table = read_table(self.dataset, fields, self.auto, PYTHON_TOPICS, self.data_dir)
        labels = {split: np.array(columns["label"], np.int32) for split, columns in table.splits.items()}
        rows_of = split_rows(table.name, table.sizes, self.validation_fraction, labels["train"])
        texts: dict[str, list[str]] = {}
        labels_of: dict[str, np.ndarray] = {}
        for name, (split, rows) in rows_of.items():
            rows = np.arange(table.sizes[split]) if rows is None else rows
            texts[name] = [table.splits[split]["text"][row] for row in rows.tolist()]
            labels_of[name] = labels[split][rows]
        if tokenizer is None:
            others = (text for name, of_split in texts.items() if name != "train" for text in of_split)
            ends = [role for role in (self.first_token, self.last_token) if role is not None]
            roles = list(dict.fromkeys([*ends, *self.special]))
            spec = check_tokenizer(self.chosen_tokenizer)
            tokenizer = make_tokenizer(spec, texts["train"], others, roles, helpful=("padding",))
        splits, notes = {}, [f"{len(table.class_names)} classes, {tokenizer.vocab_size} tokens"]
        for name, of_split in texts.items():
            arrays, note = self._arrays(tokenizer, of_split)
            lengths = arrays["segment_ids"].sum(-1)
            splits[name] = TextSource(
                {**arrays, "label": labels_of[name]}, {"text": of_split}, lengths, self.buckets
            )
            notes += [f"{name}: {note}"] * bool(note)
        sizes = {name: len(source) for name, source in splits.items()}
        rule = split_rule(table.sizes, self.validation_fraction, labels["train"])
        return Tokenized(
            splits=splits,
            tokenizer=tokenizer,
            identity=table.identity_of(sizes, rule),
            provenance="; ".join([f"texts from {table.origin}, {notes[0]}", *notes[1:]]),
            notice=table.notice,
            class_names=table.class_names,
        )

    def _arrays(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
        """Returns the tokens and segment ids of texts, and a note about what was cut or is unknown."""
        first, last = (
            [] if role is None else [tokenizer.special_ids[role]]
            for role in (self.first_token, self.last_token)
        )
        empty = [tokenizer.unknown_id or tokenizer.padding_id or 0]
        encoded = tokenizer.encode_all(texts)
        room = self.max_length - len(first) - len(last)
        rows = [[*first, *tokens[:room], *last] or empty for tokens in encoded]
        tokens_NT = padded(rows, self.max_length, tokenizer.padding_id or 0)
        lengths = np.array([len(row) for row in rows])
        segment_ids_NT = (np.arange(self.max_length) < lengths[:, None]).astype(np.int32)
        return {"tokens": tokens_NT, "segment_ids": segment_ids_NT}, counted(tokenizer, encoded, room)
