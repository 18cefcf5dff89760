import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import losses, task
from dl.errors import UserError
from dl.gradients import mean_gradient
from dl.models.mlp import MLP


def batch_of(size: int, features: int = 3) -> dict[str, jax.Array]:
    return {
        "image": jax.random.normal(jax.random.key(0), (size, features)),
        "label": jnp.arange(size) % 2,
        "mask": jnp.ones(size, bool),
    }


@pytest.mark.slow
def test_the_reported_loss_is_plain_while_the_gradient_is_of_the_smoothed_one():
    model = MLP(hidden=(), num_classes=2)
    batch = batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    plain, aux_plain = task.classification(model).loss(params, {}, batch, jax.random.key(1))
    smooth, aux = task.classification(model, label_smoothing=0.2).loss(params, {}, batch, None)
    assert smooth.compute() > plain.compute()
    chex.assert_trees_all_equal(aux.metrics["loss"], aux_plain.metrics["loss"])


class ForgetsToFlatten(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(nn.Conv(4, (3, 3))(x))


@pytest.mark.slow
def test_a_missing_flatten_is_named():
    model = ForgetsToFlatten()
    batch = {
        "image": jnp.zeros((2, 8, 8, 1)),
        "label": jnp.zeros(2, int),
        "mask": jnp.ones(2, bool),
    }
    params = model.init(jax.random.key(0), batch["image"])["params"]
    with pytest.raises(UserError, match=r"got \(2, 8, 8, 10\); is a flatten"):
        task.classification(model).loss(params, {}, batch, None)


def test_rows_that_are_no_examples_are_refused():
    class ViewsTheBatchAway(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.reshape(-1, 6)

    batch = {"image": jnp.zeros((4, 3, 3, 1)), "label": jnp.zeros(4, int), "mask": jnp.ones(4, bool)}
    with pytest.raises(UserError, match=r"6 rows of logits from 4 examples; does it reshape by \(-1"):
        task.classification(ViewsTheBatchAway()).loss({}, {}, batch, None)


@pytest.mark.slow
def test_a_regression_is_measured_over_valid_examples():
    model, batch = MLP(hidden=(), num_classes=2), batch_of(8)
    batch |= {"target": jax.random.normal(jax.random.key(1), (8, 2)), "mask": jnp.arange(8) < 5}
    params = model.init(jax.random.key(0), batch["image"])["params"]
    loss, aux = task.regression(model).loss(params, {}, batch, None)
    output = np.asarray(batch["image"]) @ np.asarray(params["Dense_0"]["kernel"])
    expected = ((output - batch["target"]) ** 2)[:5].mean()
    assert loss.compute() == pytest.approx(float(expected), rel=1e-5)
    chex.assert_trees_all_equal(aux.metrics["loss"], loss)
    half, _ = task.regression(model, losses.half_squared_error).loss(params, {}, batch, None)
    assert half.compute() == pytest.approx(
        float(expected), rel=1e-5
    )  # of two outputs half the sum is the mean


@pytest.mark.slow
def test_one_number_an_example_is_a_target_too():
    model, batch = MLP(hidden=(), num_classes=1), batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    target_B = jax.random.normal(jax.random.key(1), (8,))
    flat, column = (
        task.regression(model).loss(params, {}, {**batch, "target": target}, None)[0].compute()
        for target in (target_B, target_B[:, None])
    )
    assert flat == column


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    model = MLP(hidden=(64,), num_classes=2, dropout=0.5)
    batch = batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    loss_fn = task.classification(model).loss
    evaluated = [loss_fn(params, {}, batch, None)[0].compute() for _ in range(2)]
    trained = [loss_fn(params, {}, batch, jax.random.key(k))[0].compute() for k in range(2)]
    assert evaluated[0] == evaluated[1]
    assert trained[0] != trained[1]
    assert trained[0] != evaluated[0]


@pytest.mark.slow
def test_batch_statistics_change_in_training_only():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))

    model = Normed()
    batch = batch_of(8)
    variables = model.init(jax.random.key(0), batch["image"])
    state = {"batch_stats": variables["batch_stats"]}
    loss_fn = task.classification(model).loss
    _, aux = loss_fn(variables["params"], state, batch, None)
    chex.assert_trees_all_equal(aux.model_state, state)
    _, aux = loss_fn(variables["params"], state, batch, jax.random.key(0))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), aux.model_state, state)
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize(
    ("example_loss", "shape"),
    [
        (lambda logits, batch: logits[:, :1], r"\(8, 1\)"),
        (lambda logits, batch: logits.mean(), r"\(\)"),
        (lambda logits, batch: logits, r"\(8, 2\)"),
    ],
)
def test_a_loss_that_is_not_one_number_an_example_is_refused(example_loss, shape):
    model, batch = MLP(hidden=(), num_classes=2), batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    with pytest.raises(UserError, match=f"the shape {shape} for 8 examples"):
        task.supervised(model, example_loss).loss(params, {}, batch, None)


def test_a_metric_that_is_no_mean_is_refused():
    model, batch = MLP(hidden=(), num_classes=2), batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    loss_fn = task.supervised(model, lambda y, b: y[:, 0], lambda y, b: {"top": y.max()}).loss
    with pytest.raises(UserError, match="the metric top is not a dl.metrics.Mean"):
        loss_fn(params, {}, batch, None)


def test_a_model_without_dropout_needs_no_train_argument():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    batch = batch_of(8)
    params = Plain().init(jax.random.key(0), batch["image"])["params"]
    for key in (None, jax.random.key(0)):
        assert task.classification(Plain()).loss(params, {}, batch, key)[0].compute() > 0


@pytest.mark.slow
def test_soft_labels_are_measured_by_the_mixture_of_the_hard_ones():
    model = MLP(hidden=(), num_classes=3)
    batch = {**batch_of(4), "label": jnp.array([0, 1, 2, 0])}
    other = jnp.array([1, 2, 0, 2])
    params = model.init(jax.random.key(0), batch["image"])["params"]

    def measure(smoothing, **labels):
        smoothed = task.classification(model, label_smoothing=smoothing)
        loss, aux = smoothed.loss(params, {}, {**batch, **labels}, None)
        return loss.compute(), aux.metrics["loss"].compute(), aux.metrics["accuracy"].compute()

    target = 0.7 * jax.nn.one_hot(batch["label"], 3) + 0.3 * jax.nn.one_hot(other, 3)
    for smoothing in (0.0, 0.1):
        first, second = measure(smoothing), measure(smoothing, label=other)
        expected = [0.7 * a + 0.3 * b for a, b in zip(first, second, strict=True)]
        np.testing.assert_allclose(measure(smoothing, target=target), expected, rtol=1e-5)


class Given(nn.Module):
    """Puts out the feature that it reads."""

    @nn.compact
    def __call__(self, x):
        return x + self.param("bias", nn.initializers.zeros, ())


def measured(learned, **batch):
    """The loss and the metrics of a batch whose input are the outputs; the last example is padding."""
    size = len(next(iter(batch.values())))
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    mask = jnp.arange(size) < size - 1
    params = {"bias": jnp.zeros(())}
    batch["mask"] = mask
    (loss, aux), gradient = mean_gradient(learned.loss)(params, {}, batch, None)
    assert np.isfinite(gradient["bias"])
    return float(loss), {name: float(metric.compute()) for name, metric in aux.metrics.items()}, aux.metrics


@pytest.mark.slow
def test_multi_label_is_the_mean_over_the_labels_of_valid_examples():
    random = np.random.default_rng(0)
    logits, label = random.normal(size=(9, 3)).astype(np.float32), random.integers(0, 2, (9, 3))
    logits[-1] = 1e6  # on padding
    loss, metrics, means = measured(task.multi_label(Given()), image=logits, label=label)
    log_odds, label = logits[:-1].astype(float), label[:-1]
    expected = np.logaddexp(0, np.where(label, -log_odds, log_odds)).mean()
    is_right = (log_odds > 0) == label
    assert loss == pytest.approx(expected, rel=1e-5)
    figures = {"loss": expected, "label_accuracy": is_right.mean(), "exact_match": is_right.all(1).mean()}
    assert metrics == pytest.approx(figures, rel=1e-5)
    assert [means[name].better for name in figures] == ["min", "max", "max"]
    with pytest.raises(UserError, match="differ; both must be"):
        measured(task.multi_label(Given()), image=logits, label=label[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("is_binary", [False, True])
def test_an_autoencoder_is_compared_with_its_input(is_binary):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            return 0.5 * x + self.param("bias", nn.initializers.zeros, ())

    image = np.random.default_rng(0).random((5, 2, 3, 1)).astype(np.float32)
    loss, metrics, _ = measured(task.autoencoder(Half(), is_binary=is_binary), image=image)
    x = image[:-1].astype(float)
    if not is_binary:
        assert loss == metrics["loss"] == pytest.approx(np.square(x / 2).mean(), rel=1e-5)
        assert metrics.keys() == {"loss"}
        return
    p = 1 / (1 + np.exp(-x / 2))
    assert loss == pytest.approx(-(x * np.log(p) + (1 - x) * np.log(1 - p)).mean(), rel=1e-5)
    assert metrics["mean_squared_error"] == pytest.approx(np.square(p - x).mean(), rel=1e-5)


def test_an_output_of_another_shape_than_the_input_is_refused():
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.reshape(len(x), -1) + self.param("bias", nn.initializers.zeros, ())

    for is_binary in (False, True):
        with pytest.raises(UserError, match="differ"):
            measured(task.autoencoder(Flat(), is_binary=is_binary), image=np.zeros((3, 2, 2, 1)))


class Uniform(nn.Module):
    """Logits of a vocabulary of four, from which each token predicts the next number with logit 2."""

    @nn.compact
    def __call__(self, tokens):
        scale = 2 + self.param("bias", nn.initializers.zeros, ())
        return jax.nn.one_hot((tokens + 1) % 4, 4) * scale


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_a_language_model_predicts_the_next_token_and_weighs_by_tokens(dtype):
    tokens = np.array([[1, 2, 3, 0], [3, 1, 0, 0], [2, 2, 2, 2]], dtype)  # 0 is padding, the last row too
    loss, metrics, means = measured(task.language_model(Uniform(), padding_id=0), tokens=tokens)
    normaliser = np.log(np.exp(2) + 3)
    # Of the tokens 2 and 3, and 1, the first two are as expected.
    expected = (2 * (normaliser - 2) + normaliser) / 3
    assert loss == metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    total, count = means["loss"].each
    np.testing.assert_allclose(count, [2, 1, 0])
    np.testing.assert_allclose(total, [2 * (normaliser - 2), normaliser, 0], rtol=1e-5)
    assert measured(task.language_model(Uniform()), tokens=tokens)[2]["loss"].count == 6


def test_outputs_that_are_no_logits_of_tokens_are_refused():
    for tokens in (np.zeros((3, 1), np.int32), np.zeros(3, np.int32)):
        with pytest.raises(UserError, match="the tokens of a language model have shape"):
            measured(task.language_model(Uniform()), tokens=tokens)
    with pytest.raises(UserError, match="a language model's logits have shape"):
        measured(task.language_model(Given()), tokens=np.zeros((3, 4), np.float32))


def test_a_regression_names_its_target_and_measures_the_absolute_error_too():
    output, target = np.array([1.0, 2.0, 9.0], np.float32), np.array([3.0, 2.5, 0.0], np.float32)
    learned = task.regression(Given(), input_name="x", target_name="angle")
    loss, metrics, means = measured(learned, x=output, angle=target)
    assert loss == pytest.approx((4 + 0.25) / 2)
    assert metrics == pytest.approx({"loss": loss, "mean_absolute_error": 1.25})
    assert {metric.better for metric in means.values()} == {"min"}
    assert (learned.kind.target, learned.kind.units["loss"]) == ("angle", "squared error")
    own = task.regression(Given(), lambda output, target: jnp.abs(output - target)[:, 0])
    half = task.regression(Given(), losses.half_squared_error)
    assert [one.kind.units["loss"] for one in (own, half)] == ["value", "half the squared error"]
