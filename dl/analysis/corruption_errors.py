"""Errors on corrupted images (Hendrycks & Dietterich 2019): CE, mCE, relative CE and relative mCE.

The corruptions of `dl.data.images.corruptions` differ from the fifteen of the paper, and the baseline is not
AlexNet. So an mCE of this module is comparable only with its other mCEs on the same data and baseline.

Shapes: N examples of a split, K corruptions, S severities, L = 1 + K.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dl.data.images.corruptions import NAMES, SEVERITIES
from dl.evaluation.intervals import bootstrap, wilson
from dl.runs.tables import Table

NUM_RESAMPLES = 1_999  # of the examples, for the intervals of mean errors


@dataclasses.dataclass(frozen=True)
class Errors:
    """The examples that a classifier predicts wrong.

    Attributes:
      clean: whether each stored image is predicted wrong, shape N.
      corrupted: the same for each corruption at each severity, shape N × K × S.
    """

    clean: np.ndarray
    corrupted: np.ndarray


def corruption_errors(rates_L: np.ndarray, baseline_L: np.ndarray) -> np.ndarray:
    """Returns the CE of each corruption, Σ_s E / Σ_s E_baseline, shape K. Their mean is the mCE.

    Args:
      rates_L: error on the stored images, then the mean error over severities of each corruption, L = 1 + K.
      baseline_L: the errors of the baseline, in the same form.
    """
    return _ratios(rates_L[1:], baseline_L[1:])


def relative_corruption_errors(rates_L: np.ndarray, baseline_L: np.ndarray) -> np.ndarray:
    """Returns the relative CE, Σ_s (E - E_clean) / Σ_s (E_baseline - E_baseline,clean), shape K.

    Args:
      rates_L: the errors, as for `corruption_errors`.
      baseline_L: the errors of the baseline, in the same form.
    """
    return _ratios(rates_L[1:] - rates_L[0], baseline_L[1:] - baseline_L[0])


def figures(errors: Errors, baseline: Errors | None = None) -> dict[str, Any]:
    """Returns every metric with its 95 % interval, as JSON values.

    Accuracies have Wilson intervals. Mean errors have percentile intervals of a bootstrap over the examples,
    in which a classifier and its baseline get the same examples. `mean_corruption_error` is the mean over
    corruptions and severities without normalisation; mCE and relative mCE are normalised by the baseline.
    """
    counts_NL = _num_wrong(errors)
    found: dict[str, Any] = {
        "num_examples": len(counts_NL),
        "clean": _accuracy(errors.clean),
        "corruptions": {
            name: [_accuracy(wrong_N) for wrong_N in errors.corrupted[:, which].T]
            for which, name in enumerate(NAMES)
        },
        "mean_corruption_error": _resampled(lambda rates_L: rates_L[1:], counts_NL),
    }
    if baseline is not None:
        both = counts_NL, _num_wrong(baseline)
        rates = [_rates(counts) for counts in both]
        found["baseline"] = figures(baseline)
        for name, measure in (("CE", corruption_errors), ("relative_CE", relative_corruption_errors)):
            found[name] = dict(zip(NAMES, measure(*rates).tolist(), strict=True))
        found["mCE"] = _resampled(corruption_errors, *both)
        found["relative_mCE"] = _resampled(relative_corruption_errors, *both)
    return found


def table_of(found: Mapping[str, Any], split: str) -> Table:
    """Returns a table of the accuracy in percent by corruption and severity, the mean error, and CE."""
    rows = []
    for name, cells in found["corruptions"].items():
        error = 1 - sum(cell["accuracy"] for cell in cells) / len(cells)
        row = [words(name), *map(_shown, cells), f"{100 * error:.1f}"]
        if "CE" in found:
            row += [_percent(found[kind][name]) for kind in ("CE", "relative_CE")]
        rows.append(row)
    header = ["corruption", *(f"severity {s}" for s in SEVERITIES), "mean error %"]
    if "CE" in found:
        header += ["CE %", "relative CE %"]
    title = f"accuracy in % on corrupted images of {split}, with 95 % intervals"
    return Table(title, header, rows)


def lines_of(found: Mapping[str, Any], baseline: str) -> list[str]:
    """Returns the metrics over all corruptions as sentences; `baseline` is the name of the baseline."""
    of = f"{len(found['corruptions'])} corruptions x {len(SEVERITIES)} severities"
    lines = [
        f"clean accuracy {_shown(found['clean'])} % of {found['num_examples']:,} examples",
        f"mean_corruption_error {_bounded(found['mean_corruption_error'])}: the mean error over {of}, not "
        "normalised by a baseline",
    ]
    for name in ("mCE", "relative_mCE") if "CE" in found else ():
        lines.append(f"{name} {_bounded(found[name])}: 100 % is {baseline}")
    return lines


def words(name: str) -> str:
    """Returns the name of a corruption with spaces."""
    return name.replace("_", " ")


def _num_wrong(errors: Errors) -> np.ndarray:
    """Returns the number of severities at which each example is wrong, N × L; stored images count S times."""
    clean_N1 = len(SEVERITIES) * errors.clean[:, None]
    return np.concatenate([clean_N1, errors.corrupted.sum(-1)], axis=1).astype(np.uint8)


def _rates(counts_NL: np.ndarray) -> np.ndarray:
    return counts_NL.mean(0) / len(SEVERITIES)


def _ratios(above_K: np.ndarray, below_K: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite or NaN for a baseline without errors
        return above_K / below_K


def _resampled(measure: Callable[..., np.ndarray], *counts: np.ndarray) -> dict[str, Any]:
    """Returns the mean over corruptions with its bootstrap interval."""
    from scipy.stats import DegenerateDataWarning

    def mean(*counts: np.ndarray) -> float:
        return float(measure(*map(_rates, counts)).mean())

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # If the baseline has no errors, a ratio is infinite or NaN, and so is the mean. If that happens in
        # some resamples only, the interval is NaN.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(mean, *counts, num_resamples=NUM_RESAMPLES)
    return {"value": found.estimate, "interval": [found.low, found.high]}


def _accuracy(wrong_N: np.ndarray) -> dict[str, Any]:
    found = wilson(int((~wrong_N).sum()), len(wrong_N))
    return {"accuracy": found.estimate, "interval": [found.low, found.high]}


def _shown(cell: Mapping[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{100 * cell['accuracy']:.1f} ({100 * low:.1f}..{100 * high:.1f})"


def _bounded(figure: Mapping[str, Any]) -> str:
    if not np.isfinite(figure["value"]):
        return "is not defined: for a corruption the baseline has no errors, or no more than on clean images"
    bounds = f"95 % {'..'.join(map(_percent, figure['interval']))}"
    if not np.isfinite(figure["interval"]).all():
        bounds = "no interval: in some resamples the ratio to the baseline is not defined"
    return f"{_percent(figure['value'])} % ({bounds})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
