"""The token files of a data set: which of them belong to train, validation and test."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dl.data.text.contract import Tokenizer
from dl.data.text.files import SPLIT_NAMES
from dl.data.text.token_files import INDEX, TokenFiles, read_bare_files, read_tokens
from dl.errors import UserError

_HELD_OUT = 0.05  # of the tokens of train, for each split that is missing
_ENDING = ".bin"


@dataclass(frozen=True)
class TokenSplits:
    """The tokens of train, validation and test.

    Attributes:
      splits: the tokens of each split.
      tokenizer: the tokenizer that made them.
      split_rule: how tokens were held out from train; empty if there are files of all splits.
    """

    splits: Mapping[str, TokenFiles]
    tokenizer: Tokenizer
    split_rule: str


def holds_tokens(path: Path) -> bool:
    """Returns whether a path is a token file, or a folder with token files for `read_token_splits`."""
    if os.path.isfile(path):  # unlike Path.is_file, it never raises an error
        return path.suffix == _ENDING
    return os.path.isdir(path) and (_is_folder(path) or any(_is_folder(place) for place in _subfolders(path)))


def read_token_splits(path: Path, tokenizer: Tokenizer | None = None) -> TokenSplits:
    """Returns the tokens of train, validation and test. Only the positions that are used are read.

    A folder has folders train, validation (or valid, val, dev) and test, or files .bin whose names contain
    one of these words, such as `train.bin` of nanoGPT and `edu_fineweb_train_000001.bin` of llm.c. Other
    files, and a folder of `write_tokens` itself, are train. Without a test split, the validation split is
    used as test. For each split that is missing, the last 5 % of train are held out: validation, then test.

    Args:
      path: a folder, or one token file.
      tokenizer: the tokenizer that must have made the tokens. `None` means the one of the folder.

    Raises:
      UserError: there is no train split, a file is damaged, the splits have different tokenizers, or no
        tokenizer is known.
    """
    splits = _found(path, tokenizer)
    if "train" not in splits:
        raise UserError(f"{path} has tokens for {' and '.join(splits)} but not for train; add a folder train")
    made_by = {split: tokens.tokenizer for split, tokens in splits.items()}
    chosen = tokenizer or made_by["train"]
    if chosen is None:
        raise UserError(f"the token files of {path} do not hold their tokenizer; give it as tokenizer=")
    for split, other in made_by.items():
        if other != chosen:
            raise UserError(
                f"the {split} split of {path} was not written by the tokenizer of train; write it again"
            )
    if "validation" in splits and "test" not in splits:
        splits["test"] = splits.pop("validation")
    missing = [split for split in ("validation", "test") if split not in splits]
    train, rule = splits["train"], ""
    if missing:
        rule = "the last tokens held out"
        ends = [int(len(train) * (1 - _HELD_OUT * k)) for k in range(len(missing), -1, -1)]
        for split, start, end in zip(["train", *missing], [0, *ends[:-1]], ends, strict=True):
            splits[split] = train.part(start, end)
    return TokenSplits({split: splits[split] for split in ("train", "validation", "test")}, chosen, rule)


def _found(path: Path, tokenizer: Tokenizer | None) -> dict[str, TokenFiles]:
    """Returns the tokens of each split that has files of its own."""
    if path.is_file() or (path / INDEX).exists():
        return {"train": read_tokens(path, tokenizer)}
    places: dict[str, list[Path]] = {}
    for place in _subfolders(path):
        if (split := _split_of(place.name)) and _is_folder(place):
            places.setdefault(split, []).append(place)
    if not places:
        files: dict[str, list[Path]] = {}
        for file in sorted(path.glob(f"*{_ENDING}")):
            files.setdefault(_split_of(file.stem) or "train", []).append(file)
        return {split: read_bare_files(of_split, tokenizer) for split, of_split in files.items()}
    for split, of_split in places.items():
        if len(of_split) > 1:
            raise UserError(
                f"{path} has both {' and '.join(place.name for place in of_split)}; keep one of them as the "
                f"{split} split"
            )
    return {split: read_tokens(of_split[0], tokenizer) for split, of_split in places.items()}


def _is_folder(path: Path) -> bool:
    return (path / INDEX).exists() or any(path.glob(f"*{_ENDING}"))


def _subfolders(path: Path) -> list[Path]:
    visible = (place for place in path.iterdir() if not place.name.startswith("."))
    return sorted(place for place in visible if place.is_dir() and _split_of(place.name))


def _split_of(name: str) -> str | None:
    """Returns the split whose word is a part of a name, such as `train` in `edu_fineweb_train_000001`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if set(names) & set(words)), None)
