import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from dl.errors import UserError
from dl.evaluation import classification_figures
from dl.sharding import batch_sharding, put

RNG = np.random.default_rng(0)
LOG_P = np.asarray(jax.nn.log_softmax(2 * RNG.normal(size=(64, 7)).astype(np.float32)))
LABELS = np.where(RNG.random(64) < 0.6, LOG_P.argmax(-1), RNG.integers(0, 7, 64))
MASK = np.arange(64) < 50


@pytest.mark.slow
def test_figures_are_those_of_scikit_learn_on_one_device_and_on_eight(mesh8):
    labels, log_p = LABELS[:50], LOG_P[:50]
    predicted = log_p.argmax(-1)
    by_class = {"roc_auc": metrics.roc_auc_score, "average_precision": metrics.average_precision_score}
    areas = {name: [area(labels == c, log_p[:, c]) for c in range(7)] for name, area in by_class.items()}
    expected = {
        "num_examples": 50,
        "accuracy": metrics.accuracy_score(labels, predicted),
        "top_5_accuracy": metrics.top_k_accuracy_score(labels, log_p, k=5),
        "confusion": metrics.confusion_matrix(labels, predicted),
        "precision_macro": metrics.precision_score(labels, predicted, average="macro"),
        "recall_micro": metrics.recall_score(labels, predicted, average="micro"),
        "f1_weighted": metrics.f1_score(labels, predicted, average="weighted"),
        "f1": metrics.f1_score(labels, predicted, average=None),
        "log_loss": -np.mean(np.float64(log_p)[np.arange(50), labels]),
        "perplexity": np.exp(-np.mean(np.float64(log_p)[np.arange(50), labels])),
        **areas,
        **{f"{name}_macro": np.mean(area) for name, area in areas.items()},
    }
    on_devices = put((LOG_P, LABELS.astype(np.int32), MASK), batch_sharding(mesh8))
    for figures in (classification_figures(LOG_P, LABELS, MASK), classification_figures(*on_devices)):
        for name, value in expected.items():
            np.testing.assert_allclose(figures[name], value, rtol=1e-6, err_msg=name)
        assert figures["calibration_count"].sum() == 50
        low, high = figures["accuracy_interval"]
        assert low < figures["accuracy"] < high


def test_single_figures_are_floats_and_the_others_arrays_on_the_host():
    figures = classification_figures(LOG_P, LABELS, MASK)
    assert {type(figure) for figure in figures.values()} == {float, np.ndarray}
    assert figures["confusion"].dtype == np.int32


def test_what_the_mask_hides_may_be_anything():
    labels = np.where(MASK, LABELS, -1)
    log_p = np.where(MASK[:, None], LOG_P, np.array([[np.nan], [3.0]] * 32))
    hidden, clean = classification_figures(log_p, labels, MASK), classification_figures(LOG_P, LABELS, MASK)
    for name, figure in clean.items():
        np.testing.assert_array_equal(hidden[name], figure, err_msg=name)


def test_figures_of_nothing():
    figures = classification_figures(LOG_P, LABELS, np.zeros(64, bool))
    for name in (
        "num_examples",
        "accuracy",
        "log_loss",
        "brier_score",
        "f1_macro",
        "average_precision_macro",
    ):
        assert figures[name] == 0
    assert figures["perplexity"] == 1
    assert np.isnan(figures["roc_auc_macro"])
    np.testing.assert_array_equal(figures["accuracy_interval"], [0, 1])
    assert classification_figures(np.zeros((0, 2)), np.zeros(0, int))["num_examples"] == 0


@pytest.mark.slow
def test_figures_of_one_example():
    figures = classification_figures(np.log([[0.75, 0.25]]), [0])
    np.testing.assert_allclose(figures["brier_score"], 2 * 0.25**2, rtol=1e-6)
    np.testing.assert_allclose(figures["expected_calibration_error"], 0.25, rtol=1e-6)
    assert figures["accuracy"] == 1
    assert "top_5_accuracy" not in figures
    assert np.isnan(figures["roc_auc"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOG_P, LABELS[:5]), "labels (5,)"),
        ((LOG_P[0], LABELS), "shape (7,)"),
        ((LOG_P, LABELS, MASK[:5]), "the mask has the shape (5,)"),
        ((LOG_P, LABELS + 1), "classes; expected 0 to 6"),
        ((LOG_P, LABELS.astype(float)), "labels have the dtype float64"),
        ((jnp.exp(LOG_P), LABELS), "example 0 do not sum to 1"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError) as raised:
        classification_figures(*arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
