"""Data sets of translations, by name or path, with the same rule for all splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dl.data.carve import split_rows
from dl.data.recorded import remembered
from dl.data.text.builtin import NUMBER_WORDS
from dl.data.text.contract import Tokenizer
from dl.data.text.splits import TextSource, TextSplits, Tokenized, check_buckets, counted, padded
from dl.data.text.table import check_dataset, read_table
from dl.data.text.vocabulary import check_tokenizer, make_tokenizer
from dl.data.tfds import folders
from dl.errors import UserError
from dl.ranges import Range, check, check_count
from dl.types import Source

_LENGTHS = Range(2, 2**20)
_ROLES = ("padding", "start", "end")


def translation(
    dataset: str | Path = "auto",
    *,
    auto: str | Sequence[str] = "multi30k_en_de",
    source: str | None = None,
    target: str | None = None,
    max_length: int = 128,
    buckets: Sequence[int] = (),
    tokenizer: str | Tokenizer = "bytes",
    validation_fraction: float = 0.1,
    data_dir: str | Path | None = None,
) -> "Translation":
    """Returns a data set of pairs of texts. Nothing is read yet.

    The splits are the official train, validation and test. Missing ones are taken from train at random, as in
    `image_classification`. One tokenizer is made from the sources and targets of the training split. It has
    special tokens for padding, start and end.

    Args:
      dataset: NAME or NAME/CONFIG of a prepared set, optionally with :VERSION; a built-in set
        (`dl.data.text.builtin`); or the path of a file .tsv, .csv or .jsonl, or of a folder of them
        (`dl.data.text.files`). "auto" means the first of `auto` that is prepared, or else the numbers below
        10,000 as English and German words, with a notice.
      auto: names of the sets that "auto" means.
      source: name of the field of the texts that are translated, such as "en". `None` means "source" in a
        file, and the first text of a prepared set that has two.
      target: name of the field of the translations. `None` means "target" in a file, and the second text of a
        prepared set that has two.
      max_length: number of tokens that are kept of each text, with the token of its end.
      buckets: lengths such as (16, 32), besides `max_length`. A batch in training consists of pairs of
        similar length, and is padded to the smallest of these that both texts of each pair fit into. Each
        length is compiled. Without any, all batches have the length `max_length`.
      tokenizer: bytes, characters, bpe:SIZE, wordpiece:SIZE, or the path of a tokenizer.json; or a tokenizer.
      validation_fraction: fraction of train that is used for validation if there is no official validation
        split, in (0, 1).
      data_dir: folder of prepared sets. `None` means that of `using_data_dir` at the time of this call, else
        `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      UserError: an argument is not valid. Attributes of the result also raise it, if the set is missing or
        damaged, or does not have these texts.
    """
    dataset, names = check_dataset(dataset, auto)
    check_tokenizer(tokenizer)
    max_length = check_count("max_length", max_length, _LENGTHS)
    check("validation_fraction", validation_fraction, Range(0, 1, above_low=True, below_high=True))
    if source is not None and source == target:
        raise UserError(f"source={source!r} and target={target!r} are the same field; name two fields")
    data = Translation(
        dataset=dataset,
        auto=names,
        source_field=source,
        target_field=target,
        max_length=max_length,
        buckets=check_buckets(buckets, max_length),
        chosen_tokenizer=tokenizer,
        validation_fraction=validation_fraction,
        data_dir=folders.data_dir_in_use() if data_dir is None else Path(data_dir),
    )
    return replace(data, known=remembered(data.request, ("source", "target")))


@dataclass(frozen=True, kw_only=True)
class Translation(TextSplits):
    """Pairs of texts, made by `translation`.

    Examples are {"source": int32 (T,), "target": int32 (T,)}: tokens of a text, the end token, and padding up
    to `max_length`. A text that is cut ends with the end token too. Each split is a `TextSource`, which has
    the texts themselves as "source" and "target", such as the references of BLEU.
    """

    dataset: str
    auto: tuple[str, ...]
    source_field: str | None
    target_field: str | None
    max_length: int
    buckets: tuple[int, ...]
    chosen_tokenizer: str | Tokenizer
    validation_fraction: float
    data_dir: Path | None

    @property
    def request(self) -> dict[str, Any]:
        names = ("dataset", "source_field", "target_field", "max_length", "validation_fraction")
        return {
            "kind": "translation",
            "auto": list(self.auto),
            **({"buckets": list(self.buckets)} if self.buckets else {}),
            "tokenizer": check_tokenizer(self.chosen_tokenizer).word,
            **{name: getattr(self, name) for name in names},
        }

    @property
    def validation(self) -> Source:
        return self._made.splits["validation"]

    @property
    def test(self) -> Source:
        return self._made.splits["test"]

    def _tokenize(self, tokenizer: Tokenizer | None) -> Tokenized:
        fields = {"source": self.source_field, "target": self.target_field}
        table = read_table(self.dataset, fields, self.auto, NUMBER_WORDS, self.data_dir)
        no_classes = np.zeros(table.sizes["train"], np.int32)  # a plain random draw
        rows_of = split_rows(table.name, table.sizes, self.validation_fraction, no_classes)
        texts: dict[str, dict[str, list[str]]] = {}
        for name, (split, rows) in rows_of.items():
            places = range(table.sizes[split]) if rows is None else rows.tolist()
            texts[name] = {
                column: [values[row] for row in places] for column, values in table.splits[split].items()
            }
        if tokenizer is None:
            train = [*texts["train"]["source"], *texts["train"]["target"]]
            others = chain(
                *(c for name, columns in texts.items() if name != "train" for c in columns.values())
            )
            tokenizer = make_tokenizer(check_tokenizer(self.chosen_tokenizer), train, others, _ROLES)
        splits, notes = {}, [f"texts from {table.origin}, {tokenizer.vocab_size} tokens"]
        for name, columns in texts.items():
            arrays, lengths_of = {}, []
            for column, values in columns.items():
                arrays[column], lengths, note = self._tokens(tokenizer, values)
                lengths_of.append(lengths)
                notes += [f"{name} {column}: {note}"] * bool(note)
            splits[name] = TextSource(arrays, columns, np.max(lengths_of, 0), self.buckets)
        sizes = {name: len(pairs) for name, pairs in splits.items()}
        return Tokenized(
            splits=splits,
            tokenizer=tokenizer,
            identity=table.identity_of(sizes),
            provenance="; ".join(notes),
            notice=table.notice,
        )

    def _tokens(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, list[int], str]:
        """Returns the tokens of texts, their lengths, and a note about what was cut or is unknown."""
        end, padding = tokenizer.special_ids["end"], tokenizer.special_ids["padding"]
        encoded, room = tokenizer.encode_all(texts), self.max_length - 1
        rows = [[*tokens[:room], end] for tokens in encoded]
        lengths = [len(row) for row in rows]
        return padded(rows, self.max_length, padding), lengths, counted(tokenizer, encoded, room)
