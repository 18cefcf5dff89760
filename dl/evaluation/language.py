"""Figures of a language model from the sums of its sequences, with intervals over the sequences.

Tokens of one sequence are alike, so that it is sequences that were drawn, not tokens.

Shapes: N sequences.
"""

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError
from dl.evaluation.figure import Figure, half_width, no_interval, share_interval

_METHOD = "delta method over the sequences"


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
    per_token, half = _ratio(loss_N, tokens_N)
    accuracy, half_of_accuracy = _ratio(right_N, tokens_N)
    low, high = share_interval(accuracy, half_of_accuracy)
    if not np.isfinite(half):
        return {
            "loss": no_interval(per_token, "min"),
            "perplexity": no_interval(_exp(per_token), "min"),
            "accuracy": no_interval(accuracy, "max"),
        }
    bounds = per_token - half, per_token + half
    return {
        "loss": Figure(per_token, *bounds, "min", _METHOD),
        "perplexity": Figure(_exp(per_token), _exp(bounds[0]), _exp(bounds[1]), "min", _METHOD),
        "accuracy": Figure(accuracy, low, high, "max", _METHOD if low <= high else ""),
    }


def _ratio(total_N: np.ndarray, count_N: np.ndarray) -> tuple[float, float]:
    """Returns Σ total / Σ count and the half width of its interval (ratio estimator, Cochran 1977, §6.3)."""
    ratio = float(total_N.sum() / count_N.sum())
    return ratio, half_width((total_N - ratio * count_N) / count_N.mean())


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
