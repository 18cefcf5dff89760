"""Occlusion: the loss of score when a window of the input is covered (Zeiler & Fergus 2014, section 4.2).

Shapes: N examples, W windows.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dl.analysis.attributions.scoring import (
    Score,
    backgrounds_of,
    batch_size_of,
    masked_scores,
    partial_of,
    scores_of,
    targets_of,
)
from dl.errors import UserError


def occlusion(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    window: Sequence[int],
    stride: Sequence[int] | None = None,
    background: Any = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns how much the target's score falls where a window is covered.

    Where windows overlap, the mean over all windows that cover a place is returned.

    Args:
      score: the score, from inputs (B, …) to (B, C).
      inputs: N examples of shape (N, …). Whole numbers, such as tokens, are allowed.
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      window: size of the window along the first axes of an example, such as (4, 4) for images of shape
        (H, W, C). All channels are covered together.
      stride: distance between windows along these axes. `None` means that of the window.
      background: what covers the window: a number, an example, or several examples to take the mean over.
      batch_size: number of copies in memory. `None` chooses it by the size of the activations.

    Returns:
      Falls of the score, shape (N, …) with the axes of the window.

    Raises:
      UserError: window or stride do not fit an example.
    """
    score, inputs = partial_of(score), np.asarray(inputs)
    axes = inputs.shape[1 : 1 + len(window)]
    stride = window if stride is None else stride
    fits = len(axes) == len(window) == len(stride)
    if not (fits and all(1 <= s <= w <= n for s, w, n in zip(stride, window, axes, strict=True))):
        raise UserError(
            f"window={tuple(window)} and stride={tuple(stride)} do not fit an example of shape "
            f"{inputs.shape[1:]}; a window must not be larger, and a stride not larger than a window"
        )
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    backgrounds = backgrounds_of(background, inputs)
    covers = _windows(axes, window, stride)
    more = (1,) * (inputs.ndim - 1 - len(axes))

    def keep(rows: np.ndarray) -> np.ndarray:
        return ~covers[rows].reshape(len(rows), *axes, *more)

    whole_N = scores_of(score, inputs, size)[np.arange(len(inputs)), targets_N].astype(np.float64)
    maps = []
    for example, target, whole in zip(inputs, targets_N, whole_N, strict=True):
        covered_W = masked_scores(score, example, backgrounds, keep, len(covers), size)[:, target]
        maps.append(np.tensordot(whole - covered_W, covers, 1) / covers.sum(0))
    return np.stack(maps)


def _windows(axes: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """Returns what each window covers, bool, shape (W, …). The last window may reach over the end."""
    starts = [
        range(0, length - width + step, step)
        for length, width, step in zip(axes, window, stride, strict=True)
    ]
    corners = list(itertools.product(*starts))
    covers = np.zeros((len(corners), *axes), bool)
    for cover, corner in zip(covers, corners, strict=True):
        cover[tuple(slice(start, start + width) for start, width in zip(corner, window, strict=True))] = True
    return covers
