"""Explains one prediction of a trained classifier: for an image, a text or a row of numbers.

`explain_methods` chooses what each method of `dl.analysis.attributions` needs, such as its background, and
says so in `Explanation.basis`. `explained_run` has the scores that are explained.
"""

from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np

from dl.analysis import explain_methods as methods
from dl.analysis.attributions.scoring import scores_of
from dl.analysis.explain_methods import Answer, Question
from dl.analysis.explained_run import ExplainedRun, Features, Form
from dl.analysis.explanation import Explanation, Method
from dl.errors import UserError

DEFAULTS: Mapping[Form, Method] = {"image": "integrated-gradients", "text": "occlusion", "row": "shap"}
_Ask = Callable[[Question], Answer]
_OF_ALL: Mapping[Method, _Ask] = {
    "gradient": methods.by_gradient,
    "gradient-x-input": methods.by_gradient_times_input,
    "smoothgrad": methods.by_smooth_grad,
    "integrated-gradients": methods.by_integrated,
    "occlusion": methods.by_occlusion,
    "lime": methods.by_lime,
    "shap": methods.by_shap,
}
_METHODS: Mapping[Form, Mapping[Method, _Ask]] = {
    "image": {
        **_OF_ALL,
        "guided-backpropagation": methods.by_guided,
        "grad-cam": methods.by_grad_cam,
        "lrp": methods.by_relevance,
    },
    "text": _OF_ALL,
    "row": {**_OF_ALL, "guided-backpropagation": methods.by_guided, "lrp": methods.by_relevance},
}


def explain(
    run: ExplainedRun,
    features: Features,
    method: Method | None = None,
    target: int | None = None,
    *,
    seed: int = 0,
    layer: str | None = None,
) -> Explanation:
    """Explains the prediction for one example. The same seed gives the same numbers.

    Args:
      run: the classifier.
      features: the features of the example, as `run.read` or `run.example` returns them.
      method: the method. `None` means that of `DEFAULTS`.
      target: index of the class to explain. `None` means the most probable class.
      seed: random seed of the samples of `smoothgrad`, `lime` and `shap`.
      layer: path of the layer for `grad-cam`. `None` means the last convolution.

    Raises:
      UserError: the method does not fit the input or the model, or there is no such class or layer.
    """
    method = DEFAULTS[run.form] if method is None else method
    fitting = _METHODS[run.form]
    if method not in fitting:
        raise UserError(
            f"method {method} does not explain a model that reads a {run.form}; choose one of "
            f"{', '.join(name for name in get_args(Method) if name in fitting)}"
        )
    if layer is not None and method != "grad-cam":
        raise UserError(f"a layer is for grad-cam, and the method is {method}; leave the layer out")
    inputs = run.model_input(features)
    probabilities_C = scores_of(run.probabilities(features), inputs, 1)[0].astype(np.float64)
    if not np.isfinite(probabilities_C).all():
        raise UserError("the outputs of the model are no numbers (NaN); train the run again")
    chosen = int(probabilities_C.argmax()) if target is None else target
    if not 0 <= chosen < len(probabilities_C):
        raise UserError(f"class {chosen} does not exist; choose 0 to {len(probabilities_C) - 1}")
    answer = fitting[method](Question(run, features, inputs, chosen, seed, layer))
    stored = features[run.input_name][0]
    return Explanation(
        form=run.form,
        method=method,
        basis=answer.basis,
        input=stored,
        attributions=np.asarray(answer.weights, np.float64),
        is_signed=answer.is_signed,
        is_shown=run.is_token(features)[0] if run.form == "text" else np.ones(answer.weights.shape, bool),
        input_names=run.input_names,
        target=chosen,
        probabilities=probabilities_C,
        class_names=run.class_names,
        label=run.label_of(features),
        figures=answer.figures,
    )
