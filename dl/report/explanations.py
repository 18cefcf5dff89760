"""The section of explanations: what predictions for a few test examples rest on, beside maps without a model.

Shapes: N examples, H height, W width, T tokens.
"""

from collections.abc import Sequence

import numpy as np

from dl.analysis import attributions, explanation_quality
from dl.analysis.attributions.scoring import Score
from dl.analysis.explain import explain
from dl.analysis.explained_run import ExplainedRun
from dl.analysis.explanation import Explanation
from dl.evaluation.figures import outcomes_of
from dl.evaluation.intervals import t_interval
from dl.evaluation.outcomes import Outcomes
from dl.flops import count_flops
from dl.report.explanation_picture import SIGNED, UNSIGNED
from dl.report.explanation_text import to_words
from dl.report.picture import to_data_uri
from dl.report.task import Example, TaskSection
from dl.runs.predictions import ClassificationOutcomes, Predictions
from dl.training.result import Result

NUM_SHOWN = 3  # right and wrong predictions each
NUM_SCORED = 12  # examples of the deletion and insertion scores
NUM_STEPS = 10  # of a curve
MAX_FLOPS = 2e11  # of the whole section, which is a few seconds on two cores
_PASSES = 200  # forward passes that explaining and scoring one example takes at least
MAX_SIDE = 96  # pixels of a picture

Maps = dict[str, np.ndarray]
"""Maps of all scored examples by the name of their method, shape (N, H, W) or (N, T)."""


def explanations_section(
    result: Result, predictions: Predictions | ClassificationOutcomes
) -> TaskSection | None:
    """Returns explanations of right and wrong predictions of a classifier of images or texts.

    `None` for one of rows of numbers, or with a network so large that the section would take long.

    Args:
      result: the finished run, of one seed.
      predictions: the predictions for one split.

    Raises:
      UserError: the data or the variables cannot be read, or a method does not reach its tolerance.
    """
    run = ExplainedRun(result)
    if run.form == "row":
        return None
    cost = count_flops(run.scores(run.blank()), run.model_input(run.blank()))
    num_scored = int(min(NUM_SCORED, MAX_FLOPS // max(1, _PASSES * cost)))
    if num_scored < 2 * NUM_SHOWN:
        return None
    right, wrong = _chosen(predictions)
    spread = np.linspace(0, len(predictions.index) - 1, num_scored - len(right) - len(wrong)).astype(int)
    rows = [int(row) for row in [*right, *wrong, *predictions.index[np.unique(spread)]]]
    features = [run.example(predictions.split, row) for row in dict.fromkeys(rows)]
    found = [explain(run, one) for one in features]
    inputs = np.concatenate([run.model_input(one) for one in features])
    maps: Maps = {found[0].method: np.stack([one.attributions for one in found])}
    maps["random"] = attributions.random_maps(maps[found[0].method].shape)
    if run.form == "image":
        maps["edges"] = attributions.sobel_maps(inputs)
    scores = [run.probabilities(one) for one in features]
    examples = [
        _example(run, one, {name: values[k] for name, values in maps.items()}, row)
        for k, (one, row) in enumerate(zip(found, dict.fromkeys(rows), strict=True))
    ]
    groups = (("Right", examples[: len(right)]), ("Wrong", examples[len(right) : len(right) + len(wrong)]))
    return TaskSection(
        "Explanations",
        f"{len(found)} examples of the {predictions.split} split, by {found[0].method}: {found[0].basis}. "
        f"{_legend(run)} An explanation describes the model, not the world. Deletion is the mean probability "
        "while the most important parts are removed first, so lower is better; insertion is the reverse. "
        "Maps that do not know the model stand beside it",
        _figures(run, scores, inputs, found, maps),
        examples=[(title, shown) for title, shown in groups if shown],
    )


def _chosen(predictions: Predictions | ClassificationOutcomes) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of the first right predictions, and of the most confident wrong ones."""
    if isinstance(predictions, Predictions):
        outcomes: Outcomes = outcomes_of(predictions.log_probabilities, predictions.label)
    else:
        outcomes = predictions.outcomes
    is_right_N = np.asarray(outcomes.is_right)
    confidence_N = np.nan_to_num(np.asarray(outcomes.predicted_log_probability), nan=-np.inf)
    wrong = np.flatnonzero(~is_right_N)
    wrong = wrong[np.argsort(-confidence_N[wrong], kind="stable")][:NUM_SHOWN]
    return predictions.index[np.flatnonzero(is_right_N)[:NUM_SHOWN]], predictions.index[wrong]


def _figures(
    run: ExplainedRun, scores: Sequence[Score], inputs: np.ndarray, found: Sequence[Explanation], maps: Maps
) -> list[tuple[str, str]]:
    curves = {
        "deletion": explanation_quality.deletion_curves,
        "insertion": explanation_quality.insertion_curves,
    }
    is_image = run.form == "image"
    background = run.model_input(run.blank())[0] if is_image else run.background_token()
    shown = []
    for curve, measure in curves.items():
        areas: Maps = {}
        for name, values in maps.items():
            ranked = [np.where(one.is_shown, map_, -np.inf) for one, map_ in zip(found, values, strict=True)]
            areas[name] = np.concatenate(
                [
                    measure(
                        score,
                        one[None],
                        map_[None],
                        explained.target,
                        background=background,
                        num_steps=NUM_STEPS,
                    ).areas
                    for score, one, map_, explained in zip(scores, inputs, ranked, found, strict=True)
                ]
            )
        for name, area in areas.items():
            mean, low, high = t_interval(area)
            shown.append((f"{curve}, {name}", f"{mean:.3f} (95 % interval {low:.3f} to {high:.3f})"))
        own = found[0].method
        differences = {name: areas[own] - area for name, area in areas.items() if name != own}
        for name, difference in differences.items():
            mean, low, high = t_interval(difference)
            shown.append(
                (
                    f"{curve}, {own} minus {name}",
                    f"{mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, paired)",
                )
            )
    return shown


def _example(run: ExplainedRun, found: Explanation, maps: Maps, row: int) -> Example:
    names, best = found.class_names, found.target
    label = "" if found.label is None else f", label {names[found.label]}"
    caption = f"row {row}: predicted {names[best]} ({found.probabilities[best]:.1%}){label}".replace(
        "%", " %"
    )
    if run.form == "text":
        return Example((), [("", to_words(found))], caption)
    pictures = [("the image", to_data_uri(_larger(found.input)))]
    for name, map_HW in maps.items():
        is_signed = found.is_signed and name == found.method
        pictures.append((f"the map {name}", to_data_uri(_larger(_coloured(map_HW, is_signed)))))
    return Example(pictures, (), caption)


def _coloured(map_HW: np.ndarray, is_signed: bool) -> np.ndarray:
    """Returns the colours of a map, uint8 (H, W, 3)."""
    import matplotlib

    most = float(np.abs(map_HW).max()) or 1.0
    share_HW = (map_HW / most + 1) / 2 if is_signed else map_HW / most
    colours = matplotlib.colormaps[SIGNED if is_signed else UNSIGNED]
    return (255 * colours(share_HW)[..., :3]).round().astype(np.uint8)


def _larger(image_HWC: np.ndarray) -> np.ndarray:
    """Returns a small image with every pixel repeated, so that it can be seen."""
    times = max(1, MAX_SIDE // max(image_HWC.shape[:2]))
    return image_HWC.repeat(times, 0).repeat(times, 1)


def _legend(run: ExplainedRun) -> str:
    if run.form == "image":
        return "Beside each image stand its maps; red speaks for the predicted class, blue against it."
    return "The darker a token, the larger its weight for or against the predicted class."
