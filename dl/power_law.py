"""How an error falls with the number of examples or of parameters: a power law down to a floor.

Hestness et al. 2017; Henighan et al. 2020, eq. 1.1.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError

_EXPONENTS = (0.01, 4.0)


class PowerLaw(NamedTuple):
    """error(n) = scale n^-exponent + floor, with neither scale nor floor below 0."""

    scale: float
    exponent: float
    floor: float

    def __call__(self, sizes: ArrayLike) -> np.ndarray:
        return self.scale * np.asarray(sizes, float) ** -self.exponent + self.floor


def fit(sizes: ArrayLike, errors: ArrayLike) -> PowerLaw:
    """Returns the power law with the least squared distance to the errors.

    Of each exponent the best scale and floor are a linear problem, so that one number is searched (variable
    projection, Golub & Pereyra 1973), between 0.01 and 4.

    Raises:
      UserError: there are fewer than three sizes.
    """
    from scipy import optimize

    sizes, errors = np.asarray(sizes, float).ravel(), np.asarray(errors, float).ravel()
    if len(set(sizes.tolist())) < 3:
        raise UserError(f"{len(set(sizes.tolist()))} sizes do not determine a power law; give three at least")
    reference = np.exp(np.log(sizes).mean())  # or the columns differ by orders of magnitude

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


def bootstrap(
    sizes: ArrayLike, errors_SR: np.ndarray, num_resamples: int = 1000, seed: int = 0
) -> list[PowerLaw]:
    """Returns fits to resampled runs: of each of S sizes R runs are drawn with replacement from its R.

    Raises:
      UserError: there is but one run of each size.
    """
    num_sizes, num_runs = errors_SR.shape
    if num_runs < 2:
        raise UserError("one run of each size tells nothing of the spread; give --num-seeds 2 at least")
    random = np.random.default_rng(seed)
    drawn = random.integers(0, num_runs, (num_resamples, num_sizes, num_runs))
    return [fit(sizes, np.take_along_axis(errors_SR, index, 1).mean(1)) for index in drawn]
