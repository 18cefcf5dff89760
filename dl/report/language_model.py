"""The section of a language model: loss by position, the hardest tokens and sequences.

Shapes: N sequences, K of them kept in full, T tokens, S = T - 1.
"""

import math

import numpy as np

from dl.evaluation.language import language_figures
from dl.report.plots import Plot, Series, Table, plot
from dl.report.task import NUM_SHADES, Example, TaskSection, figure_text
from dl.runs.predictions import LanguageModel

NUM_SHOWN = 8  # sequences
MAX_WORDS = 400  # tokens of a sequence that are shown
NUM_HARDEST = 15  # tokens
MIN_COUNT = 5  # least number of occurrences of a token in the table of the hardest tokens


def language_section(predictions: LanguageModel) -> TaskSection:
    """Returns the section of a language model. Sequences with a NaN are left out and counted."""
    is_finite_N = np.isfinite(predictions.loss)
    left_out = int((~is_finite_N).sum())
    figures = []
    if predictions.num_tokens[is_finite_N].sum():
        found = language_figures(
            *(x[is_finite_N] for x in (predictions.loss, predictions.num_right, predictions.num_tokens))
        )
        figures = [
            ("perplexity", figure_text(found["perplexity"])),
            ("loss, nats a token", figure_text(found["loss"])),
            ("bits a token", f"{found['loss'].value / math.log(2):.4g}"),
            ("tokens predicted right", figure_text(found["accuracy"])),
            ("tokens", f"{predictions.num_tokens[is_finite_N].sum(dtype=np.int64):,}"),
        ]
    if left_out:
        figures.append(("sequences left out", f"{left_out:,}, whose loss is no finite number"))
    first = predictions.num_worst
    # The worst sequences would bias a mean, so the random ones are used; with few sequences there are none.
    at_random = slice(first if first < len(predictions.shown) else 0, None)
    token_KT, loss_KS = predictions.token[at_random], predictions.token_loss[at_random]
    worst = [_example(predictions, k) for k in range(min(first, NUM_SHOWN))]
    named = ("The sequences with the highest loss a token; the darker, the less expected", worst)
    return TaskSection(
        "Sequences",
        predictions.sample,
        figures,
        _by_position(loss_KS),
        _hardest(predictions, token_KT, loss_KS),
        [named] if worst else [],
    )


def _by_position(loss_KS: np.ndarray) -> list[Plot]:
    count_S = np.isfinite(loss_KS).sum(0)
    position_S = np.flatnonzero(count_S)
    if not position_S.size:
        return []
    mean_S = np.where(np.isfinite(loss_KS), loss_KS, 0.0).sum(0)[position_S] / count_S[position_S]
    title = f"Loss by position, of {len(loss_KS):,} sequences"
    rows = [
        (str(place + 1), f"{mean:.4g}", f"{count_S[place]:,}")
        for place, mean in zip(position_S.tolist(), mean_S, strict=True)
    ][:100]
    return [
        plot(
            title,
            f"Mean loss over how many tokens came before: {mean_S[0]:.4g} nats at first, {mean_S[-1]:.4g} at "
            "last.",
            "tokens before",
            "nats a token",
            [Series("mean", position_S + 1, mean_S)],
            table=Table(title, ("tokens before", "nats a token", "tokens"), rows),
        )
    ]


def _hardest(predictions: LanguageModel, token_KT: np.ndarray, loss_KS: np.ndarray) -> list[Table]:
    is_known_KS = np.isfinite(loss_KS)
    tokens_M, losses_M = token_KT[:, 1:][is_known_KS], loss_KS[is_known_KS].astype(np.float64)
    found, place_M = np.unique(tokens_M, return_inverse=True)
    count = np.bincount(place_M, minlength=len(found))
    mean = np.bincount(place_M, losses_M, len(found)) / np.maximum(count, 1)
    common = np.flatnonzero(count >= MIN_COUNT)
    hardest = common[np.argsort(-mean[common], kind="stable")][:NUM_HARDEST]
    names = [_name(predictions, token) for token in found.tolist()]
    names = [repr(name) if name.isspace() else name for name in names]
    rows = [(names[c], f"{mean[c]:.4g}", f"{count[c]:,}") for c in hardest.tolist()]
    title = f"The hardest tokens of {len(loss_KS):,} sequences, seen {MIN_COUNT} times at least"
    return [Table(title, ("token", "nats", "times"), rows)] if rows else []


def _example(predictions: LanguageModel, k: int) -> Example:
    losses_S, place = predictions.token_loss[k], int(predictions.shown[k])
    words = [(_name(predictions, int(predictions.token[k, 0])), 0)]
    for token, loss in zip(predictions.token[k, 1:].tolist(), losses_S.tolist(), strict=True):
        if math.isnan(loss):  # padding
            continue
        # 1 - p: 0 for a certain token, the darkest shade for an unexpected one.
        words.append((_name(predictions, token), math.ceil(-math.expm1(-max(loss, 0.0)) * NUM_SHADES)))
    per_token = predictions.loss[place] / max(int(predictions.num_tokens[place]), 1)
    more = f", the first {MAX_WORDS} tokens" if len(words) > MAX_WORDS else ""
    caption = f"row {predictions.index[place]}, {per_token:.4g} nats a token{more}"
    return Example((), words[:MAX_WORDS], caption)


def _name(predictions: LanguageModel, token: int) -> str:
    if not predictions.token_names:
        return f"{token} "
    name = predictions.token_names[token]
    return name if name.isprintable() else repr(name)[1:-1]  # shows a line break as \n
