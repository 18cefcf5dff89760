"""The sections of tasks that predict a token or a class at each position: masks, target sequences, tags.

Shapes: K sequences that are kept in full, T targets of a sequence, M targets in all, C classes.
"""

import numpy as np

from dl.report.language_model import MAX_WORDS, NUM_SHOWN, caption_of, hardest_tokens, token_figures
from dl.report.plots import Table
from dl.report.task import NUM_SHADES, Example, TaskSection, Words
from dl.report.token_text import TokenText, num_up_to_last, shade_of_loss
from dl.runs.predictions import MaskedLanguageModel, SequenceToSequence, Tagging, Tokens

MAX_ROWS = 50  # classes in a table
NUM_CONFUSIONS = 15


def masked_section(predictions: MaskedLanguageModel) -> TaskSection:
    """Returns the section of a masked language model: each masked token with the model's prediction."""
    text = TokenText(predictions.token_names)

    def example(k: int) -> Example:
        words: list[tuple[str, int]] = []
        length = num_up_to_last(predictions.token[k] >= 0)
        for t in range(min(length, MAX_WORDS)):
            token, target = int(predictions.token[k, t]), int(predictions.target[k, t])
            if target < 0:
                words.append((text(token) if token >= 0 else "", 0))
                continue
            truth, guess = text.word(target), text.word(int(predictions.guess[k, t]))
            shown = f"[{truth}]" if truth == guess else f"[{truth} → {guess}]"
            words += [(" ", 0), (shown, shade_of_loss(float(predictions.token_loss[k, t]))), (" ", 0)]
        return Example((), [("", words)], caption_of(predictions, int(predictions.shown[k]), length))

    rest = _random(predictions)
    tables = [
        *hardest_tokens(text, predictions.target[rest], predictions.token_loss[rest]),
        *_confusions(predictions, [text.word(token) for token in range(len(predictions.token_names))]),
    ]
    about = "masked tokens are in brackets, [true → predicted]; the darker, the less expected"
    return TaskSection(
        "Masked tokens",
        predictions.sample,
        token_figures(predictions),
        (),
        tables,
        _groups(predictions, example, about),
    )


def sequence_section(predictions: SequenceToSequence) -> TaskSection:
    """Returns the section of a sequence-to-sequence task: sources, targets and predictions."""
    text = TokenText(predictions.token_names)

    def example(k: int) -> Example:
        source = [token for token in predictions.token[k].tolist() if token >= 0]
        target: list[tuple[str, int]] = []
        guess: list[tuple[str, int]] = []
        for t in np.flatnonzero(predictions.target[k] >= 0).tolist():
            truth, predicted = int(predictions.target[k, t]), int(predictions.guess[k, t])
            target.append((text(truth), shade_of_loss(float(predictions.token_loss[k, t]))))
            guess.append((text(predicted), 0 if truth == predicted else NUM_SHADES))
        lines: list[tuple[str, Words]] = [
            ("source", [(text(token), 0) for token in source[:MAX_WORDS]]),
            ("target", target[:MAX_WORDS]),
            ("predicted", guess[:MAX_WORDS]),
        ]
        num_words = max(len(source), len(target))
        return Example((), lines, caption_of(predictions, int(predictions.shown[k]), num_words))

    is_exact_N = (predictions.num_right == predictions.num_tokens) & (predictions.num_tokens > 0)
    share = is_exact_N.sum() / max(int((predictions.num_tokens > 0).sum()), 1)
    figures = [*token_figures(predictions), ("sequences predicted right", f"{share:.4g}")]
    rest = _random(predictions)
    tables = hardest_tokens(text, predictions.target[rest], predictions.token_loss[rest])
    about = "each token is predicted from the true tokens before it; the darker, the less expected"
    return TaskSection(
        "Sequences", predictions.sample, figures, (), tables, _groups(predictions, example, about)
    )


def tagging_section(predictions: Tagging) -> TaskSection:
    """Returns the section of a classifier of tokens: figures of each class, confusions, a few sequences."""
    text, names = TokenText(predictions.token_names), predictions.class_names

    def example(k: int) -> Example:
        words: list[tuple[str, int]] = []
        length = num_up_to_last(predictions.token[k] >= 0)
        for t in range(min(length, MAX_WORDS)):
            token, target = int(predictions.token[k, t]), int(predictions.target[k, t])
            words.append((text(token) if token >= 0 else "", 0))
            if target >= 0:
                truth, guess = names[target], names[int(predictions.guess[k, t])]
                shown = f"[{truth}]" if truth == guess else f"[{truth} → {guess}]"
                words += [(shown, shade_of_loss(float(predictions.token_loss[k, t]))), (" ", 0)]
        return Example((), [("", words)], caption_of(predictions, int(predictions.shown[k]), length))

    figures = [item for item in token_figures(predictions) if item[0] not in ("perplexity", "bits a token")]
    tables = [*_classes(predictions), *_confusions(predictions, names)]
    about = "classes are in brackets, [true → predicted]; the darker, the less expected"
    return TaskSection(
        "Classes of tokens", predictions.sample, figures, (), tables, _groups(predictions, example, about)
    )


def _random(predictions: Tokens) -> slice:
    """Returns the random sequences, without the worst, which would bias a mean; all if there are few."""
    first = predictions.num_worst
    return slice(first if first < len(predictions.shown) else 0, None)


def _groups(predictions, example, about):  # type: ignore[no-untyped-def]
    first, size = predictions.num_worst, len(predictions.shown)
    groups = (
        (f"The sequences with the highest loss a token; {about}", range(min(first, NUM_SHOWN))),
        ("Others, at random", range(first, min(size, first + NUM_SHOWN))),
    )
    return [(title, [example(k) for k in places]) for title, places in groups if len(places)]


def _pairs(predictions: Tokens) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the targets that count and their predictions, and of how many sequences they are."""
    rest = _random(predictions)
    target_KT, guess_KT = predictions.target[rest], predictions.guess[rest]
    counts_KT = target_KT >= 0
    return target_KT[counts_KT], guess_KT[counts_KT], len(target_KT)


def _confusions(predictions: Tokens, names: list[str] | tuple[str, ...]) -> list[Table]:
    target_M, guess_M, size = _pairs(predictions)
    is_wrong_M = target_M != guess_M
    pairs, count = np.unique(
        np.stack([target_M[is_wrong_M], guess_M[is_wrong_M]], 1), axis=0, return_counts=True
    )
    order = np.argsort(-count, kind="stable")[:NUM_CONFUSIONS]
    rows = [
        (*(names[c] if names else str(c) for c in pairs[place].tolist()), f"{count[place]:,}")
        for place in order.tolist()
    ]
    title = f"The most frequent confusions of {size:,} sequences"
    return [Table(title, ("true", "predicted", "times"), rows)] if rows else []


def _classes(predictions: Tagging) -> list[Table]:
    target_M, guess_M, size = _pairs(predictions)
    num_classes = len(predictions.class_names)
    true_C, predicted_C, right_C = (
        np.bincount(values, minlength=num_classes)
        for values in (target_M, guess_M, target_M[target_M == guess_M])
    )
    precision_C, recall_C = right_C / np.maximum(predicted_C, 1), right_C / np.maximum(true_C, 1)
    f1_C = 2 * right_C / np.maximum(true_C + predicted_C, 1)
    shown = np.flatnonzero(true_C + predicted_C)
    shown = shown[np.argsort(f1_C[shown], kind="stable")][:MAX_ROWS]
    rows = [
        (
            predictions.class_names[c],
            f"{true_C[c]:,}",
            *(f"{column[c]:.4f}" for column in (precision_C, recall_C, f1_C)),
        )
        for c in shown.tolist()
    ]
    title = f"Figures of each class in {size:,} sequences, the lowest F1 first"
    return [Table(title, ("class", "tokens", "precision", "recall", "F1"), rows)] if rows else []
