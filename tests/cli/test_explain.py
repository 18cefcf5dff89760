"""`python -m dl explain`, `simplify` and `baseline`: what they print and write, and what they refuse."""

import json

import numpy as np
import pytest
from PIL import Image

from dl import train
from dl.runs.find import find_experiment

EXPERIMENT = '''
"""A tiny network of images."""
import numpy as np

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.cnn import CNN


def source(size, seed):
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, size).astype(np.int32)
    image = random.integers(0, 60, (size, 8, 8, 1))
    image[np.arange(size), 4 * label + 1] += 190
    return ArraySource({"image": image.astype(np.uint8), "label": label})


def experiment():
    """Trains."""
    return Experiment(
        data=ArraySplits("bars", source(96, 0), {"validation": source(32, 1), "test": source(40, 2)}),
        task=task.classification(CNN(channels=(4,), hidden=(8,), num_classes=2, pool=True)),
        tx=optimizers.adam(1e-2),
        num_steps=30,
        batch_size=16,
        eval_batch_size=16,
    )
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The file of an experiment, and a run of it."""
    folder = tmp_path_factory.mktemp("bars")
    file = folder / "bars.py"
    file.write_text(EXPERIMENT)
    return str(file), str(train(find_experiment(str(file))(), folder=folder / "run").folder)


def test_an_example_and_an_image_file_are_explained(dl, made, tmp_path):
    file, run = made
    out = tmp_path / "map.png"
    status, printed, err = dl("explain", run, "--example", "3", "--experiment", file, "--out", str(out))
    assert (status, out.read_bytes()[:4]) == (0, b"\x89PNG"), err
    assert "predicted" in printed
    assert ", label " in printed
    assert "completeness error: " in printed
    image = find_experiment(file)().data.evaluations["test"][np.array([3])]["image"][0, ..., 0]
    Image.fromarray(image).save(tmp_path / "x.png")
    again = tmp_path / "again.png"
    status, other, err = dl(
        "explain", run, str(tmp_path / "x.png"), "--experiment", file, "--out", str(again)
    )
    assert status == 0, err
    assert other.splitlines()[1:-1] == printed.splitlines()[1:-1]  # the same map; its label is not known
    assert ", label" not in other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "neither an INPUT nor --example"),
        (("x.png", "--example", "0"), "both an INPUT and --example"),
        (("nothing.png",), "nothing.png does not exist"),
        (("--example", "40"), "choose 0 to 39"),
        (("--example", "0", "--target", "two"), "--target 'two' is not a class; choose one of 0, 1"),
        (("--example", "0", "--out", "map.html"), "must end in .png"),
    ],
)
def test_mistakes_are_one_line(dl, made, words, message):
    file, run = made
    status, printed, err = dl("explain", run, *words, "--experiment", file)
    assert (status, printed, message in err, err.count("\n")) == (2, "", True, 1), err


def test_surrogates_are_printed_and_drawn(dl, made):
    file, run = made
    status, printed, err = dl("simplify", run, "--experiment", file, "--max-depth", "2")
    assert status == 0, err
    assert "class: 1" in printed
    assert "decision tree of depth 2" in printed
    assert "tree.png" in printed


def test_a_run_of_other_data_is_refused_before_anything_is_fitted(dl, made, tmp_path):
    file, run = made
    other = tmp_path / "other.py"
    other.write_text(EXPERIMENT.replace("source(96, 0)", "source(90, 0)"))
    for words, message in (
        ((str(other), "--run", run), "has other data"),
        ((file, "--run", str(tmp_path)), "does not hold a run"),
    ):
        status, printed, err = dl("baseline", *words)
        assert (status, printed, message in err, err.count("\n")) == (2, "", True, 1), err


@pytest.mark.slow
def test_the_best_classical_model_stands_beside_the_network_in_the_result_and_the_report(dl, made):
    file, run = made
    status, printed, err = dl("baseline", file, "--run", run, "--num-examples", "60")
    assert status == 0, err
    assert "Fitted to 60 of 96 training examples" in printed
    assert "the network" in printed
    with open(f"{run}/result.json", encoding="utf-8") as lines:
        [baseline] = json.load(lines)["baselines"]
    assert baseline["differences"]["test"]["accuracy"]["verdict"] in (
        "no difference shown",
        "better",
        "worse",
    )
    status, _, err = dl("report", run, "--experiment", file)
    assert status == 0, err
    with open(f"{run}/report.html", encoding="utf-8") as lines:
        page = lines.read()
    assert "The network beside its baseline" in page
    assert baseline["name"] in page
    assert 'id="explanations"' in page
    assert "deletion, integrated-gradients minus edges" in page
