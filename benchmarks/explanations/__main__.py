"""Whether explanations say what a network has learned, measured on MNIST.

    python -m benchmarks.explanations [--num-examples 100] [--picture FILE.png]

Three small networks are trained in about four minutes: on digits, on random labels, and on digits that lie
at a random place among fragments of other digits. Four tables follow, in Markdown:

1. Model randomisation (Adebayo et al. 2018, sections 3.1 and 3.2): how alike the maps stay when the layers
   get random parameters, from the last to the first, or each alone. A method that explains the network must
   change its maps.
2. Label randomisation (section 3.3): how alike the maps are to those of a network of random labels.
3. The pointing game on digits in clutter (Zhang et al. 2018), beside the edges of the image, paired.
4. Deletion, insertion, sensitivity and infidelity, beside random maps and edges.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from benchmarks.explanations.networks import LAYERS, Explained, clutter, digits, random_labels
from benchmarks.explanations.picture import draw
from dl.analysis import attributions
from dl.analysis import explanation_quality as quality
from dl.analysis.structural_similarity import structural_similarities
from dl.evaluation.intervals import t_interval, wilson
from dl.evaluation.paired import mcnemar, newcombe_paired
from dl.runs.tables import Table
from dl.types import Variables

NUM_FEW = 20  # examples of sensitivity and infidelity, which are slow
GRAD_CAM_LAYER = "Conv_2"
Explain = Callable[[Explained, Variables, np.ndarray, np.ndarray], np.ndarray]
"""Returns attributions of the shape of the images, from a network, its variables, images and classes."""


def _integrated(one: Explained, variables: Variables, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    score = one.score(variables)
    return attributions.integrated_gradients(score, images, classes, tolerance=0.1).attributions


def _grad_cam(one: Explained, variables: Variables, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return attributions.grad_cam(
        one.model, variables, images, GRAD_CAM_LAYER, classes, activation=jax.nn.relu
    )[..., None]


METHODS: Mapping[str, Explain] = {
    "gradient": lambda one, v, x, c: attributions.gradient(one.score(v), x, c),
    "Grad-CAM": _grad_cam,
    "guided backpropagation": lambda one, v, x, c: attributions.guided_backpropagation(one.score(v), x, c),
    "integrated gradients": _integrated,
    "LRP": lambda one, v, x, c: attributions.relevance(one.score(v), x, c, epsilon=0.01),
}
TRIVIAL: Mapping[str, Explain] = {
    "random": lambda one, v, x, c: attributions.random_maps(x.shape),
    "edges (Sobel)": lambda one, v, x, c: attributions.sobel_maps(x)[..., None],
}
TIMES_INPUT = ("integrated gradients", "LRP")  # in units of score, not of score by input


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-examples", type=int, default=100)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    learned = digits(options.num_examples)
    by_heart = random_labels(options.num_examples)
    among = clutter(options.num_examples)
    print(
        f"Test accuracy: digits {learned.result.metrics['test']['accuracy']}, random labels "
        f"{by_heart.result.metrics['test']['accuracy']} (of the training labels "
        f"{_training_accuracy(by_heart):.3f}), "
        f"clutter {among.result.metrics['test']['accuracy']}\n"
    )
    for table in (
        model_randomisation(learned, is_cascading=True),
        model_randomisation(learned, is_cascading=False),
        label_randomisation(learned, by_heart),
        pointing_game(among),
        faithfulness(among),
    ):
        print(table.to_markdown(), end="\n\n", flush=True)
    if options.picture is not None:
        draw(options.picture, learned, among, METHODS, TRIVIAL["edges (Sobel)"])
    print(f"{time.perf_counter() - start:.0f} s")


def model_randomisation(one: Explained, *, is_cascading: bool) -> Table:
    """Returns rank correlation and SSIM by method and layer, with intervals over the examples."""
    mixed = quality.randomised_variables(one.variables, one.fresh(), LAYERS, is_cascading=is_cascading)
    rows = []
    for name, explain in METHODS.items():
        original = _sizes(explain(one, one.variables, one.images, one.labels))
        correlations, on_digit = [name, "rank correlation"], [name, "rank correlation on the digit"]
        similarities = [name, "SSIM"]
        for variables in mixed.values():
            maps = _sizes(explain(one, variables, one.images, one.labels))
            correlations.append(_mean(quality.rank_correlations(original, maps)))
            on_digit.append(_mean(_on_digit(original, maps, one.images)))
            similarities.append(_mean(structural_similarities(original, maps)))
        rows += [correlations, on_digit, similarities]
    how = "from the last layer up to and with" if is_cascading else "only"
    return Table(f"Model randomisation: random parameters {how}", ["method", "measure", *LAYERS], rows)


def label_randomisation(one: Explained, other: Explained) -> Table:
    """Returns how alike the maps of a network of random labels are."""
    rows = []
    for name, explain in METHODS.items():
        maps = [_sizes(explain(k, k.variables, one.images, one.labels)) for k in (one, other)]
        found = (
            quality.rank_correlations(*maps),
            _on_digit(*maps, one.images),
            structural_similarities(*maps),
        )
        rows.append([name, *map(_mean, found)])
    header = ["method", "rank correlation", "rank correlation on the digit", "SSIM"]
    return Table("Label randomisation", header, rows)


def pointing_game(one: Explained) -> Table:
    """Returns how often the maximum of a map lies on the digit, and the difference to edges."""
    everything = {**METHODS, **TRIVIAL}
    hits = {
        name: quality.pointing_hits(_signed(explain(one, one.variables, one.images, one.labels)), one.regions)
        for name, explain in everything.items()
    }
    rows, edges = [], hits["edges (Sobel)"]
    for name, of_method in hits.items():
        share, low, high = wilson(int(of_method.sum()), len(of_method))
        difference = "" if of_method is edges else _paired(of_method, edges)
        rows.append([name, f"{share:.1%} ({low:.1%} to {high:.1%})", difference])
    area = one.regions.mean()
    return Table(
        f"Pointing game on digits in clutter; digits cover {area:.1%} of the canvas",
        ["method", "hits", "minus edges, paired"],
        rows,
    )


def faithfulness(one: Explained) -> Table:
    """Returns deletion, insertion, sensitivity and infidelity of each method."""
    score, rows, few = one.score(one.variables), [], slice(0, NUM_FEW)
    gradient = METHODS["gradient"](one, one.variables, one.images, one.labels)
    for name, explain in {**METHODS, **TRIVIAL}.items():
        found = explain(one, one.variables, one.images, one.labels)
        areas = [
            measure(score, one.images, _signed(found), one.labels, background=0.0).areas
            for measure in (quality.deletion_curves, quality.insertion_curves)
        ]
        sensitivity = quality.max_sensitivity(
            lambda x, explain=explain: explain(one, one.variables, x, one.labels[few]), one.images[few]
        )
        by_input = _by_input(found, one.images) if name in TIMES_INPUT else found
        by_input = by_input * (np.linalg.norm(gradient) / np.linalg.norm(by_input))
        unfaithful = quality.infidelity(
            score, one.images[few], by_input[few].astype(np.float32), one.labels[few]
        )
        rows.append([name, *map(_mean, (*areas, sensitivity, unfaithful))])
    header = [
        "method",
        "deletion of the logit",
        "insertion of the logit",
        "largest sensitivity",
        "infidelity",
    ]
    return Table("On digits in clutter", header, rows)


def _training_accuracy(one: Explained) -> float:
    train = one.result.experiment.data.train[np.arange(len(one.result.experiment.data.train))]
    return float((one.result.predict(train["image"]).argmax(1) == train["label"]).mean())


def _on_digit(maps: np.ndarray, others: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns rank correlations over the pixels that are not black, where every method has weights."""
    return np.concatenate(
        [
            quality.rank_correlations(one[bright][None], other[bright][None])
            for one, other, bright in zip(maps, others, images[..., 0] > 0, strict=True)
        ]
    )


def _sizes(found: np.ndarray) -> np.ndarray:
    return np.abs(found).max(-1)


def _signed(found: np.ndarray) -> np.ndarray:
    """Returns one number for each pixel; there is one channel."""
    return found[..., 0]


def _by_input(found: np.ndarray, images: np.ndarray) -> np.ndarray:
    return np.where(images > 0, found / np.where(images > 0, images, 1), 0)


def _mean(values: np.ndarray) -> str:
    mean, low, high = t_interval(values)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _paired(one: np.ndarray, other: np.ndarray) -> str:
    counts = [int((a & b).sum()) for a, b in ((one, ~other), (~one, other), (one, other), (~one, ~other))]
    estimate, low, high = newcombe_paired(*counts)
    p_value = mcnemar(one, other).p_value
    return f"{estimate:+.1%} ({low:+.1%} to {high:+.1%}, McNemar p = {p_value:.2g})"


if __name__ == "__main__":
    main()
