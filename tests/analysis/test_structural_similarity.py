"""SSIM, against a loop over windows that follows the paper."""

import numpy as np
import pytest

from dl.analysis.structural_similarity import structural_similarities
from dl.errors import UserError


def _by_windows(x, y):
    x, y = ((one - one.min()) / np.ptp(one) for one in (x, y))
    found = []
    for row in range(x.shape[0] - 6):
        for column in range(x.shape[1] - 6):
            a, b = (one[row : row + 7, column : column + 7].ravel() for one in (x, y))
            ((var_a, cov), (_, var_b)) = np.cov(a, b)
            top = (2 * a.mean() * b.mean() + 1e-4) * (2 * cov + 9e-4)
            found.append(top / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (var_a + var_b + 9e-4)))
    return np.mean(found)


def test_it_is_the_mean_over_windows():
    rng = np.random.default_rng(0)
    maps = rng.random((2, 11, 9))
    others = maps + rng.random(maps.shape)
    expected = [_by_windows(x, y) for x, y in zip(maps, others, strict=True)]
    np.testing.assert_allclose(structural_similarities(maps, others), expected, rtol=1e-9)
    np.testing.assert_allclose(structural_similarities(maps, maps), 1)


def test_other_shapes_are_refused():
    with pytest.raises(UserError, match="at least 7 by 7"):
        structural_similarities(np.zeros((1, 6, 9)), np.zeros((1, 6, 9)))
