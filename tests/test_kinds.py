"""Regression, autoencoder, multi-label and language model: small experiments, from command to report."""

import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax
from sklearn import metrics as sk

from dl import losses, optimizers, task
from dl.cli.main import main
from dl.data import ArraySource, ArraySplits
from dl.diagnostics.overfit import overfit
from dl.errors import UserError
from dl.experiment import Experiment
from dl.methods.mixing import mixup, with_mixing
from dl.metrics import Mean
from dl.models.mlp import MLP
from dl.penalties import l2, with_penalty
from dl.precision import BFLOAT16, computing_in
from dl.report import write_report
from dl.runs.find import find_experiment
from dl.runs.folder import RunFolder
from dl.runs.predictions import (
    Disagreement,
    LanguageModel,
    MultiLabel,
    Outputs,
    Predictions,
    Reconstruction,
    Regression,
    check_agreement,
    read_predictions,
)
from dl.training.restore import restore_variables
from tests.helpers import train_in

FOLDER = Path(__file__).parent / "kinds"
NAMES = ("diabetes", "digit_codes", "digit_properties", "characters")


@dataclasses.dataclass
class Finished:
    """A run that has ended, what it says, and what its model says of the test split, in NumPy."""

    folder: Path
    experiment: Experiment
    result: dict
    predictions: object
    report: str
    outputs: np.ndarray
    test: dict


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mesh1):
    """Runs each of the experiments once, by its command."""
    runs = {}

    def run(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(name) / "run"
            function = find_experiment(str(FOLDER / f"{name}.py"))
            main(function, ["--workdir", str(folder), "--mesh", "data=1"])
            experiment = function()
            test = experiment.data.evaluations["test"].arrays
            variables = restore_variables(experiment, RunFolder(folder), mesh1)
            inputs = test[experiment.task.input_name]
            inputs = inputs / np.float32(255) if inputs.ndim == 4 else inputs
            batch = {experiment.task.input_name: jnp.asarray(inputs)}
            outputs = experiment.task.predict(variables, batch)
            runs[name] = Finished(
                folder,
                experiment,
                json.loads((folder / "result.json").read_text()),
                read_predictions(folder / "predictions.npz"),
                (folder / "report.html").read_text(),
                np.asarray(outputs),
                test,
            )
        return runs[name]

    return run


def words_of(page):
    """The text of a page, without its markup and style."""
    page = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


@pytest.mark.slow
def test_a_regression(finished):
    run = finished("diabetes")
    measured, target = run.result["metrics"]["test"], run.test["target"]
    output = run.outputs[:, 0]
    assert measured == pytest.approx(
        {
            "loss": sk.mean_squared_error(target, output),
            "mean_absolute_error": sk.mean_absolute_error(target, output),
            "root_mean_squared_error": np.sqrt(sk.mean_squared_error(target, output)),
            "r_squared": sk.r2_score(target, output),
        },
        rel=1e-4,
    )
    assert isinstance(run.predictions, Regression)
    np.testing.assert_allclose(run.predictions.output[:, 0], output, atol=1e-4)
    np.testing.assert_array_equal(run.predictions.target[:, 0], target)
    assert "R² 0.5" in words_of(run.report)
    assert "Predicted against actual" in words_of(run.report)


@pytest.mark.slow
def test_an_autoencoder(finished):
    run = finished("digit_codes")
    image = run.test["image"] / 255
    error = np.square(run.outputs - image).mean((1, 2, 3))
    assert run.result["metrics"]["test"]["loss"] == pytest.approx(error.mean(), rel=1e-4)
    kept = run.predictions
    assert isinstance(kept, Reconstruction)
    np.testing.assert_allclose(kept.error, error, rtol=1e-3)
    worst = kept.shown[: kept.num_worst]
    assert set(worst) == set(np.argsort(-error)[: kept.num_worst])
    np.testing.assert_allclose(kept.input, image[kept.shown], atol=1e-6)
    np.testing.assert_allclose(kept.output, run.outputs[kept.shown], atol=1e-4)
    assert run.report.count('alt="reconstruction of row') == run.report.count('alt="input of row') == 24


@pytest.mark.slow
def test_labels_of_which_any_number_holds(finished):
    run = finished("digit_properties")
    label, predicted = run.test["label"], run.outputs > 0
    measured = run.result["metrics"]["test"]
    probability = 1 / (1 + np.exp(-run.outputs.astype(float)))
    assert measured == pytest.approx(
        {
            "loss": np.mean([sk.log_loss(label[:, c], probability[:, c]) for c in range(3)]),
            "label_accuracy": 1 - sk.hamming_loss(label, predicted),
            "exact_match": sk.accuracy_score(label, predicted),
            "f1_micro": sk.f1_score(label, predicted, average="micro"),
            "f1_macro": sk.f1_score(label, predicted, average="macro"),
            "average_precision_macro": sk.average_precision_score(label, run.outputs, average="macro"),
        },
        rel=1e-4,
    )
    assert isinstance(run.predictions, MultiLabel)
    assert run.predictions.class_names == ("even", "prime", "above four")
    assert "above four" in words_of(run.report)


@pytest.mark.slow
def test_a_language_model(finished):
    run = finished("characters")
    tokens = run.test["tokens"].astype(int)
    log_p = log_softmax(run.outputs.astype(float), -1)[:, :-1]
    counts = tokens[:, 1:] != 0
    loss = -np.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]
    is_right = log_p.argmax(-1) == tokens[:, 1:]
    mean = loss[counts].mean()
    assert run.result["metrics"]["test"] == pytest.approx(
        {
            "loss": mean,
            "accuracy": is_right[counts].mean(),
            "perplexity": np.exp(mean),
            "bits_per_byte": mean / np.log(2),  # one byte a character
        },
        rel=1e-4,
    )
    kept = run.predictions
    assert isinstance(kept, LanguageModel)
    np.testing.assert_array_equal(kept.num_tokens, counts.sum(1))
    np.testing.assert_allclose(kept.loss, np.where(counts, loss, 0).sum(1), rtol=1e-3)
    np.testing.assert_array_equal(kept.token, tokens[kept.shown])
    expected = np.where(counts, loss, np.nan)[kept.shown]
    np.testing.assert_allclose(kept.token_loss, expected, atol=1e-3)
    page = words_of(run.report)
    for words in ("nats a token", "perplexity", "bits a token", "Loss by position", "The hardest tokens"):
        assert words in page


@pytest.mark.slow
def test_a_language_model_stands_beside_its_ngram_model(finished):
    run = finished("characters")
    (baseline,) = run.result["baselines"]
    assert baseline["name"] == "4-gram model, modified Kneser-Ney"
    difference = baseline["differences"]["test"]["loss"]
    of_ngrams = baseline["metrics"]["test"]["loss"]
    assert difference["estimate"] == pytest.approx(run.result["metrics"]["test"]["loss"] - of_ngrams)
    assert difference["low"] < difference["estimate"] < difference["high"]
    assert difference["test"] == "paired t over 80 examples"
    assert "4-gram model" in words_of(run.report)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_an_interval_a_direction_and_a_unit(finished, name):
    result = finished(name).result
    for metric, value in result["metrics"]["test"].items():
        low, high = result["intervals"]["test"][metric]
        assert low < value < high
        assert result["interval_methods"]["test"][metric]
        assert result["better"][metric] in ("min", "max")
        assert result["units"][metric]
    assert result["headline"] in result["metrics"]["test"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_predictions_hold_what_each_example_adds_to_each_metric(finished, name):
    run = finished(name)
    rows = run.predictions.example_metrics.astype(float)
    assert rows.shape == (len(run.outputs), len(run.predictions.metric_names), 2)
    for place, metric in enumerate(run.predictions.metric_names):
        total, weight = rows[:, place].sum(0)
        assert total / weight == pytest.approx(run.result["metrics"]["test"][metric], rel=1e-5)


WRONG_WORDS = {
    "diabetes": ("accuracy", "class", "nats", "image", "label", "token", "Wilson"),
    "digit_codes": ("accuracy", "class", "nats", "label", "token", "confusion", "Wilson"),
    "digit_properties": ("class", "token", "confusion", "squared"),
    "characters": ("class", "image", "label", "pixel", "confusion", "squared"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_report_has_no_wrong_word_and_says_that_nothing_is_missing(finished, name):
    page = words_of(finished(name).report)
    # Names of options, layers and the interpreter are not the report's words.
    page = page[: page.index("Layers, one example")]
    found = [word for word in WRONG_WORDS[name] if word.lower() in page.lower()]
    assert not found, page
    assert "What is missing here" not in page


@pytest.mark.parametrize("name", NAMES)
def test_axes_have_the_units_that_the_loss_states(finished, name):
    run = finished(name)
    labels = re.findall(r"rotate\(-90[^>]*>([^<]*)<", run.report)
    assert labels[0] == run.result["units"]["loss"]


def test_predict_says_in_one_line_what_it_cannot(finished, dl):
    words = {"diabetes": "a regression", "digit_codes": "a reconstruction", "characters": "a language model"}
    for name, kind in words.items():
        picture, experiment = str(finished(name).folder / "x.png"), str(FOLDER / f"{name}.py")
        Image.new("L", (8, 8), 200).save(picture)
        status, _, err = dl("predict", str(finished(name).folder), picture, "--experiment", experiment)
        assert (status, err.count("\n")) == (2, 1)
        assert f"is {kind} without classes" in err


def test_predict_gives_each_label_a_probability_of_its_own(finished, dl, tmp_path):
    run = finished("digit_properties")
    Image.fromarray(run.test["image"][0, ..., 0]).save(tmp_path / "x.png")
    experiment = str(FOLDER / "digit_properties.py")
    status, out, err = dl("predict", str(run.folder), str(tmp_path / "x.png"), "--experiment", experiment)
    assert (status, err) == (0, "")
    found = {" ".join(words): float(p) for p, *words in (line.split() for line in out.splitlines())}
    expected = 1 / (1 + np.exp(-run.outputs[0]))
    assert found == pytest.approx(dict(zip(("even", "prime", "above four"), expected, strict=True)), abs=1e-3)


def test_runs_of_any_kind_are_compared_over_their_examples(finished, dl):
    for name in NAMES:
        folder = str(finished(name).folder)
        status, out, _ = dl("compare", folder, folder)
        assert status == 0
        assert "no difference shown" in out


# -- losses written by hand, wrappers, disagreement


def noise(size, seed, num_classes=3):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (size, 2, 2, 1), np.uint8)
    return {"image": image, "label": random.integers(0, num_classes, size).astype(np.int32)}


def tiny(learned=None, arrays=None, **options):
    model = MLP(hidden=(), num_classes=3)
    arrays = arrays or noise(40, 0)
    data = ArraySplits("noise", train=ArraySource(arrays), evaluations={"test": ArraySource(arrays)})
    keywords = {"tx": optimizers.sgd(0.1), "num_steps": 2, "batch_size": 20, **options}
    return Experiment(data=data, task=learned or task.classification(model), **keywords)


MODEL = MLP(hidden=(), num_classes=3)


def test_a_loss_written_by_hand_has_neutral_words_and_keeps_its_outputs(tmp_path, mesh1):
    arrays = {"image": noise(40, 0)["image"], "angle": np.zeros(40, np.float32)}
    own = task.supervised(MODEL, lambda output, batch: jnp.abs(output).sum(-1))
    result = train_in(tmp_path, mesh1, tiny(own, arrays))
    assert (result["kind"], result["units"]) == (None, {})
    kept = read_predictions(tmp_path / "predictions.npz")
    assert isinstance(kept, Outputs)
    assert kept.output.shape == (40, 3)
    write_report(tmp_path, tmp_path / "report.html", None)
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"rotate\(-90[^>]*>([^<]*)<", page)[0] == "value"
    assert not [word for word in ("nats", "accuracy", "squared") if word in words_of(page)]


def test_wrappers_pass_on_what_a_loss_measures():
    plain = task.classification(MODEL, input_name="pixels")
    for wrapped in (
        with_penalty(plain, l2(0.1)),
        with_mixing(plain, mixup(0.2, 3)),
        computing_in(BFLOAT16, with_penalty(plain, l2(0.1))),
    ):
        assert wrapped.kind is plain.kind
        assert wrapped.input_name == "pixels"
    own = task.supervised(MODEL, lambda output, batch: output[:, 0])
    assert own.kind is with_penalty(own, l2(0.1)).kind is None


def blind(batch):
    """A preprocessing that loses the labels on the way."""
    image = batch["image"].astype(jnp.float32) / 255
    return {**batch, "image": image, "label": jnp.zeros_like(batch["label"])}


@pytest.mark.slow
def test_a_run_whose_predictions_contradict_it_ends_with_an_error_and_keeps_its_result(tmp_path, mesh1):
    def cast(logits, batch):
        return losses.cross_entropy(logits, (batch["label"] / 255).astype(jnp.int32))

    def is_right(logits, batch):
        hit = logits.argmax(-1) == (batch["label"] / 255).astype(jnp.int32)
        return {"accuracy": Mean.of(hit, batch["mask"], better="max")}

    experiment = tiny(task.supervised(MODEL, cast, is_right), num_steps=60, tx=optimizers.adam(0.1))
    for _ in range(2):  # and again, when the folder is asked for a second time
        with pytest.raises(UserError, match="the run measured accuracy 1 on test, but .* have 0.") as caught:
            train_in(tmp_path, mesh1, experiment)
        assert "\n" not in str(caught.value)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["test"]["accuracy"] == 1.0
    write_report(tmp_path, tmp_path / "report.html", None)
    assert "Agreement: the run measured accuracy 1" in words_of((tmp_path / "report.html").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_rounding_is_no_disagreement(tmp_path, mesh1, dtype):
    model = MLP(hidden=(8,), num_classes=3, dtype=dtype)
    experiment = tiny(task.classification(model, label_smoothing=0.1))
    train_in(tmp_path, mesh1, experiment)


def test_labels_that_are_distributions_are_not_compared():
    arrays = {**noise(40, 0), "target": np.full((40, 3), 1 / 3, np.float32)}
    log_p = np.log(np.full((40, 3), 1 / 3, np.float32))
    index = np.arange(40, dtype=np.int32)
    kept = Predictions("test", 40, index, arrays["label"], log_p, ("a", "b", "c"))
    metrics = {"loss": 9.0, "accuracy": 0.0}
    check_agreement(tiny(arrays=arrays), metrics, kept)
    with pytest.raises(Disagreement, match="measured loss 9"):
        check_agreement(tiny(), metrics, kept)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 54.3])
def test_an_accuracy_that_is_no_share_is_not_compared_of_a_loss_written_by_hand(value):
    index, label = np.arange(40, dtype=np.int32), noise(40, 0)["label"]
    kept = Predictions("test", 40, index, label, np.log(np.eye(3)[label] * 0.9 + 0.03), ("a", "b", "c"))
    own = tiny(task.supervised(MODEL, lambda output, batch: output[:, 0]))
    check_agreement(own, {"accuracy": value}, kept)
    with pytest.raises(Disagreement):
        check_agreement(own, {"accuracy": 0.1}, kept)


def test_a_sample_may_differ_by_what_sampling_explains():
    random = np.random.default_rng(0)
    label = random.integers(0, 3, 100).astype(np.int32)
    predicted = np.where(random.random(100) < 0.7, label, (label + 1) % 3)
    log_p = np.log(np.eye(3)[predicted] * 0.94 + 0.02)
    kept = Predictions("test", 10**6, np.arange(100, dtype=np.int32), label, log_p, ("a", "b", "c"))
    accuracy, loss = (log_p.argmax(1) == label).mean(), -log_p[np.arange(100), label].mean()
    check_agreement(tiny(), {"accuracy": accuracy + 0.1, "loss": loss}, kept)
    with pytest.raises(Disagreement):
        check_agreement(tiny(), {"accuracy": accuracy - 0.4, "loss": loss}, kept)
    with pytest.raises(Disagreement):
        check_agreement(tiny(), {"accuracy": accuracy + 0.1}, dataclasses.replace(kept, num_examples=100))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("digit_properties", {"label": lambda x: x.astype(np.int32) * 2 - 1}, "is -1; labels must be 0 or 1"),
        ("digit_properties", {"label": lambda label: label * 0.5}, "is 0.5; labels must be 0 or 1"),
        (
            "characters",
            {"tokens": lambda x: x.astype(np.int32) - 1},
            "is -1; tokens must be at least 0",
        ),
        (
            "characters",
            {"tokens": lambda x: x + 9},
            "(uint8), and the model's 29 outputs stand for the classes 0 to 28; correct the tokens",
        ),
        ("characters", {"tokens": lambda tokens: tokens.astype(np.float32)}, "dtype float32; tokens must be"),
        ("diabetes", {"target": None}, "does not have the target feature target; it has features"),
    ],
)
def test_targets_of_another_kind_are_refused_before_training(name, change, message, tmp_path, mesh1):
    experiment = find_experiment(str(FOLDER / f"{name}.py"))()

    def changed(source):
        arrays = dict(source.arrays)
        for feature, function in change.items():
            arrays[feature] = function(arrays[feature]) if function else None
        return ArraySource({feature: array for feature, array in arrays.items() if array is not None})

    data = experiment.data
    evaluations = {split: changed(source) for split, source in data.evaluations.items()}
    data = dataclasses.replace(data, train=changed(data.train), evaluations=evaluations)
    with pytest.raises(UserError, match=re.escape(message)):
        train_in(tmp_path / "run", mesh1, dataclasses.replace(experiment, data=data))
    assert not (tmp_path / "run").exists()


def test_tokens_are_no_pixels_whatever_their_type():
    experiment = find_experiment(str(FOLDER / "characters.py"))()
    assert experiment.data.train.spec["tokens"].dtype == np.uint8
    assert experiment.preprocess is None
    assert tiny().preprocess is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_other_commands_take_every_kind(name, dl, tmp_path):
    path = str(FOLDER / f"{name}.py")
    assert dl("summary", path)[0] == 0
    assert dl("lr-find", path, "--num-steps", "20", "--plot", str(tmp_path / "x.png"))[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_sound_experiment_of_every_kind_overfits_one_batch(name):
    experiment = find_experiment(str(FOLDER / f"{name}.py"))()
    result = overfit(experiment)
    assert result.has_passed, result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digit_codes", "characters"])
def test_outputs_that_ignore_the_input_do_not_pass(name):
    experiment = find_experiment(str(FOLDER / f"{name}.py"))()
    frozen = dataclasses.replace(experiment, tx=optimizers.sgd(1e-9))
    assert not overfit(frozen, 20).has_passed
