"""The power law with a floor of an error over the number of examples or parameters.

Hestness et al. 2017; Henighan et al. 2020, eq. 1.1. Shapes: S sizes, R runs of each, G exponents.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError
from dl.evaluation.intervals import Interval

_EXPONENTS = (0.01, 4.0)
_NUM_EXPONENTS = 400  # exponents of the grid, and of a finer grid
_ROUNDING = 1e-9
REJECTED_BELOW = 0.05  # p-value of the lack of fit


class PowerLaw(NamedTuple):
    """error(n) = scale n^-exponent + floor, with neither scale nor floor below 0."""

    scale: float
    exponent: float
    floor: float

    def __call__(self, sizes: ArrayLike) -> np.ndarray:
        return self.scale * np.asarray(sizes, float) ** -self.exponent + self.floor


def fit(sizes: ArrayLike, errors: ArrayLike) -> PowerLaw:
    """Fits a power law to the errors by least squares.

    For a given exponent, scale and floor are a linear problem, so only the exponent is searched, between 0.01
    and 4 (variable projection, Golub & Pereyra 1973).

    Raises:
      UserError: there are fewer than three sizes.
    """
    from scipy import optimize

    sizes, errors = np.asarray(sizes, float).ravel(), np.asarray(errors, float).ravel()
    if len(set(sizes.tolist())) < 3:
        raise UserError(f"{len(set(sizes.tolist()))} sizes do not determine a power law; give at least three")
    reference = _middle(sizes)

    def solve(exponent: float) -> tuple[np.ndarray, float]:
        columns = np.stack([(sizes / reference) ** -exponent, np.ones_like(sizes)], 1)
        coefficients, distance = optimize.nnls(columns, errors)
        return coefficients, float(distance)

    grid = np.geomspace(*_EXPONENTS, 60)
    nearest = int(np.argmin([solve(exponent)[1] for exponent in grid]))
    bounds = grid[max(nearest - 1, 0)], grid[min(nearest + 1, len(grid) - 1)]
    exponent = float(
        optimize.minimize_scalar(
            lambda b: solve(b)[1], bounds=bounds, method="bounded", options={"xatol": 1e-9}
        ).x
    )
    (scale, floor), _ = solve(exponent)
    return PowerLaw(float(scale * reference**exponent), exponent, float(floor))


class LackOfFit(NamedTuple):
    """The statistic of the lack-of-fit test, and its p-value."""

    statistic: float
    p_value: float


def lack_of_fit(law: PowerLaw, sizes: ArrayLike, errors_SR: np.ndarray) -> LackOfFit:
    """Returns the F-test of a fitted law against the scatter of the runs (Draper & Smith 1998, 2.1).

    F = [R Σ (mean - law)² / (S - P)] / [Σ (error - mean)² / (S (R - 1))], where P numbers are fitted: scale,
    and exponent and floor unless they lie on a bound. A law inside its bounds always fits three sizes.

    Raises:
      UserError: there is only one run of each size.
    """
    from scipy import stats

    num_sizes, num_runs = errors_SR.shape
    _check_runs(num_runs)
    means_S = errors_SR.mean(1)
    distance = num_runs * float(((means_S - law(sizes)) ** 2).sum())
    scatter = float(((errors_SR - means_S[:, None]) ** 2).sum())
    low, high = _EXPONENTS
    is_inside = low * (1 + 1e-6) < law.exponent < high * (1 - 1e-6)
    num_fitted = 1 + is_inside + (law.floor > 0)  # a parameter on its bound is not fitted
    freedom = num_sizes - num_fitted, num_sizes * (num_runs - 1)
    # Differences by rounding are not counted.
    if freedom[0] == 0 or distance <= 1e-12 * float((errors_SR**2).sum()):
        return LackOfFit(0.0, 1.0)
    if scatter == 0:
        return LackOfFit(np.inf, 0.0)
    statistic = (distance / freedom[0]) / (scatter / freedom[1])
    return LackOfFit(statistic, float(stats.f.sf(statistic, *freedom)))


def objection(law: PowerLaw, sizes: ArrayLike, errors_SR: np.ndarray) -> str | None:
    """Returns why a fitted law must not be extrapolated to twice the largest size; `None` if it may be."""
    test = lack_of_fit(law, sizes, errors_SR)
    if test.p_value < REJECTED_BELOW:
        return (
            "the means lie farther from every power law than the runs scatter (lack of fit: "
            f"F={test.statistic:.3g}, p={test.p_value:.2g})"
        )
    if law(np.min(sizes)) <= law(np.max(sizes)) * (1 + _ROUNDING):
        return "the error does not fall"
    beyond, measured = float(law(2 * np.max(sizes))), float(errors_SR[np.argmax(sizes)].mean())
    if beyond > measured * (1 + _ROUNDING):
        return (
            f"the best power law has a larger error at twice the largest size, {beyond:.4g}, than was "
            f"measured at that size, {measured:.4g}"
        )
    return None


def forecast(sizes: ArrayLike, errors_SR: np.ndarray, size: float, confidence: float = 0.95) -> Interval:
    """Returns the error of the best power law at a size, with its profile interval.

    The interval contains every error y for which a law through y is nearly as close to the means as the best
    law: RSS(y) - RSS(best) <= t² s² / R (Bates & Watts 1988, 6.1.2). s² is the variance of the
    runs, each size weighted by its influence on y, and t has the degrees of freedom of that sum (Welch 1947;
    Satterthwaite 1946), because the scatter may differ between the sizes. These laws may have a floor below
    0, because a bound would make the interval too narrow. If the estimate is outside the interval, it is
    moved to its bound. The interval describes the scatter of the runs, not whether the law holds beyond them.

    Args:
      sizes: the S sizes.
      errors_SR: the errors of R runs of each size.
      size: the size of the forecast.
      confidence: the confidence level of the interval, such as 0.95.

    Raises:
      UserError: there is only one run of each size, or there are fewer than three sizes.
    """
    from scipy import stats

    _check_runs(errors_SR.shape[1])
    sizes = np.asarray(sizes, float).ravel()
    estimate = float(fit(sizes, errors_SR.mean(1))(size))
    variances_S = errors_SR.var(1, ddof=1) / errors_SR.shape[1]
    if not variances_S.any():
        return Interval(estimate, estimate, estimate)
    profile = _Profile(sizes, errors_SR.mean(1), size)
    exponents_G = np.geomspace(*_EXPONENTS, _NUM_EXPONENTS)
    weights_S = profile.influences(exponents_G) ** 2
    variance = float((weights_S * variances_S).sum() / weights_S.sum())
    parts_S = weights_S * variances_S
    freedom = parts_S.sum() ** 2 / ((parts_S**2).sum() / (errors_SR.shape[1] - 1))
    slack = stats.t.ppf((1 + confidence) / 2, freedom) ** 2 * variance
    # If the scatter is small, few exponents of the grid are inside the interval: use a finer grid around
    # them.
    is_near_G = profile.distances(exponents_G) <= profile.distances(exponents_G).min() + slack
    near = np.flatnonzero(is_near_G)
    bounds = exponents_G[max(near[0] - 1, 0)], exponents_G[min(near[-1] + 1, len(exponents_G) - 1)]
    low, high = profile.interval(np.geomspace(*bounds, _NUM_EXPONENTS), slack)
    low, high = max(low, 0.0), max(high, 0.0)
    return Interval(min(max(estimate, low), high), low, high)


class _Profile:
    """Least squares of the laws y + scale ((n / m)^-b - (N / m)^-b), which have the error y at the size N.

    For each exponent b, with the best scale, the sum of squares is a quadratic function of y.
    """

    def __init__(self, sizes_S: np.ndarray, means_S: np.ndarray, size: float):
        self._logs_S = np.log(sizes_S / _middle(sizes_S))
        self._log = np.log(size / _middle(sizes_S))
        self._means_S = means_S

    def _columns(self, exponents_G: np.ndarray) -> np.ndarray:
        return np.exp(-exponents_G[:, None] * self._logs_S) - np.exp(-exponents_G * self._log)[:, None]

    def _quadratic(self, exponents_G: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns curvature, position and value of the minimum over y, for each exponent."""
        columns_GS = self._columns(exponents_G)
        # The residuals of a constant and of the means after regression on the column.
        norms_G = np.maximum((columns_GS**2).sum(1), np.finfo(float).tiny)
        ones_GS = 1 - columns_GS * (columns_GS.sum(1) / norms_G)[:, None]
        means_GS = self._means_S - columns_GS * (columns_GS @ self._means_S / norms_G)[:, None]
        curvature_G = np.maximum((ones_GS**2).sum(1), np.finfo(float).tiny)
        place_G = (ones_GS * means_GS).sum(1) / curvature_G
        height_G = ((means_GS - place_G[:, None] * ones_GS) ** 2).sum(1)
        return curvature_G, place_G, height_G

    def distances(self, exponents_G: np.ndarray) -> np.ndarray:
        return self._quadratic(exponents_G)[2]

    def interval(self, exponents_G: np.ndarray, slack: float) -> tuple[float, float]:
        """Returns the lowest and the highest y whose sum of squares is at most the minimum plus `slack`."""
        curvature_G, place_G, height_G = self._quadratic(exponents_G)
        room_G = height_G.min() + slack - height_G
        half_G = np.sqrt(np.maximum(room_G, 0.0) / curvature_G)
        is_in_G = room_G >= 0
        return float((place_G - half_G)[is_in_G].min()), float((place_G + half_G)[is_in_G].max())

    def influences(self, exponents_G: np.ndarray) -> np.ndarray:
        """Returns the derivative of y of the best law with respect to each mean; shape S."""
        _, place_G, height_G = self._quadratic(exponents_G)
        best = int(height_G.argmin())
        b, column_S = exponents_G[best], self._columns(exponents_G[best : best + 1])[0]
        scale = column_S @ (self._means_S - place_G[best]) / (column_S @ column_S)
        by_b_S = scale * (self._log * np.exp(-b * self._log) - self._logs_S * np.exp(-b * self._logs_S))
        jacobian = np.stack([np.ones_like(column_S), column_S, by_b_S], 1)
        return np.linalg.pinv(jacobian)[0]


def _middle(sizes: np.ndarray) -> float:
    """Returns the geometric mean, the unit in which the powers have similar magnitudes."""
    return float(np.exp(np.log(sizes).mean()))


def _check_runs(num_runs: int) -> None:
    if num_runs < 2:
        raise UserError("one run of each size does not show the spread of the runs; give at least two seeds")
