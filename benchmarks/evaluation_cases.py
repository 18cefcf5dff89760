"""Random evaluations, compared with scikit-learn: counts must be equal, other figures within 1e-6.

    python -m benchmarks.evaluation_cases [NUM_CASES]

A case has its own number of examples, batches (some of padding only), devices, classes, mask, labels (some
classes missing, or all but one) and scores (with ties, or very sure). Places that the mask hides hold NaN and
labels that are no class. Each case is computed on one device too, and its counts must be the same there.
"""

import dataclasses
import functools
import itertools
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from dl.evaluation import Calibration, Classification, Regression, average_precision, one_vs_rest, roc_auc
from dl.evaluation import calibration as calibrated
from dl.evaluation import classification as classified
from dl.evaluation.regression import r2
from dl.sharding import batch_sharding, make_mesh

# Batch size, number of classes, number of devices: each is compiled once.
SHAPES = list(itertools.product((8, 64), (2, 3, 12), (2, 4, 8)))
MAX_BATCHES = 8
NUM_BINS = 15
TOLERANCE = {"rtol": 1e-6, "atol": 3e-7}


@dataclasses.dataclass(frozen=True)
class Case:
    """Whole batches, shape (batches × batch_size, …)."""

    batch_size: int
    num_devices: int
    log_probabilities: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray


def make_case(number: int, shapes: list[tuple[int, int, int]] = SHAPES) -> Case:
    """Returns the case of this number, always the same."""
    rng = np.random.default_rng(number)
    batch_size, num_classes, num_devices = shapes[rng.integers(len(shapes))]
    size = MAX_BATCHES * batch_size
    num_examples = rng.choice(
        [rng.integers(1, 4), rng.integers(1, batch_size + 1), rng.integers(1, size + 1)]
    )

    mask = np.arange(size) < num_examples
    if rng.random() < 0.5:
        mask &= rng.random(size) < rng.uniform(0.3, 1.0)
    if rng.random() < 0.3:  # a batch in the middle that is masked as a whole
        mask.reshape(MAX_BATCHES, batch_size)[rng.integers(1, MAX_BATCHES)] = False
    if rng.random() < 0.03:
        mask[:] = False

    occurring = rng.permutation(num_classes)[: rng.integers(1, num_classes + 1)]
    labels = rng.choice(occurring, size)

    logits = rng.normal(scale=rng.choice([0.1, 1.0, 5.0]), size=(size, num_classes))
    logits[np.arange(size), labels] += rng.choice([0.0, 1.0, 3.0])
    if rng.random() < 0.4:  # ties, within a row and between rows
        logits = np.round(logits)
    if rng.random() < 0.1:
        logits[rng.random(size) < 0.5] = 0.0
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))

    targets = rng.choice([0.0, 1e4, -3e6]) + rng.choice([1.0, 30.0]) * rng.normal(size=size)
    if rng.random() < 0.15:
        targets[:] = targets[0]
    predictions = targets + rng.choice([0.0, 0.3, 3.0]) * rng.normal(size=size)

    log_probabilities, labels = logits.astype(np.float32), labels.astype(np.int32)
    targets, predictions = targets.astype(np.float32), predictions.astype(np.float32)
    for array in (log_probabilities, targets, predictions):
        array[~mask] = np.nan
    labels[~mask] = rng.choice([-1, num_classes, 255])
    return Case(batch_size, num_devices, log_probabilities, labels, mask, predictions, targets)


def differences(case: Case) -> Iterator[str]:
    """Yields a line for each figure that is not scikit-learn's, or not the same on one device."""
    ours, theirs = figures(case, case.num_devices), reference_figures(case)
    alone = figures(case, 1)
    for name, value in ours.items():
        expected = theirs[name]
        if np.issubdtype(np.asarray(value).dtype, np.integer):
            is_same = np.array_equal(value, expected) and np.array_equal(value, alone[name])
        else:
            is_same = np.allclose(value, expected, **TOLERANCE, equal_nan=True)
            is_same &= np.allclose(value, alone[name], **TOLERANCE, equal_nan=True)
        if not is_same:
            yield f"{name}: {value}, on one device {alone[name]}, scikit-learn {expected}"


def figures(case: Case, num_devices: int) -> dict[str, np.ndarray]:
    """Returns the figures as this code computes them, batch by batch on so many devices."""
    put = functools.partial(jax.device_put, device=batch_sharding(_mesh(num_devices)))
    sums = None
    for start in range(0, len(case.mask), case.batch_size):
        rows = slice(start, start + case.batch_size)
        arrays = (case.log_probabilities, case.labels, case.predictions, case.targets, case.mask)
        batch = _sums(*(put(array[rows]) for array in arrays))
        sums = batch if sums is None else _merge(sums, batch)
    areas = _areas(put(case.log_probabilities), put(case.labels), put(case.mask))
    return jax.device_get(_figures(jax.device_get(sums)) | areas)


@functools.cache
def _mesh(num_devices: int) -> jax.sharding.Mesh:
    return make_mesh({"data": num_devices})


@jax.jit
def _sums(log_probabilities, labels, predictions, targets, mask):  # type: ignore[no-untyped-def]
    return (
        Classification.of(log_probabilities, labels, mask),
        Calibration.of(log_probabilities, labels, mask, NUM_BINS),
        Regression.of(predictions, targets, mask),
    )


@jax.jit
def _merge(sums, batch):  # type: ignore[no-untyped-def]
    return tuple(mine.merge(theirs) for mine, theirs in zip(sums, batch, strict=True))


@jax.jit
def _areas(log_probabilities, labels, mask):  # type: ignore[no-untyped-def]
    def areas(*arrays):  # type: ignore[no-untyped-def]
        return {"roc_auc": roc_auc(*arrays), "average_precision": average_precision(*arrays)}

    found = one_vs_rest(areas, log_probabilities, labels, mask)
    return found | {f"{name}_macro": area.mean() for name, area in found.items()}


@jax.jit
def _figures(sums):  # type: ignore[no-untyped-def]
    classes, bins, regression = sums
    confusion = classes.confusion
    counts = classified.Counts.of(confusion)
    found = {
        "confusion": confusion,
        "top_k_hits": classes.rank_counts.cumsum(),
        "accuracy": classified.accuracy(counts),
        "log_loss": classes.log_loss.compute(),
        "brier_score": classes.brier.compute(),
        "calibration_count": bins.counts,
        "calibration_hits": bins.hits,
        "reliability": calibrated.reliability(bins),
        "expected_calibration_error": calibrated.expected_calibration_error(bins),
        "mse": regression.squared_error.compute(),
        "mae": regression.absolute_error.compute(),
        "r2": r2(regression),
    }
    averages: dict[str, Callable[..., Any]] = {
        "per_class": classified.per_class,
        "macro": classified.macro,
        "micro": classified.micro,
        "weighted": classified.weighted,
    }
    return found | {name: average(counts) for name, average in averages.items()}


def reference_figures(case: Case) -> dict[str, Any]:
    """Returns the figures by scikit-learn, in float64, of the examples that the mask shows."""
    log_p = case.log_probabilities[case.mask].astype(np.float64)
    labels, predictions, targets = (a[case.mask] for a in (case.labels, case.predictions, case.targets))
    num_classes = log_p.shape[1]
    with warnings.catch_warnings():
        # Of classes without examples, of k = C, and of sums of float32 probabilities that are not quite 1.
        warnings.simplefilter("ignore")
        if not len(labels):  # scikit-learn refuses
            return _figures_of_nothing(num_classes)
        return {
            **_reference_classification(log_p, labels),
            **_reference_calibration(log_p, labels),
            "mse": reference.mean_squared_error(targets, predictions.astype(np.float64)),
            "mae": reference.mean_absolute_error(targets, predictions.astype(np.float64)),
            "r2": reference.r2_score(targets.astype(np.float64), predictions.astype(np.float64)),
        }


def _reference_classification(log_p: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    num_classes = log_p.shape[1]
    classes = np.arange(num_classes)
    predicted, p = log_p.argmax(-1), np.minimum(np.exp(log_p), 1.0)

    def scores(average: str | None) -> list[Any]:
        return reference.precision_recall_fscore_support(
            labels, predicted, labels=classes, average=average, zero_division=0
        )[:3]

    # Of two classes scikit-learn takes one score; the sign is on the right side of either of its thresholds.
    top_k_scores = np.sign(log_p[:, 1] - log_p[:, 0]) if num_classes == 2 else log_p
    roc_aucs = [reference.roc_auc_score(labels == c, log_p[:, c]) for c in classes]
    precisions = [reference.average_precision_score(labels == c, log_p[:, c]) for c in classes]
    return {
        "confusion": reference.confusion_matrix(labels, predicted, labels=classes),
        "top_k_hits": [
            reference.top_k_accuracy_score(labels, top_k_scores, k=k, normalize=False, labels=classes)
            for k in range(1, num_classes + 1)
        ],
        "accuracy": reference.accuracy_score(labels, predicted),
        "log_loss": reference.log_loss(labels, p, labels=classes),
        "brier_score": reference.brier_score_loss(labels, p, labels=classes, scale_by_half=False),
        "per_class": scores(None),
        "macro": scores("macro"),
        "micro": scores("micro"),
        "weighted": scores("weighted"),
        "roc_auc": roc_aucs,
        "roc_auc_macro": np.mean(roc_aucs),
        "average_precision": precisions,
        "average_precision_macro": np.mean(precisions),
    }


def _reference_calibration(log_p: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    is_right, confidence = log_p.argmax(-1) == labels, np.minimum(np.exp(log_p.max(-1)), 1.0)
    # As `calibration_curve` bins; it returns bins that are not empty, and does not say which.
    bins = np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], confidence)
    counts = np.bincount(bins, minlength=NUM_BINS)
    curve = np.full((2, NUM_BINS), np.nan)
    curve[:, counts > 0] = calibration_curve(is_right, confidence, n_bins=NUM_BINS, pos_label=True)
    gaps = np.abs(curve[0] - curve[1])
    return {
        "calibration_count": counts,
        "calibration_hits": np.bincount(bins, is_right, NUM_BINS),
        "reliability": curve,
        "expected_calibration_error": np.nansum(counts * gaps) / len(labels),
    }


def _figures_of_nothing(num_classes: int) -> dict[str, Any]:
    """Returns what the docstrings promise where no example is valid."""
    nothing = dict.fromkeys(
        ("accuracy", "log_loss", "brier_score", "expected_calibration_error", "mse", "mae"), 0.0
    )
    return nothing | {
        "confusion": np.zeros((num_classes, num_classes)),
        "top_k_hits": np.zeros(num_classes),
        "calibration_count": np.zeros(NUM_BINS),
        "calibration_hits": np.zeros(NUM_BINS),
        "reliability": np.full((2, NUM_BINS), np.nan),
        "per_class": np.zeros((3, num_classes)),
        **dict.fromkeys(("macro", "micro", "weighted"), np.zeros(3)),
        "roc_auc": np.full(num_classes, np.nan),
        "roc_auc_macro": np.nan,
        "average_precision": np.zeros(num_classes),
        "average_precision_macro": 0.0,
        "r2": np.nan,
    }


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    num_cases = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    started, examples, kinds, num_different = time.perf_counter(), 0, Counter(), 0
    for number in range(num_cases):
        case = make_case(number)
        found = list(differences(case))
        num_different += bool(found)
        for line in found:
            print(f"case {number}: {line}")
        examples += int(case.mask.sum())
        kinds.update(kinds_of(case))
    seconds = time.perf_counter() - started
    print(f"{num_cases} cases, {examples} examples, {num_different} differ; {seconds:.0f} s")
    print("of them: " + ", ".join(f"{name} {count}" for name, count in sorted(kinds.items())))
    sys.exit(num_different > 0)


def kinds_of(case: Case) -> Iterator[str]:
    """Yields which corners the case is in."""
    labels, scores = case.labels[case.mask], case.log_probabilities[case.mask]
    batches = case.mask.reshape(-1, case.batch_size)
    if not len(labels):
        yield "all masked"
        return
    if len(labels) == 1:
        yield "one example"
    if not batches.any(-1).all():
        yield "a masked batch"
    if len(set(labels)) == 1:
        yield "a single class"
    elif len(set(labels)) < scores.shape[1]:
        yield "a missing class"
    if any((row == row.max()).sum() > 1 for row in scores):
        yield "tied classes"
    if any(len(set(column)) < len(column) for column in scores.T):
        yield "tied scores"
    if len(set(case.targets[case.mask])) == 1:
        yield "constant targets"
    yield f"{scores.shape[1]} classes"
    yield f"{case.num_devices} devices"


if __name__ == "__main__":
    main()
