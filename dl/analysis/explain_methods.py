"""The methods that explain one prediction, with the background and the score that fit the input.

Each takes a `Question` and returns an `Answer`.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np
from jax.tree_util import Partial

from dl.analysis import attributions
from dl.analysis.attributions.features import grid_superpixels
from dl.analysis.attributions.grad_cam import feature_maps
from dl.analysis.attributions.scoring import scores_of
from dl.analysis.attributions.shapley import MAX_EXACT
from dl.analysis.explained_run import ExplainedRun, Features
from dl.errors import UserError

MIN_SIDE = 4  # of the feature map that Grad-CAM reads by default
MAX_TILES = 8  # along each side of an image, for LIME and SHAP
TOLERANCE = 0.02  # of the completeness of integrated gradients
_LOGIT, _PROBABILITY = "the logit", "the probability"


@dataclasses.dataclass(frozen=True)
class Question:
    """What a method is asked.

    Attributes:
      run: the classifier.
      features: the stored features of the example.
      inputs: what the model reads, shape 1 × …
      target: index of the class.
      seed: random seed of the samples.
      layer: path of the layer of Grad-CAM; `None` means the last convolution.
    """

    run: ExplainedRun
    features: Features
    inputs: np.ndarray
    target: int
    seed: int
    layer: str | None

    @property
    def background(self) -> np.ndarray:
        """What stands for an absent part: a black image, a special token, or rows of the training split.

        Padding of a text stays padding.
        """
        if self.run.form == "image":
            return self.run.model_input(self.run.blank())
        if self.run.form == "row":
            return self.run.background_rows()
        is_shown_T = self.run.is_token(self.features)[0]
        return np.where(is_shown_T, self.run.background_token(), self.inputs[0]).astype(self.inputs.dtype)[
            None
        ]

    @property
    def background_name(self) -> str:
        run = self.run
        if run.form == "image":
            return "a black image"
        if run.form == "row":
            return f"{len(run.background_rows())} rows of the training split"
        token = run.background_token()
        return f"the token {run.input_names[token] if token < len(run.input_names) else token}"

    @property
    def segments(self) -> np.ndarray | None:
        """Which feature each place is for LIME and SHAP: tiles of an image, or tokens; `None` for a row.

        Padding belongs to the last token before it, whose absence does not change it.
        """
        if self.run.form == "row":
            return None
        if self.run.form == "text":
            return np.maximum(np.cumsum(self.run.is_token(self.features)[0]) - 1, 0)
        height, width = self.inputs.shape[1:3]
        return grid_superpixels(height, width, min(height, MAX_TILES), min(width, MAX_TILES))


@dataclasses.dataclass(frozen=True)
class Answer:
    """Weights of a method, with basis, figures and sign as in `Explanation`."""

    weights: np.ndarray
    basis: str
    is_signed: bool = True
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


def last_convolution(run: ExplainedRun) -> str:
    """Returns the path of the last convolution with a feature map of 4 by 4 places or more, else of the last.

    Raises:
      UserError: the model has none.
    """
    maps = feature_maps(run, run.result.variables, run.model_input(run.blank()))
    found = [(path, places) for path, (module, places) in maps.items() if issubclass(module, nn.Conv)]
    if not found:
        raise UserError("the model has no convolution (nn.Conv), which grad-cam needs; choose another method")
    large = [path for path, places in found if min(places) >= MIN_SIDE]
    return large[-1] if large else found[-1][0]


def _differentiable(question: Question) -> tuple[Partial, np.ndarray]:
    """Returns the logits as a function of floats, and the floats: pixels, columns or embedded tokens."""
    if question.run.form == "text":
        return question.run.embedded_scores(question.features)
    return question.run.scores(question.features), question.inputs


def _sizes(question: Question, found: np.ndarray) -> np.ndarray:
    """Returns the largest size over channels or values of an embedding (Simonyan et al. 2014, 3.1)."""
    return np.abs(found[0]) if question.run.form == "row" else np.abs(found[0]).max(-1)


def _sums(question: Question, found: np.ndarray) -> np.ndarray:
    return found[0] if question.run.form == "row" else found[0].sum(-1)


def by_gradient(question: Question) -> Answer:
    score, inputs = _differentiable(question)
    found = attributions.gradient(score, inputs, question.target)
    return Answer(_sizes(question, found), f"size of the gradient of {_LOGIT}", is_signed=False)


def by_gradient_times_input(question: Question) -> Answer:
    score, inputs = _differentiable(question)
    found = attributions.gradient_times_input(score, inputs, question.target)
    return Answer(_sums(question, found), f"gradient of {_LOGIT} times input")


def by_smooth_grad(question: Question) -> Answer:
    score, inputs = _differentiable(question)
    found = attributions.smooth_grad(score, inputs, question.target, seed=question.seed)
    return Answer(
        _sizes(question, found),
        f"size of the mean gradient of {_LOGIT} over 32 noisy copies",
        is_signed=False,
    )


def by_guided(question: Question) -> Answer:
    score, inputs = _differentiable(question)
    found = attributions.guided_backpropagation(score, inputs, question.target)
    return Answer(
        _sizes(question, found),
        f"size of the guided gradient of {_LOGIT}; it resembles the edges of the input whatever was learnt",
        is_signed=False,
    )


def by_integrated(question: Question) -> Answer:
    score, inputs = _differentiable(question)
    run = question.run
    baseline: np.ndarray | float = 0.0
    name = "embeddings of zero"
    if run.form == "image":
        baseline, name = run.model_input(run.blank()), question.background_name
    elif run.form == "row":
        rows = run.background_rows()
        baseline, name = rows.mean(0), f"the mean of {len(rows)} rows of the training split"
    found = attributions.integrated_gradients(
        score, inputs, question.target, baseline=baseline, tolerance=TOLERANCE
    )
    return Answer(
        _sums(question, found.attributions),
        f"difference of {_LOGIT} from {name}",
        figures={"completeness error": float(found.errors[0])},
    )


def by_grad_cam(question: Question) -> Answer:
    run = question.run
    layer = last_convolution(run) if question.layer is None else question.layer
    found = attributions.grad_cam(
        run, run.result.variables, question.inputs, layer, question.target, activation=jax.nn.relu
    )
    return Answer(
        found[0], f"positive part of the feature maps of {layer} that raise {_LOGIT}", is_signed=False
    )


def by_relevance(question: Question) -> Answer:
    score = question.run.scores(question.features)
    found = attributions.relevance(score, question.inputs, question.target, epsilon=0.01)
    value = float(scores_of(score, question.inputs, 1)[0, question.target])
    return Answer(
        _sums(question, found),
        f"parts of {_LOGIT}, by layer-wise relevance propagation; biases keep a part",
        figures={"completeness error": _error(found.sum(), value)},
    )


def by_occlusion(question: Question) -> Answer:
    run = question.run
    score, inputs = run.probabilities(question.features), question.inputs
    window: tuple[int, ...] = (1,)
    stride, what = window, "column"
    if run.form == "image":
        window = tuple(max(1, length // 7) for length in inputs.shape[1:3])
        stride = tuple(max(1, length // 2) for length in window)
        what = "window of " + " by ".join(map(str, window)) + " pixels"
    elif run.form == "text":
        what = "token"
    found = attributions.occlusion(
        score, inputs, question.target, window=window, stride=stride, background=question.background
    )
    basis = f"fall of {_PROBABILITY} where {question.background_name} covers a {what}"
    return Answer(found[0], basis)


def by_lime(question: Question) -> Answer:
    run = question.run
    score, inputs = run.probabilities(question.features), question.inputs
    if run.form == "row":
        scale = run.background_rows().std(0)
        local = attributions.tabular_lime(
            score, inputs, question.target, scale=np.where(scale > 0, scale, 1.0), seed=question.seed
        )
        basis = f"linear model of {_PROBABILITY} around the row; weights by standard deviation of a column"
        return Answer(local.weights[0], basis, figures={"fidelity R²": float(local.fidelity[0])})
    segments = question.segments
    local = attributions.lime(
        score,
        inputs,
        question.target,
        background=question.background,
        segments=segments,
        seed=question.seed,
    )
    assert segments is not None
    parts = "tokens" if run.form == "text" else f"{segments.max() + 1} tiles"
    basis = f"linear model of {_PROBABILITY}; absent {parts} are replaced by {question.background_name}"
    return Answer(
        local.weights[0][segments],
        basis,
        figures={"fidelity R²": float(local.fidelity[0])},
    )


def by_shap(question: Question) -> Answer:
    run, segments, background = question.run, question.segments, question.background
    score, inputs = run.probabilities(question.features), question.inputs
    if run.form == "row" and inputs.shape[1] <= MAX_EXACT:
        values = attributions.exact_shapley(score, inputs, question.target, background=background)
        how = "exact"
    else:
        values = attributions.kernel_shap(
            score, inputs, question.target, background=background, segments=segments, seed=question.seed
        )
        how = "KernelSHAP"
    whole = scores_of(score, inputs, 1)[0, question.target]
    empty = _absent_score(score, inputs, background, question.target)
    parts = f" of {segments.max() + 1} tiles" if segments is not None and run.form == "image" else ""
    return Answer(
        values[0] if segments is None else values[0][segments],
        f"Shapley values{parts} of {_PROBABILITY} against {question.background_name}, {how}",
        figures={"completeness error": _error(values.sum(), float(whole) - empty)},
    )


def _absent_score(score: Partial, inputs: np.ndarray, background: np.ndarray, target: int) -> float:
    """Returns the mean score of the background."""
    return float(scores_of(score, background.astype(inputs.dtype), 1)[:, target].mean())


def _error(total: float, difference: float) -> float:
    return abs(float(total) - difference) / max(abs(difference), float(np.finfo(np.float32).tiny))
