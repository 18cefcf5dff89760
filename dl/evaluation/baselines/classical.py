"""The classical models of scikit-learn as baselines: for images, texts and tables, classes and numbers.

The models are a linear one, a linear support-vector machine, k nearest neighbours, a random forest and
gradient boosting of trees. Each has its settings chosen on the validation split, and so is the best of them.
Images are flattened (50 principal components for gradient boosting), rows of a table standardised, and texts
become TF-IDF of words and pairs of words (the 1,000 most frequent words for the two models of trees).

Shapes: N examples, V features.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dl.errors import UserError
from dl.evaluation.baselines.tf_idf import read_texts
from dl.ranges import STEPS, check_count
from dl.stopping import FINAL_SPLIT
from dl.types import BaselineScores, Source, Splits

MAX_WORDS = 1_000  # TF-IDF features of the models of trees
NUM_COMPONENTS = 50  # of a PCA of images, for gradient boosting, which is slow with many features
_TOLERANCE = 1e-2  # of the support-vector machines
_FOREST, _BOOSTING = "random forest", "gradient boosting"
_Form = Literal["image", "text", "row"]
_SHARE = 10  # one of so many training rows is held out where there is no validation split


class Fitted(NamedTuple):
    """A fitted model with its settings.

    Attributes:
      name: name of the model, with the settings that were chosen.
      seconds: time of fitting all settings.
      validation: accuracy, or minus the mean absolute error, on the validation examples.
      predict: function from raw features to classes or numbers.
    """

    name: str
    seconds: float
    validation: float
    predict: Callable[[Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Classical:
    """The best of five classical models, chosen on the validation split.

    Metrics: `accuracy` of classes; `mean_absolute_error` and `mean_squared_error` of numbers. Data without a
    split for validation beside `test` have a tenth of the training rows held out for the choice.

    Attributes:
      input_name: name of the feature that is read: an image, the tokens of a text, or a row of numbers.
      target: name of the feature that is predicted.
      is_regression: whether the targets are numbers and not classes.
      num_examples: number of training rows at most, at equal distances. It bounds the time.
      seed: random seed of the models.
    """

    input_name: str = "image"
    target: str = "label"
    is_regression: bool = False
    num_examples: int = 5_000
    seed: int = 0

    def __call__(self, data: Splits) -> BaselineScores:
        """Fits the models and scores every split with the best one.

        Raises:
          UserError: the data lack a feature, the targets have several values, or are of one class only.
        """
        return self.scores(data, max(self.fit_all(data), key=lambda one: one.validation))

    def fit_all(self, data: Splits, tell: Callable[[str], None] = lambda line: None) -> list[Fitted]:
        """Returns every model with the settings that are best on the validation examples.

        Args:
          data: the data.
          tell: called with the name of each model before it is fitted.
        """
        check_count("num_examples", self.num_examples, STEPS)
        rows = np.unique(np.linspace(0, len(data.train) - 1, self.num_rows(data)).round().astype(int))
        inputs, targets_N = self._read(data, data.train, rows)
        split = next((name for name in data.evaluations if name != FINAL_SPLIT), None)
        if split is not None and FINAL_SPLIT in data.evaluations:
            chosen = self._read(data, data.evaluations[split])
        else:
            is_held_out_N = np.arange(len(rows)) % _SHARE == _SHARE - 1
            chosen = _taken(inputs, is_held_out_N), targets_N[is_held_out_N]
            inputs, targets_N = _taken(inputs, ~is_held_out_N), targets_N[~is_held_out_N]
        if not self.is_regression and len(np.unique(targets_N)) < 2:
            raise UserError(f"the {len(targets_N)} training examples have fewer than two classes")
        leaf = data.train.spec[self.input_name]
        form: _Form = "text" if isinstance(inputs, list) else "image" if len(leaf.shape) > 1 else "row"
        found = []
        for family in _families(self.is_regression, form, self.seed):
            tell(family[0])
            found.append(_best(family, inputs, targets_N, *chosen, is_regression=self.is_regression))
        return found

    def num_rows(self, data: Splits) -> int:
        """Returns how many training rows the models are fitted to."""
        return min(self.num_examples, len(data.train))

    def scores(self, data: Splits, model: Fitted) -> BaselineScores:
        """Returns what a fitted model adds to each metric, for every example of every split."""
        found = {}
        for split, source in data.evaluations.items():
            inputs, targets_N = self._read(data, source)
            predicted_N = model.predict(inputs)
            if self.is_regression:
                errors_N = np.abs(predicted_N - targets_N)
                each = {"mean_absolute_error": errors_N, "mean_squared_error": errors_N**2}
            else:
                each = {"accuracy": (predicted_N == targets_N).astype(np.float64)}
            found[split] = {name: np.stack([x, np.ones(len(x))], -1) for name, x in each.items()}
        return BaselineScores(f"{model.name}, fitted to {self.num_rows(data):,} examples", found)

    def _read(self, data: Splits, source: Source, rows: np.ndarray | None = None) -> tuple[Any, np.ndarray]:
        """Returns texts or features (N, V), and targets (N,)."""
        examples = source[np.arange(len(source)) if rows is None else rows]
        if self.input_name not in examples or self.target not in examples:
            raise UserError(
                f"the baselines need the features {self.input_name} and {self.target}; the data have "
                f"{', '.join(examples)}"
            )
        targets_N = examples[self.target]
        targets_N = targets_N[:, 0] if targets_N.shape[1:] == (1,) else targets_N
        if targets_N.ndim != 1:
            raise UserError(
                f"{self.target} has the shape {targets_N.shape[1:]}; the baselines predict one value each"
            )
        inputs = examples[self.input_name]
        if getattr(data, "tokenizer", None) is not None and inputs.ndim == 2 and inputs.dtype.kind in "iu":
            return read_texts(data, examples, self.input_name), targets_N
        scale = 255.0 if inputs.dtype == np.uint8 else 1.0
        return inputs.reshape(len(inputs), -1).astype(np.float32) / np.float32(scale), targets_N


_Family = tuple[str, Sequence[tuple[str, Any]]]
"""The name of a kind of model, and each setting as text with an estimator that is not fitted."""


def _families(is_regression: bool, form: _Form, seed: int) -> list[_Family]:
    from sklearn import ensemble, linear_model, neighbors, svm

    def forest(made: Any, **how: Any) -> Any:
        return made(n_estimators=200, n_jobs=-1, random_state=seed, **how)

    if is_regression:
        linear = [(f"alpha = {a:g}", linear_model.Ridge(a)) for a in (0.1, 10.0, 100.0)]
        machines = [
            (f"C = {c:g}", svm.LinearSVR(C=c, tol=_TOLERANCE, max_iter=1_000, random_state=seed))
            for c in (0.1, 1.0)
        ]
        near: Any = neighbors.KNeighborsRegressor
        trees: Any = forest(ensemble.RandomForestRegressor)
        boosted: Any = ensemble.HistGradientBoostingRegressor
        name = "ridge regression"
    else:
        linear = [(f"C = {c:g}", linear_model.LogisticRegression(C=c, max_iter=200)) for c in (0.1, 3.0)]
        machines = [
            (f"C = {c:g}", svm.LinearSVC(C=c, tol=_TOLERANCE, max_iter=1_000, random_state=seed))
            for c in (0.01, 0.3)
        ]
        near = neighbors.KNeighborsClassifier
        trees = forest(ensemble.RandomForestClassifier)
        boosted = ensemble.HistGradientBoostingClassifier
        name = "logistic regression"
    neighbours = [(f"k = {k}", near(k)) for k in (1, 5, 15)]
    boosting = [("100 rounds of trees of 15 leaves", boosted(max_leaf_nodes=15, random_state=seed))]
    families = [
        (name, linear),
        ("linear SVM", machines),
        ("k nearest neighbours", neighbours),
        (_FOREST, [("200 trees", trees)]),
        (_BOOSTING, boosting),
    ]
    return [
        (kind, [(text, _pipeline(one, form, kind, seed)) for text, one in settings])
        for kind, settings in families
    ]


def _pipeline(model: Any, form: _Form, kind: str, seed: int) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    is_of_trees = kind in (_FOREST, _BOOSTING)
    if form == "image":
        return make_pipeline(PCA(NUM_COMPONENTS, random_state=seed), model) if kind == _BOOSTING else model
    if form == "row":
        return model if is_of_trees else make_pipeline(StandardScaler(), model)
    words = r"\w+|[^\w\s]"
    if not is_of_trees:
        return make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=words), model
        )
    few = TfidfVectorizer(sublinear_tf=True, token_pattern=words, max_features=MAX_WORDS, dtype=np.float32)
    return make_pipeline(few, FunctionTransformer(_dense), model)


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray()


def _best(
    family: _Family,
    inputs: Any,
    targets_N: np.ndarray,
    chosen: Any,
    chosen_N: np.ndarray,
    *,
    is_regression: bool,
) -> Fitted:
    """Returns the model with the settings that are best on the chosen examples. Of equals, the first."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    start, found = time.perf_counter(), []
    for text, model in family[1]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the choice on validation judges it
            predicted_N = model.fit(inputs, targets_N).predict(chosen)
        value = -np.abs(predicted_N - chosen_N).mean() if is_regression else (predicted_N == chosen_N).mean()
        found.append((float(value), f"{family[0]}, {text}", model))
    value, name, model = max(found, key=lambda one: one[0])
    return Fitted(name, time.perf_counter() - start, value, model.predict)


def _taken(inputs: Any, is_taken_N: np.ndarray) -> Any:
    if isinstance(inputs, list):
        return [text for text, is_taken in zip(inputs, is_taken_N, strict=True) if is_taken]
    return inputs[is_taken_N]
