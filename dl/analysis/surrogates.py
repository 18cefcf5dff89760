"""Simple models that imitate a trained classifier: a decision tree and a linear model.

Each is fitted to the predictions of the network, not to the labels, for the inputs of the training split
(Craven & Shavlik 1996, Extracting tree-structured representations of trained networks). Its *fidelity* is the
share of test inputs for which it predicts the same class as the network. A surrogate with a low fidelity does
not explain the network. Beside it stands the fidelity of the class that the network predicts most.

Shapes: N examples, V features, C classes.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from dl.analysis.explained_run import ExplainedRun
from dl.errors import UserError
from dl.evaluation.intervals import Interval, wilson
from dl.evaluation.paired import newcombe_paired
from dl.ranges import STEPS, check_count
from dl.runs.tables import Table
from dl.stopping import FINAL_SPLIT

MAX_PIXELS = 14  # along each side of an image that the surrogates read
MAX_WORDS = 2_000  # tokens that the surrogates read, the most frequent ones
_DPI = 110


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """A simple model of the predictions of a network, with what was measured on the split.

    Attributes:
      name: what it is.
      model: the fitted model of scikit-learn.
      predicted: its classes for the examples of the split, shape (N,).
      fidelity: share of examples with the class of the network, with its interval (Wilson).
      gain: fidelity minus that of the most frequent class, paired.
      accuracy: share of examples with the class of the label; `None` without labels.
    """

    name: str
    model: Any
    predicted: np.ndarray
    fidelity: Interval
    gain: Interval
    accuracy: Interval | None


@dataclasses.dataclass(frozen=True)
class Simplification:
    """The surrogates of a classifier.

    Attributes:
      tree: a decision tree.
      linear: a logistic regression.
      majority: share of examples for which the network predicts its most frequent class of the training
        split, with its interval.
      network_accuracy: accuracy of the network; `None` without labels.
      feature_names: name of each feature that the surrogates read, V.
      class_names: name of each class.
      basis: text about the features and the examples.
    """

    tree: Surrogate
    linear: Surrogate
    majority: Interval
    network_accuracy: Interval | None
    feature_names: Sequence[str]
    class_names: Sequence[str]
    basis: str

    @property
    def table(self) -> Table:
        """Fidelity and accuracy of the surrogates, with their intervals."""
        rows = [
            ["network", "", "", _share(self.network_accuracy)],
            ["most frequent class", _share(self.majority), "", ""],
        ]
        for one in (self.tree, self.linear):
            gain = "{:+.1%} ({:+.1%} to {:+.1%})".format(*one.gain)
            rows.append([one.name, _share(one.fidelity), gain, _share(one.accuracy)])
        header = ["model", "fidelity", "minus the most frequent class, paired", "accuracy"]
        return Table(f"Surrogates of the network, {self.basis}", header, rows)

    def tree_text(self) -> str:
        """Returns the decision tree as text, with the names of features and classes."""
        from sklearn.tree import export_text

        model = self.tree.model
        names = [self.class_names[c] for c in model.classes_]
        return export_text(model, feature_names=list(self.feature_names), class_names=names, decimals=2)

    def strongest(self, count: int = 5) -> Mapping[str, list[tuple[str, float]]]:
        """Returns by class the features with the largest weights, by deviation, of the linear model."""
        model = self.linear.model[-1]
        weights_CV = model.coef_ if len(model.classes_) > 2 else np.concatenate([-model.coef_, model.coef_])
        found = {}
        for c, weights_V in zip(model.classes_, weights_CV, strict=True):
            order = np.argsort(-np.abs(weights_V), kind="stable")[:count]
            found[self.class_names[c]] = [(self.feature_names[v], float(weights_V[v])) for v in order]
        return found

    def draw_tree(self, file: IO[bytes]) -> None:
        """Writes a PNG of the decision tree."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from sklearn.tree import plot_tree

        model = self.tree.model
        width = max(6.0, 1.5 * model.get_n_leaves())
        figure = Figure(figsize=(width, 1.6 * (model.get_depth() + 1)), layout="constrained")
        FigureCanvasAgg(figure)  # which measures the boxes of the tree
        boxes = plot_tree(
            model,
            feature_names=[name.replace("$", r"\$") for name in self.feature_names],
            class_names=[self.class_names[c].replace("$", r"\$") for c in model.classes_],
            filled=True,
            impurity=False,
            proportion=True,
            rounded=True,
            fontsize=8,
            ax=figure.subplots(),
        )
        for box in boxes:  # the shares of all classes would make the boxes overlap
            box.set_text(re.sub(r"value = \[[^\]]*\]\n", "", box.get_text()))
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})


def simplify(
    run: ExplainedRun,
    split: str = FINAL_SPLIT,
    *,
    max_depth: int = 4,
    num_examples: int = 10_000,
    seed: int = 0,
) -> Simplification:
    """Fits a decision tree and a linear model to the predictions of a classifier.

    They read the columns of a row; the means of at most 14 by 14 blocks of an image; or which of the 2,000
    most frequent tokens a text has.

    Args:
      run: the classifier.
      split: the split on which fidelity is measured.
      max_depth: depth of the tree at most.
      num_examples: number of examples of the training split and of `split` at most, at equal distances.
      seed: random seed of the tree, which breaks ties.

    Raises:
      UserError: there is no such split, the classifier has several labels for an example, or it predicts the
        same class for all examples.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    check_count("max_depth", max_depth, STEPS)
    check_count("num_examples", num_examples, STEPS)
    data, kind = run.result.experiment.data, run.result.experiment.task.kind
    if kind is not None and kind.name != "classification":
        raise UserError(f"a {kind.words} has several labels for an example; simplify needs one class")
    if split not in data.evaluations:
        raise UserError(f"there is no split {split}; choose one of {', '.join(data.evaluations) or 'none'}")
    train, test = (_rows(source, num_examples) for source in (data.train, data.evaluations[split]))
    features = _Features(run, train)
    target_N, truth_N = (_predicted(run, part) for part in (train, test))
    if len(np.unique(target_N)) < 2:
        raise UserError(
            "the network predicts the same class for all training examples; there is no model of it"
        )
    labels_N = test.get("label" if kind is None else kind.target)
    train_NV, test_NV = features(train), features(test)
    counts_C = np.bincount(target_N)
    is_majority_N = truth_N == counts_C.argmax()

    def fitted(name: str, model: Any) -> Surrogate:
        predicted_N = model.fit(train_NV, target_N).predict(test_NV)
        agrees_N = predicted_N == truth_N
        only_a, only_b, both, neither = (
            int((a & b).sum())
            for a, b in (
                (agrees_N, ~is_majority_N),
                (~agrees_N, is_majority_N),
                (agrees_N, is_majority_N),
                (~agrees_N, ~is_majority_N),
            )
        )
        gain = newcombe_paired(only_a, only_b, both, neither)
        accuracy = None if labels_N is None else _wilson(predicted_N == labels_N)
        return Surrogate(name, model, predicted_N, _wilson(agrees_N), gain, accuracy)

    scaler = StandardScaler(with_mean=not features.is_sparse)
    basis = (
        f"which read {features.name}, fitted to its predictions for {len(target_N):,} training examples; "
        f"{len(truth_N):,} examples of the {split} split, 95 % intervals"
    )
    return Simplification(
        fitted(
            f"decision tree of depth {max_depth}",
            DecisionTreeClassifier(max_depth=max_depth, random_state=seed),
        ),
        fitted("linear model", make_pipeline(scaler, LogisticRegression(C=0.1, max_iter=1_000))),
        _wilson(is_majority_N),
        None if labels_N is None else _wilson(truth_N == labels_N),
        features.names,
        run.class_names,
        basis,
    )


class _Features:
    """A function from stored examples to what the surrogates read, shape N × V."""

    def __init__(self, run: ExplainedRun, train: Mapping[str, np.ndarray]):
        self._run, self.is_sparse = run, run.form == "text"
        if run.form == "row":
            self.names, self.name = list(run.input_names), "the columns"
        elif run.form == "image":
            height, width, channels = run.shape
            rows, columns = min(height, MAX_PIXELS), min(width, MAX_PIXELS)
            colours = [""] if channels == 1 else [", red", ", green", ", blue"]
            self.names = [
                f"({r}, {c}{colour})" for r in range(rows) for c in range(columns) for colour in colours
            ]
            self._blocks = (np.arange(height) * rows // height, np.arange(width) * columns // width)
            self.name = f"the means of {rows} by {columns} blocks of pixels, as (row, column)"
        else:
            counts_V = np.bincount(train[run.input_name][run.is_token(train)])
            used = np.argsort(-counts_V, kind="stable")[:MAX_WORDS]
            self._words = used[counts_V[used] > 0]
            self.names = [run.input_names[t] if t < len(run.input_names) else str(t) for t in self._words]
            self.name = f"which of the {len(self.names):,} most frequent tokens a text has"

    def __call__(self, examples: Mapping[str, np.ndarray]) -> Any:
        inputs = examples[self._run.input_name]
        if self._run.form == "row":
            return inputs.astype(np.float64)
        if self._run.form == "image":
            row_H, column_W = self._blocks
            top, left = (np.flatnonzero(np.diff(one, prepend=-1)) for one in (row_H, column_W))
            sums = np.add.reduceat(np.add.reduceat(inputs.astype(np.float64), top, 1), left, 2)
            sizes = np.bincount(row_H)[:, None] * np.bincount(column_W)
            return (sums / sizes[None, ..., None] / 255).reshape(len(inputs), -1)
        from scipy.sparse import csr_array

        column_of = np.full(int(max(inputs.max(), self._words.max())) + 1, -1)
        column_of[self._words] = np.arange(len(self._words))
        row, place = np.nonzero(self._run.is_token(examples))
        column = column_of[inputs[row, place]]
        # The trees of scikit-learn need indices of 32 bits.
        pairs = np.unique(np.stack([row, column])[:, column >= 0], axis=1).astype(np.int32)
        shape = (len(inputs), len(self._words))
        return csr_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape)


def _rows(source: Any, most: int) -> dict[str, np.ndarray]:
    rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int)
    return dict(source[np.unique(rows)])


def _predicted(run: ExplainedRun, examples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the class that the network predicts for each example, shape N."""
    logits_NC = np.asarray(run.result.predict(dict(examples)))
    if np.isnan(logits_NC).any():
        raise UserError("some outputs of the network are no numbers (NaN); train the run again")
    return logits_NC.argmax(1)


def _wilson(is_right_N: np.ndarray) -> Interval:
    return wilson(int(is_right_N.sum()), len(is_right_N))


def _share(interval: Interval | None) -> str:
    return "" if interval is None else "{:.1%} ({:.1%} to {:.1%})".format(*interval)
