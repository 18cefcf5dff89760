"""The classical baselines are the models of scikit-learn, chosen on the validation split."""

import types

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.evaluation.baselines import Classical


def _rows(size, seed, is_regression=False):
    x = np.random.default_rng(seed).normal(size=(size, 4)).astype(np.float32) * [1, 10, 1, 1] + 3
    target = x @ [1, 0.1, 0, 0] if is_regression else (x[:, 0] > 3) ^ (x[:, 2] > 3)
    name = "target" if is_regression else "label"
    return ArraySource(
        {"x": x.astype(np.float32), name: target.astype(np.float32 if is_regression else np.int32)}
    )


def _splits(**how):
    parts = {"validation": _rows(60, 1, **how), "test": _rows(70, 2, **how)}
    return ArraySplits("rows", _rows(90, 0, **how), parts)


def _named(models, name):
    return next(one for one in models if one.name.startswith(name))


def test_neighbours_are_those_of_scikit_learn_with_the_best_k():
    data, baseline = _splits(), Classical("x")
    found = _named(baseline.fit_all(data), "k nearest neighbours")
    train, validation, test = (s.arrays for s in (data.train, *data.evaluations.values()))
    expected = {}
    for k in (1, 5, 15):
        model = make_pipeline(StandardScaler(), KNeighborsClassifier(k)).fit(train["x"], train["label"])
        expected[k] = (model.score(validation["x"], validation["label"]), model.predict(test["x"]))
    best = max(expected, key=lambda k: (expected[k][0], -k))
    assert found.name == f"k nearest neighbours, k = {best}"
    scores = baseline.scores(data, found).examples["test"]["accuracy"]
    np.testing.assert_array_equal(scores[:, 0], expected[best][1] == test["label"])
    assert (scores[:, 1] == 1).all()


def test_the_best_model_on_validation_is_the_baseline():
    data, baseline = _splits(), Classical("x")
    best = max(baseline.fit_all(data), key=lambda one: one.validation)
    assert baseline(data).name == f"{best.name}, fitted to 90 examples"
    # No linear model separates an exclusive or.
    assert best.name.startswith(("random forest", "gradient boosting", "k nearest"))


def test_a_regression_finds_the_plane():
    data = _splits(is_regression=True)
    baseline = Classical("x", "target", is_regression=True)
    found = _named(baseline.fit_all(data), "ridge regression")
    train, test = data.train.arrays, data.evaluations["test"].arrays
    model = make_pipeline(StandardScaler(), Ridge(0.1)).fit(train["x"], train["target"])
    errors = np.abs(model.predict(test["x"]) - test["target"])
    scores = baseline.scores(data, found).examples["test"]
    np.testing.assert_allclose(scores["mean_absolute_error"][:, 0], errors, atol=1e-5)
    np.testing.assert_allclose(scores["mean_squared_error"][:, 0], errors**2, atol=1e-5)


def test_the_number_of_training_rows_is_bounded_and_stated():
    data = _splits()
    assert Classical("x", num_examples=40)(data).name.endswith("fitted to 40 examples")


def test_texts_become_tf_idf():
    words = ["", "good", "bad", "film"]
    random = np.random.default_rng(0)

    def source(size):
        label = random.integers(0, 2, size).astype(np.int32)
        return ArraySource(
            {"tokens": np.stack([1 + label, np.full(size, 3)], 1).astype(np.int32), "label": label}
        )

    class Texts(ArraySplits):
        tokenizer = types.SimpleNamespace(padding_id=0, decode=lambda row: " ".join(words[t] for t in row))

    scores = Classical("tokens", num_examples=60)(Texts("t", source(60), {"test": source(30)}))
    assert scores.examples["test"]["accuracy"][:, 0].mean() == 1


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (Classical("y"), "need the features y and label"),
        (Classical("x", num_examples=0), "num_examples=0"),
        (Classical("x", num_examples=1), "fewer than two classes"),
    ],
)
def test_mistakes_are_one_line(baseline, message):
    with pytest.raises(UserError, match=message):
        baseline(_splits())
