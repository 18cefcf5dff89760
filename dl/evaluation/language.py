"""Figures of a language model from the sums of its sequences, with intervals over the sequences.

Tokens of one sequence are alike, so that it is sequences that were drawn, not tokens.

Shapes: N sequences.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError
from dl.evaluation.figure import Figure, no_interval
from dl.evaluation.spread import Spread


def language_figures(loss: ArrayLike, num_right: ArrayLike, num_tokens: ArrayLike) -> dict[str, Figure]:
    """Returns `loss` in nats a token, its exponential `perplexity`, and `accuracy`, a share of the tokens.

    Args:
      loss: the sum of the cross-entropies of a sequence's tokens, nats, shape N.
      num_right: how many of its tokens are predicted, shape N.
      num_tokens: how many count, shape N; at least one in all.

    Raises:
      UserError: the lengths differ, or no token counts.
    """
    loss_N, right_N, tokens_N = (np.asarray(x, np.float64) for x in (loss, num_right, num_tokens))
    if not loss_N.shape == right_N.shape == tokens_N.shape or loss_N.ndim != 1 or not tokens_N.sum() > 0:
        raise UserError(
            f"loss, num_right and num_tokens have the shapes {loss_N.shape}, {right_N.shape} and "
            f"{tokens_N.shape} and {tokens_N.sum():g} tokens; give one number a sequence, and some tokens"
        )
    per_token = _ratio(loss_N, tokens_N, "min")
    value, low, high = map(_exp, per_token[:3])
    perplexity = Figure(value, low, high, "min", per_token.method)
    return {"loss": per_token, "perplexity": perplexity, "accuracy": _ratio(right_N, tokens_N, "max")}


def _ratio(total_N: np.ndarray, count_N: np.ndarray, better: Literal["min", "max"]) -> Figure:
    """Returns Σ total / Σ count with the interval that a metric of the same sums has."""
    interval = Spread.of(total_N, count_N).interval()
    if interval is None:
        return no_interval(float(total_N.sum() / count_N.sum()), better)
    (value, low, high), method = interval
    return Figure(value, low, high, better, method)


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
