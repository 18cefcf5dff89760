"""Explanations of one prediction: images, texts and rows, against closed forms and brute force."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import Experiment, optimizers, task, train
from dl.analysis import explain_methods
from dl.analysis.explain import explain
from dl.analysis.explained_run import ExplainedRun
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.models.cnn import CNN
from dl.models.mlp import MLP
from dl.sharding import make_mesh
from dl.training.result import Result


class Words(nn.Module):
    """The mean of the embeddings of all tokens, then a linear layer."""

    @nn.compact
    def __call__(self, tokens_BT, train=False):
        return nn.Dense(3)(nn.Embed(7, 4)(tokens_BT).mean(1))


class Letters:
    """A tokenizer of seven letters, of which the first is padding."""

    padding_id, unknown_id, mask_id, digest = None, 1, None, ""

    def encode(self, text):
        return ["_?abcde".index(letter) for letter in text]


class TextSplits(ArraySplits):
    tokenizer = Letters()
    token_names = tuple("_?abcde")


def _run(model, name, inputs, splits=ArraySplits, num_steps=3):
    labels = np.arange(len(inputs), dtype=np.int32) % 3
    source = ArraySource({name: inputs, "label": labels})
    return ExplainedRun(
        train(
            Experiment(
                data=splits("tiny", source, {"test": source}),
                task=task.classification(model, input_name=name),
                tx=optimizers.adam(1e-2),
                num_steps=num_steps,
                batch_size=8,
            )
        )
    )


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 1)).astype(np.uint8)
    model = CNN(channels=(4,), hidden=(8,), num_classes=3, pool=True)
    return _run(model, "image", pixels), model


@pytest.fixture(scope="module")
def rows():
    table = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    model = MLP(hidden=(4,), num_classes=3)
    return _run(model, "x", table), model


@pytest.fixture(scope="module")
def texts():
    tokens = np.random.default_rng(2).integers(1, 7, (24, 5)).astype(np.int32)
    return _run(Words(), "tokens", tokens, TextSplits, num_steps=20)


def test_integrated_gradients_of_an_image_add_up_to_the_difference_from_black(images):
    run, model = images
    found = explain(run, run.example("test", 3), target=2)
    pixels = run.example("test", 3)["image"] / np.float32(255)
    logits = [model.apply(run.result.variables, x)[0, 2] for x in (pixels, 0 * pixels)]
    assert found.attributions.shape == (12, 12)
    assert found.attributions.sum() == pytest.approx(float(logits[0] - logits[1]), rel=0.03)
    assert found.figures["completeness error"] < 0.02
    assert sum(weight for _, weight in found.by_region()) == pytest.approx(found.attributions.sum(), rel=1e-5)
    assert (found.target, found.label) == (2, 0)


def test_probabilities_are_those_of_the_model(images):
    run, model = images
    features = run.example("test", 5)
    expected = jax.nn.softmax(model.apply(run.result.variables, features["image"] / np.float32(255)))[0]
    np.testing.assert_allclose(explain(run, features, "gradient").probabilities, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "method", ["gradient", "grad-cam", "lrp", "guided-backpropagation", "occlusion", "shap"]
)
def test_every_method_maps_an_image_and_repeats_its_numbers(images, method):
    run, _ = images
    features = run.example("test", 1)
    one, other = (explain(run, features, method, seed=4) for _ in range(2))
    assert one.attributions.shape == (12, 12)
    assert np.isfinite(one.attributions).all()
    np.testing.assert_array_equal(one.attributions, other.attributions)


def test_integrated_gradients_of_a_linear_text_model_are_products_with_the_weights(texts):
    found = explain(texts, texts.read("abcda"), "integrated-gradients", target=1)
    params = texts.result.params
    tokens = ["_?abcde".index(letter) for letter in "abcda"]
    embedded = np.asarray(params["Embed_0"]["embedding"])[tokens]
    expected = embedded @ np.asarray(params["Dense_0"]["kernel"])[:, 1] / len(tokens)
    np.testing.assert_allclose(found.attributions, expected, rtol=1e-3, atol=1e-6)
    assert found.strongest(1)[0][0] == "abcda"[np.abs(expected).argmax()]
    assert found.label is None  # of a new text it is not known


def test_occlusion_of_a_text_is_the_fall_of_the_probability_for_the_unknown_token(texts):
    found = explain(texts, texts.read("abcda"), target=0)
    tokens = np.array([["_?abcde".index(letter) for letter in "abcda"]])
    copies = np.concatenate([tokens, np.where(np.eye(5, dtype=bool), 1, tokens)])
    probabilities = jax.nn.softmax(Words().apply(texts.result.variables, jnp.asarray(copies)))[:, 0]
    np.testing.assert_allclose(found.attributions, probabilities[0] - probabilities[1:], atol=1e-6)


def test_shapley_values_of_a_row_add_up_to_the_difference_from_the_training_rows(rows):
    run, model = rows
    table = run.result.experiment.data.train[np.arange(40)]["x"]
    found = explain(run, run.read(table[7]), target=1)
    probabilities = jax.nn.softmax(model.apply(run.result.variables, jnp.asarray(table)))[:, 1]
    assert found.attributions.sum() == pytest.approx(float(probabilities[7] - probabilities.mean()), abs=1e-5)
    assert found.name_of(2) == f"x2 = {table[7, 2]:.4g}"


def test_what_does_not_fit_is_refused_in_one_line(images, rows, texts):
    run, _ = images
    features = run.example("test", 0)
    for call, message in (
        (
            lambda: explain(texts, texts.read("abcda"), "grad-cam"),
            "does not explain a model that reads a text",
        ),
        (lambda: explain(run, features, target=3), "class 3 does not exist; choose 0 to 2"),
        (lambda: explain(run, features, "lime", layer="Conv_0"), "a layer is for grad-cam"),
        (lambda: explain(run, features, "grad-cam", layer="Dense_0"), "has no feature map"),
        (lambda: run.example("test", 24), "choose 0 to 23"),
        (lambda: run.example("validation", 0), "there is no split validation"),
        (lambda: rows[0].read(np.zeros(4)), "the model reads"),
        (lambda: explain_methods.last_convolution(rows[0]), "no convolution"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_run_without_classes_is_refused():
    source = ArraySource({"x": np.zeros((8, 2), np.float32), "target": np.zeros(8, np.float32)})
    experiment = Experiment(
        data=ArraySplits("numbers", source, {"test": source}),
        task=task.regression(MLP(hidden=(), num_classes=1), input_name="x"),
        tx=optimizers.sgd(0.1),
        num_steps=1,
        batch_size=8,
    )
    with pytest.raises(UserError, match="is a regression; explain needs a classifier"):
        ExplainedRun(Result(experiment, {}, run=None, mesh=make_mesh()))
