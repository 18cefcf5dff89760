"""What the baselines reach on the text data sets, and how long they take.

    python -m benchmarks.baselines [SET ...]

The sets are tiny_shakespeare, masked_shakespeare (its characters with BERT's masks), sst2_sentences,
rt_polarity and multi30k_en_de; by default all of them. They are read from TFDS_DATA_DIR. A network that is
reported on one of these sets must beat its row.
"""

import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from dl.data.folds import stratified_folds
from dl.data.text.language_modeling import language_modeling
from dl.data.text.masking import mask_tokens
from dl.data.tfds.find import find_or_prepare
from dl.evaluation.baselines import KneserNey, Neighbours, copy_of_source, fit_tf_idf, word_for_word
from dl.evaluation.intervals import Interval, t_interval, wilson
from dl.evaluation.spread import Spread
from dl.evaluation.translation import score_translations
from dl.runs.console import print_table
from dl.runs.tables import Table

Row = tuple[str, str, str, float, float, float]


def read(name: str) -> dict[str, dict[str, list]]:
    """Returns the features of all splits of a prepared set; texts are strings."""
    import tensorflow_datasets as tfds

    _, folder, _ = find_or_prepare([name], may_fall_back=False)
    builder = tfds.builder_from_directory(folder)
    found = {}
    for split in builder.info.splits:
        examples = list(builder.as_data_source(split))
        found[split] = {
            feature: [
                value.decode() if isinstance(value := one[feature], bytes) else value for one in examples
            ]
            for feature in builder.info.features
        }
    return found


def tiny_shakespeare() -> Iterator[Row]:
    """Characters: the n-gram models of each order, with the discounts of the text and with one of 0.75."""
    texts = {split: features["text"][0] for split, features in read("tiny_shakespeare").items()}
    names = sorted(set("".join(texts.values())))
    number = {name: place for place, name in enumerate(names)}
    tokens = {split: np.array([number[name] for name in text]) for split, text in texts.items()}
    for discount, orders in ((None, range(1, 9)), (0.75, (6,))):
        model = KneserNey.fit([tokens["train"]], len(names), max(orders), discount)
        kind = "modified Kneser-Ney" if discount is None else f"Kneser-Ney, discount {discount}"
        for order in orders:
            losses = {split: model.losses([tokens[split]], order) for split in ("validation", "test")}
            losses["both"] = np.concatenate(list(losses.values()))
            for split, values in losses.items():
                mean = float(values.mean())
                yield f"{order}-gram, {kind}", split, "nats a character", mean, np.nan, np.nan


def masked_shakespeare() -> Iterator[Row]:
    """Characters in rows of 128, of which BERT's masking hides 15 %."""
    data = language_modeling("tiny_shakespeare", sequence_length=128, special=["mask"])
    mask_id = data.tokenizer.mask_id
    assert mask_id is not None
    for uses_neighbours in (False, True):
        scores = Neighbours(mask_tokens(data.tokenizer), mask_id, uses_neighbours)(data)
        for metric, rows in scores.examples["test"].items():
            interval = Spread.of(*rows.T).interval()
            assert interval is not None
            yield scores.name, "test", metric, *interval[0]


def sst2_sentences() -> Iterator[Row]:
    sets = read("sst2_sentences")
    texts = {split: (one["sentence"], np.array(one["label"])) for split, one in sets.items()}
    model = fit_tf_idf(*texts["train"], *texts["validation"])
    for split in ("validation", "test"):
        hits = model.score(*texts[split])["accuracy"][:, 0]
        yield model.name, split, "accuracy", *wilson(int(hits.sum()), len(hits))


def rt_polarity() -> Iterator[Row]:
    """Ten folds; the settings are chosen inside of the training part of each one."""
    one = read("rt_polarity")["train"]
    texts, labels = np.array(one["sentence"], object), np.array(one["label"])
    rows, accuracies = np.arange(len(labels)), []
    for fold in stratified_folds(labels, 10):
        train = np.setdiff1d(rows, fold)
        model = fit_tf_idf(list(texts[train]), labels[train])
        accuracies.append(model.score(list(texts[fold]), labels[fold])["accuracy"][:, 0].mean())
    interval: Interval = t_interval(accuracies, is_share=True)
    yield "TF-IDF, linear model", "ten folds", "accuracy", *interval


def multi30k_en_de() -> Iterator[Row]:
    sets = read("multi30k_en_de")
    for source, target in (("en", "de"), ("de", "en")):
        train, test = sets["train"], sets["test"]
        for name, written in (
            ("word for word, IBM model 1", word_for_word(train[source], train[target], test[source])),
            ("copy of the source", copy_of_source(test[source])),
        ):
            scores = score_translations(written, test[target])
            for metric, figure in scores.figures.items():
                yield f"{name}, {source} to {target}", "test", metric, *figure[:3]


ALL = (tiny_shakespeare, masked_shakespeare, sst2_sentences, rt_polarity, multi30k_en_de)
SETS: dict[str, Callable[[], Iterator[Row]]] = {one.__name__: one for one in ALL}


def main() -> None:
    for name in sys.argv[1:] or SETS:
        started = time.perf_counter()
        rows = [
            [*words, f"{value:.4f}", "" if np.isnan(low) else f"{low:.4f}..{high:.4f}"]
            for *words, value, low, high in SETS[name]()
        ]
        title = f"{name}, {time.perf_counter() - started:.0f} s"
        print_table(Table(title, ["baseline", "split", "metric", "value", "95 % interval"], rows).to_rich())


if __name__ == "__main__":
    main()
