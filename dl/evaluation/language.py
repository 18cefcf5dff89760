"""Metrics of a language model from sums over its sequences, with intervals over the sequences.

Tokens of one sequence are correlated, so the intervals treat sequences, not tokens, as independent.

Shapes: N sequences.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError
from dl.evaluation.figure import Figure, no_interval
from dl.evaluation.spread import Spread


def language_figures(
    loss: ArrayLike, num_right: ArrayLike, num_tokens: ArrayLike, num_bytes: int | None = None
) -> dict[str, Figure]:
    """Returns `loss` in nats per token, its exponential `perplexity`, and the `accuracy` over the tokens.

    With `num_bytes` there are also the `bits_per_byte`: Σ loss / (ln 2 · bytes). They do not depend on how
    text is divided into tokens, so models with different tokenizers can be compared by them.

    Args:
      loss: the sum of the cross-entropies of the tokens of each sequence, in nats, shape N.
      num_right: the number of correctly predicted tokens of each sequence, shape N.
      num_tokens: the number of tokens of each sequence that count, shape N; at least one in total.
      num_bytes: the number of bytes of the text, as UTF-8, that all counted tokens stand for.

    Raises:
      UserError: the lengths differ, or no token counts.
    """
    loss_N, right_N, tokens_N = (np.asarray(x, np.float64) for x in (loss, num_right, num_tokens))
    if not loss_N.shape == right_N.shape == tokens_N.shape or loss_N.ndim != 1 or not tokens_N.sum() > 0:
        raise UserError(
            f"loss, num_right and num_tokens have the shapes {loss_N.shape}, {right_N.shape} and "
            f"{tokens_N.shape} and {tokens_N.sum():g} tokens; give one number for each sequence, and at "
            "least one token"
        )
    per_token = _ratio(loss_N, tokens_N, "min")
    value, low, high = map(_exp, per_token[:3])
    perplexity = Figure(value, low, high, "min", per_token.method)
    figures = {"loss": per_token, "perplexity": perplexity, "accuracy": _ratio(right_N, tokens_N, "max")}
    if num_bytes:
        bits = tokens_N.sum() / num_bytes / np.log(2)
        value, low, high = (float(bits * bound) for bound in per_token[:3])
        figures["bits_per_byte"] = Figure(value, low, high, "min", per_token.method)
    return figures


def _ratio(total_N: np.ndarray, count_N: np.ndarray, better: Literal["min", "max"]) -> Figure:
    """Returns Σ total / Σ count with its interval over the sequences."""
    interval = Spread.of(total_N, count_N).interval()
    if interval is None:
        return no_interval(float(total_N.sum() / count_N.sum()), better)
    (value, low, high), method = interval
    return Figure(value, low, high, better, method)


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
