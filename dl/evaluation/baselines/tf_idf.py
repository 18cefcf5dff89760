"""The baseline of a text classifier: TF-IDF of words and characters with a linear model, by scikit-learn.

The features are the words and pairs of words, with or without the sequences of 2 to 5 characters inside of a
word, with sublinear term frequencies 1 + log tf and L2 norm 1. The models are a linear SVM and a logistic
regression. Source: Wang & Manning 2012 (Baselines and Bigrams), for the pairs of words.

Shapes: N examples, V features.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dl.errors import UserError
from dl.stopping import FINAL_SPLIT
from dl.types import BaselineScores, Source, Splits

_WORDS, _BOTH = "words", "words and characters"
_SVM, _LOGISTIC = "linear SVM", "logistic regression"
_Setting = tuple[str, str, float]
# Features, model, and C, the inverse strength of the L2 penalty.
_SETTINGS: tuple[_Setting, ...] = (
    *((_WORDS, _SVM, c) for c in (0.3, 1.0)),
    *((_BOTH, _SVM, c) for c in (0.1, 0.3, 1.0)),
    *((_BOTH, _LOGISTIC, c) for c in (3.0, 10.0)),
)
_WORD = r"\w+|[^\w\s]"


@dataclasses.dataclass(frozen=True)
class TfIdf:
    """The linear model whose settings are best on the validation split.

    Metric: `accuracy`, and `loss` in nats if the best model is a logistic regression. The texts are those
    that the network reads: the tokens of each row, decoded by the tokenizer of the data. Data without a split
    for validation beside `test` have the settings chosen on a tenth of the training rows.

    Attributes:
      input_name: name of the feature that holds the tokens.
    """

    input_name: str = "tokens"

    def __call__(self, data: Splits) -> BaselineScores:
        """Fits the models and scores every split.

        Raises:
          UserError: the data have no tokenizer or no labels, or the texts have no words.
        """
        train = self._read(data, data.train)
        splits = {name: self._read(data, source) for name, source in data.evaluations.items()}
        chosen_on = next((name for name in splits if name != FINAL_SPLIT), None)
        is_beside_test = chosen_on is not None and FINAL_SPLIT in splits
        model = fit_tf_idf(*train, *(splits[chosen_on] if is_beside_test and chosen_on else ()))
        return BaselineScores(model.name, {name: model.score(*split) for name, split in splits.items()})

    def _read(self, data: Splits, source: Source) -> tuple[list[str], np.ndarray]:
        """Returns the texts and the labels of a split."""
        rows = source[np.arange(len(source))]
        if getattr(data, "tokenizer", None) is None or self.input_name not in rows or "label" not in rows:
            tokenizer = "" if getattr(data, "tokenizer", None) else " and no tokenizer"
            raise UserError(
                f"TF-IDF needs data with a tokenizer and the features {self.input_name} and label; the data "
                f"have {', '.join(rows)}{tokenizer}"
            )
        return read_texts(data, rows, self.input_name), rows["label"]


def read_texts(data: Splits, rows: Mapping[str, np.ndarray], input_name: str) -> list[str]:
    """Returns the texts of examples as a network reads them: their tokens, decoded by the tokenizer."""
    tokenizer: Any = getattr(data, "tokenizer", None)
    tokens_NT = rows[input_name]
    is_text_NT = tokens_NT != (-1 if tokenizer.padding_id is None else tokenizer.padding_id)
    if "segment_ids" in rows:
        is_text_NT = rows["segment_ids"] > 0
    pairs = zip(tokens_NT, is_text_NT, strict=True)
    return [tokenizer.decode(row[is_text].tolist()) for row, is_text in pairs]


class TextClassifier(NamedTuple):
    """A fitted model.

    Attributes:
      name: text about the features and the model.
      vectorizer: computes the TF-IDF of texts, shape N × V.
      model: the linear model.
    """

    name: str
    vectorizer: Any
    model: Any

    def score(self, texts: Sequence[str], labels: np.ndarray) -> dict[str, np.ndarray]:
        """Returns total and weight of each example for each metric, shape N × 2."""
        features_NV = self.vectorizer.transform(texts)
        each = {"accuracy": np.asarray(self.model.predict(features_NV) == labels, np.float64)}
        if hasattr(self.model, "predict_log_proba"):
            column_N = np.searchsorted(self.model.classes_, labels)
            is_known_N = np.isin(labels, self.model.classes_)
            log_p_NC = self.model.predict_log_proba(features_NV)
            log_p_N = log_p_NC[np.arange(len(texts)), np.minimum(column_N, log_p_NC.shape[1] - 1)]
            each["loss"] = np.where(is_known_N, -log_p_N, np.inf)
        return {name: np.stack([values, np.ones(len(values))], -1) for name, values in each.items()}


def fit_tf_idf(
    texts: Sequence[str],
    labels: np.ndarray,
    validation_texts: Sequence[str] | None = None,
    validation_labels: np.ndarray | None = None,
) -> TextClassifier:
    """Fits every setting and returns the model with the best accuracy on the validation texts.

    Args:
      texts: the training texts, shape N.
      labels: the class of each text, integers, shape N.
      validation_texts: the texts that choose the settings. `None` means that a random tenth of the training
        texts chooses, and that the chosen model is fitted again on all of them. Of few texts, or with a class
        of a single text, the first setting is taken.
      validation_labels: their classes.

    Raises:
      UserError: the training texts have fewer than two classes, or no words.
    """
    from sklearn.model_selection import train_test_split

    labels = np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise UserError(f"the {len(texts)} training texts have fewer than two classes; give texts of others")
    if validation_texts is not None and validation_labels is not None:
        return _best(texts, labels, validation_texts, validation_labels)[0]
    rows, counts = np.arange(len(texts)), np.unique(labels, return_counts=True)[1]
    setting = _SETTINGS[0]
    if counts.min() > 1 and len(texts) >= 10 * len(counts):  # each part then has all classes
        fitted, held_out = train_test_split(rows, test_size=0.1, random_state=0, stratify=labels)
        parts = [([texts[row] for row in part], labels[part]) for part in (fitted, held_out)]
        _, setting = _best(*parts[0], *parts[1])
    vectorizer = _vectorizer(setting[0], texts)
    model = _model(setting).fit(vectorizer.transform(texts), labels)
    return TextClassifier(_name(setting), vectorizer, model)


def _best(
    texts: Sequence[str], labels: np.ndarray, chosen_texts: Sequence[str], chosen_labels: np.ndarray
) -> tuple[TextClassifier, _Setting]:
    """Returns the model that is best on the chosen texts. Of equal ones it is the first."""
    found = []
    for features in (_WORDS, _BOTH):
        vectorizer = _vectorizer(features, texts)
        train_NV, chosen_NV = vectorizer.transform(texts), vectorizer.transform(chosen_texts)
        for setting in (one for one in _SETTINGS if one[0] == features):
            model = _model(setting).fit(train_NV, labels)
            found.append((float(model.score(chosen_NV, chosen_labels)), setting, vectorizer, model))
    _, setting, vectorizer, model = max(found, key=lambda one: one[0])
    return TextClassifier(_name(setting), vectorizer, model), setting


def _vectorizer(features: str, texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    parts = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD)]
    if features == _BOTH:
        parts.append(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True))
    try:
        return make_union(*parts).fit(texts)
    except ValueError as error:
        raise UserError(f"TF-IDF of the training texts cannot be computed ({error})") from None


def _model(setting: _Setting) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    _, kind, c = setting
    return LinearSVC(C=c, random_state=0) if kind == _SVM else LogisticRegression(C=c, max_iter=1_000)


def _name(setting: _Setting) -> str:
    return f"{setting[1]} on TF-IDF of {setting[0]}, C = {setting[2]:g}"
