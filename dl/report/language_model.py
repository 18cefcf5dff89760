"""The section of a language model: loss by position, the hardest tokens and sequences.

Shapes: N sequences, K of them kept in full, T tokens, S = T - 1.
"""

import itertools
import math

import numpy as np

from dl.evaluation.language import language_figures
from dl.report.plots import Plot, Series, Table, plot
from dl.report.task import Example, TaskSection, figure_text
from dl.report.token_text import TokenText, num_up_to_last, shade_of_loss
from dl.runs.predictions import LanguageModel, Tokens

NUM_SHOWN = 8  # sequences
MAX_WORDS = 400  # tokens of a sequence that are shown
NUM_HARDEST = 15  # tokens
MIN_COUNT = 5  # least number of occurrences of a token in the table of the hardest tokens


def language_section(predictions: LanguageModel) -> TaskSection:
    """Returns the section of a language model. Sequences with a NaN are left out and counted."""
    text = TokenText(predictions.token_names)
    first = predictions.num_worst
    # The worst sequences would bias a mean, so the random ones are used; with few sequences there are none.
    at_random = slice(first if first < len(predictions.shown) else 0, None)
    token_KT, loss_KS = predictions.token[at_random], predictions.token_loss[at_random]
    worst = [_example(predictions, k, text) for k in range(min(first, NUM_SHOWN))]
    named = ("The sequences with the highest loss a token; the darker, the less expected", worst)
    return TaskSection(
        "Sequences",
        predictions.sample,
        token_figures(predictions),
        _by_position(loss_KS),
        hardest_tokens(text, token_KT[:, 1:], loss_KS),
        [named] if worst else [],
    )


def token_figures(predictions: LanguageModel | Tokens) -> list[tuple[str, str]]:
    """Returns perplexity, loss and accuracy as text. Sequences with a NaN are left out and counted."""
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
    return figures


def _by_position(loss_KS: np.ndarray) -> list[Plot]:
    count_S = np.isfinite(loss_KS).sum(0)
    position_S = np.flatnonzero(count_S)
    if not position_S.size:
        return []
    mean_S = np.where(np.isfinite(loss_KS), loss_KS, 0.0).sum(0)[position_S] / count_S[position_S]
    # Positions start again in each of the sequences that are packed into a row. A gap shows where.
    is_known_KS = np.isfinite(loss_KS)
    is_packed = ((is_known_KS[:, 1:] & ~is_known_KS[:, :-1]).sum(1) + is_known_KS[:, 0] > 1).any()
    place_name = "place in the row" if is_packed else "tokens before"
    title = f"Loss by position, of {len(loss_KS):,} {'rows' if is_packed else 'sequences'}"
    rows = [
        (str(place + 1), f"{mean:.4g}", f"{count_S[place]:,}")
        for place, mean in zip(position_S.tolist(), mean_S, strict=True)
    ][:100]
    return [
        plot(
            title,
            f"Mean loss over the {place_name}: {mean_S[0]:.4g} nats at first, {mean_S[-1]:.4g} at last.",
            place_name,
            "nats a token",
            [Series("mean", position_S + 1, mean_S)],
            table=Table(title, (place_name, "nats a token", "tokens"), rows),
        )
    ]


def hardest_tokens(text: TokenText, token_KS: np.ndarray, loss_KS: np.ndarray) -> list[Table]:
    """Returns a table of the tokens with the highest mean loss; no table if no token is frequent enough."""
    is_known_KS = np.isfinite(loss_KS)
    tokens_M, losses_M = token_KS[is_known_KS], loss_KS[is_known_KS].astype(np.float64)
    found, place_M = np.unique(tokens_M, return_inverse=True)
    count = np.bincount(place_M, minlength=len(found))
    mean = np.bincount(place_M, losses_M, len(found)) / np.maximum(count, 1)
    common = np.flatnonzero(count >= MIN_COUNT)
    hardest = common[np.argsort(-mean[common], kind="stable")][:NUM_HARDEST]
    rows = [(text.word(int(found[c])), f"{mean[c]:.4g}", f"{count[c]:,}") for c in hardest.tolist()]
    title = f"The hardest tokens of {len(loss_KS):,} sequences, seen {MIN_COUNT} times at least"
    return [Table(title, ("token", "nats", "times"), rows)] if rows else []


def _example(predictions: LanguageModel, k: int, text: TokenText) -> Example:
    losses_S, place = predictions.token_loss[k], int(predictions.shown[k])
    words = [(text(int(predictions.token[k, 0])), 0)]
    length = num_up_to_last(np.isfinite(losses_S))
    following = zip(predictions.token[k, 1:].tolist(), losses_S.tolist(), strict=True)
    for token, loss in itertools.islice(following, length):
        # A token without a loss was read but not predicted, as the first one of each packed sequence.
        words.append((text(token), 0 if math.isnan(loss) else shade_of_loss(loss)))
    return Example((), [("", words[:MAX_WORDS])], caption_of(predictions, place, len(words)))


def caption_of(predictions: LanguageModel | Tokens, place: int, num_words: int = 0) -> str:
    """Returns the line below a sequence: its row, its loss, and how much of it is shown."""
    num_tokens = int(predictions.num_tokens[place])
    loss = (
        f"{predictions.loss[place] / num_tokens:.4g} nats a token" if num_tokens else "no token is predicted"
    )
    more = f", the first {MAX_WORDS} tokens" if num_words > MAX_WORDS else ""
    return f"row {predictions.index[place]}, {loss}{more}"
