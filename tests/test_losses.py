import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from dl import losses
from dl.models.mlp import MLP


def test_cross_entropy_equals_scipy():
    random = np.random.default_rng(0)
    logits_BC, labels_B = random.normal(size=(32, 7)), random.integers(0, 7, 32)
    expected_B = -log_softmax(logits_BC, axis=-1)[np.arange(32), labels_B]
    np.testing.assert_allclose(losses.cross_entropy(logits_BC, labels_B), expected_B, rtol=1e-5)


def test_cross_entropy_of_ten_equal_logits_is_ln_10():
    loss_B = losses.cross_entropy(jnp.zeros((1, 10)), jnp.array([3]))
    np.testing.assert_allclose(loss_B, [2.302585], rtol=1e-6)


def test_cross_entropy_is_exact_at_huge_logits():
    logits_BC = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    np.testing.assert_array_equal(losses.cross_entropy(logits_BC, jnp.array([0, 0])), [0.0, 2e4])


def test_integer_labels_and_one_hot_labels_agree():
    logits_BC = jax.random.normal(jax.random.key(0), (16, 5))
    labels_B = jnp.arange(16) % 5
    one_hot = -(jax.nn.one_hot(labels_B, 5) * jax.nn.log_softmax(logits_BC)).sum(-1)
    chex.assert_trees_all_close(losses.cross_entropy(logits_BC, labels_B), one_hot, rtol=1e-6)


def test_label_smoothing_is_the_mixture_with_the_uniform_distribution():
    random = np.random.default_rng(1)
    logits_BC, labels_B = random.normal(size=(8, 4)), random.integers(0, 4, 8)
    log_p = log_softmax(logits_BC, axis=-1)
    expected_B = -0.9 * log_p[np.arange(8), labels_B] - 0.1 * log_p.mean(-1)
    actual_B = losses.cross_entropy(jnp.float32(logits_BC), labels_B, label_smoothing=0.1)
    np.testing.assert_allclose(actual_B, expected_B, rtol=1e-5)


def test_binary_cross_entropy_has_both_halves():
    logit_of_a_tenth = np.log(0.1 / 0.9)
    loss_B = losses.binary_cross_entropy(jnp.array([[logit_of_a_tenth]]), jnp.array([[0.0]]))
    np.testing.assert_allclose(loss_B, [0.10536], atol=1e-5)


def test_the_squared_errors_equal_numpy():
    random = np.random.default_rng(2)
    output_BD, target_BD = random.normal(size=(2, 8, 3))
    squares = (output_BD - target_BD) ** 2
    np.testing.assert_allclose(losses.half_squared_error(output_BD, target_BD), squares.sum(1) / 2, rtol=1e-5)
    np.testing.assert_allclose(losses.mean_squared_error(output_BD, target_BD), squares.mean(1), rtol=1e-5)


def test_the_gradient_of_half_the_squared_error_is_the_error():
    output_BD, target_BD = jax.random.normal(jax.random.key(0), (2, 8, 3))
    gradient = jax.grad(lambda y: losses.half_squared_error(y, target_BD).sum())(output_BD)
    chex.assert_trees_all_close(gradient, output_BD - target_BD, rtol=1e-6)


@pytest.mark.parametrize("error", [losses.half_squared_error, losses.mean_squared_error])
def test_outputs_are_never_broadcast_against_targets(error):
    with pytest.raises(ValueError, match=r"shape \(8, 1\) and targets of shape \(8,\) differ"):
        error(jnp.zeros((8, 1)), jnp.zeros(8))


def batch_of(size: int, features: int = 3) -> dict[str, jax.Array]:
    return {
        "image": jax.random.normal(jax.random.key(0), (size, features)),
        "label": jnp.arange(size) % 2,
        "mask": jnp.ones(size, bool),
    }


def test_the_reported_loss_is_plain_while_the_gradient_is_of_the_smoothed_one():
    model = MLP(hidden=(), num_classes=2)
    batch = batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    plain, aux_plain = losses.classification(model)(params, {}, batch, jax.random.key(1))
    smooth, aux = losses.classification(model, label_smoothing=0.2)(params, {}, batch, None)
    assert smooth > plain
    chex.assert_trees_all_equal(aux.metrics["loss"], aux_plain.metrics["loss"])


class ForgetsToFlatten(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(nn.Conv(4, (3, 3))(x))


def test_a_missing_flatten_is_named():
    model = ForgetsToFlatten()
    batch = {
        "image": jnp.zeros((2, 8, 8, 1)),
        "label": jnp.zeros(2, int),
        "mask": jnp.ones(2, bool),
    }
    params = model.init(jax.random.key(0), batch["image"])["params"]
    with pytest.raises(ValueError, match=r"got \(2, 8, 8, 10\); is a flatten"):
        losses.classification(model)(params, {}, batch, None)


def test_rows_that_are_no_examples_are_refused():
    class ViewsTheBatchAway(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.reshape(-1, 6)

    batch = {"image": jnp.zeros((4, 3, 3, 1)), "label": jnp.zeros(4, int), "mask": jnp.ones(4, bool)}
    with pytest.raises(ValueError, match=r"6 rows of logits from 4 examples; does it reshape by \(-1"):
        losses.classification(ViewsTheBatchAway())({}, {}, batch, None)


def test_a_regression_is_measured_over_valid_examples():
    model, batch = MLP(hidden=(), num_classes=2), batch_of(8)
    batch |= {"target": jax.random.normal(jax.random.key(1), (8, 2)), "mask": jnp.arange(8) < 5}
    params = model.init(jax.random.key(0), batch["image"])["params"]
    loss, aux = losses.regression(model)(params, {}, batch, None)
    output = np.asarray(batch["image"]) @ np.asarray(params["Dense_0"]["kernel"])
    expected = ((output - batch["target"]) ** 2)[:5].mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert aux.metrics["loss"].compute() == loss
    half, _ = losses.regression(model, losses.half_squared_error)(params, {}, batch, None)
    assert half == pytest.approx(float(expected), rel=1e-5)  # of two outputs half the sum is the mean


def test_one_number_an_example_is_a_target_too():
    model, batch = MLP(hidden=(), num_classes=1), batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    target_B = jax.random.normal(jax.random.key(1), (8,))
    flat, column = (
        losses.regression(model)(params, {}, {**batch, "target": target}, None)[0]
        for target in (target_B, target_B[:, None])
    )
    assert flat == column


def test_dropout_acts_in_training_only():
    model = MLP(hidden=(64,), num_classes=2, dropout=0.5)
    batch = batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    loss_fn = losses.classification(model)
    evaluated = [loss_fn(params, {}, batch, None)[0] for _ in range(2)]
    trained = [loss_fn(params, {}, batch, jax.random.key(k))[0] for k in range(2)]
    assert evaluated[0] == evaluated[1]
    assert trained[0] != trained[1]
    assert trained[0] != evaluated[0]


def test_batch_statistics_change_in_training_only():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))

    model = Normed()
    batch = batch_of(8)
    variables = model.init(jax.random.key(0), batch["image"])
    state = {"batch_stats": variables["batch_stats"]}
    loss_fn = losses.classification(model)
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
    with pytest.raises(ValueError, match=f"the shape {shape} for 8 examples"):
        losses.supervised(model, example_loss)(params, {}, batch, None)


def test_a_metric_that_is_no_mean_is_refused():
    model, batch = MLP(hidden=(), num_classes=2), batch_of(8)
    params = model.init(jax.random.key(0), batch["image"])["params"]
    loss_fn = losses.supervised(model, lambda y, b: y[:, 0], lambda y, b: {"top": y.max()})
    with pytest.raises(TypeError, match="the metric top is no dl.metrics.Mean"):
        loss_fn(params, {}, batch, None)


def test_a_model_without_dropout_needs_no_train_argument():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    batch = batch_of(8)
    params = Plain().init(jax.random.key(0), batch["image"])["params"]
    for key in (None, jax.random.key(0)):
        assert losses.classification(Plain())(params, {}, batch, key)[0] > 0


def test_soft_labels_are_measured_by_the_mixture_of_the_hard_ones():
    model = MLP(hidden=(), num_classes=3)
    batch = {**batch_of(4), "label": jnp.array([0, 1, 2, 0])}
    other = jnp.array([1, 2, 0, 2])
    params = model.init(jax.random.key(0), batch["image"])["params"]

    def measure(smoothing, **labels):
        loss_fn = losses.classification(model, label_smoothing=smoothing)
        loss, aux = loss_fn(params, {}, {**batch, **labels}, None)
        return loss, aux.metrics["loss"].compute(), aux.metrics["accuracy"].compute()

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


def measured(loss_fn, **batch):
    """The loss and the metrics of a batch whose input are the outputs; the last example is padding."""
    size = len(next(iter(batch.values())))
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    mask = jnp.arange(size) < size - 1
    params = {"bias": jnp.zeros(())}
    batch["mask"] = mask
    (loss, aux), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, None)
    assert np.isfinite(gradient["bias"])
    return float(loss), {name: float(metric.compute()) for name, metric in aux.metrics.items()}, aux.metrics


def test_multi_label_is_the_mean_over_the_labels_of_valid_examples():
    random = np.random.default_rng(0)
    logits, label = random.normal(size=(9, 3)).astype(np.float32), random.integers(0, 2, (9, 3))
    logits[-1] = 1e6  # on padding
    loss, metrics, means = measured(losses.multi_label(Given()), image=logits, label=label)
    log_odds, label = logits[:-1].astype(float), label[:-1]
    expected = np.logaddexp(0, np.where(label, -log_odds, log_odds)).mean()
    is_right = (log_odds > 0) == label
    assert loss == pytest.approx(expected, rel=1e-5)
    figures = {"loss": expected, "label_accuracy": is_right.mean(), "exact_match": is_right.all(1).mean()}
    assert metrics == pytest.approx(figures, rel=1e-5)
    assert [means[name].better for name in figures] == ["min", "max", "max"]
    with pytest.raises(ValueError, match="differ; both must be"):
        measured(losses.multi_label(Given()), image=logits, label=label[:, 0])


@pytest.mark.parametrize("is_binary", [False, True])
def test_an_autoencoder_is_compared_with_its_input(is_binary):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            return 0.5 * x + self.param("bias", nn.initializers.zeros, ())

    image = np.random.default_rng(0).random((5, 2, 3, 1)).astype(np.float32)
    loss, metrics, _ = measured(losses.autoencoder(Half(), is_binary=is_binary), image=image)
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
        with pytest.raises(ValueError, match="differ"):
            measured(losses.autoencoder(Flat(), is_binary=is_binary), image=np.zeros((3, 2, 2, 1)))


class Uniform(nn.Module):
    """Logits of a vocabulary of four, from which each token predicts the next number with logit 2."""

    @nn.compact
    def __call__(self, tokens):
        scale = 2 + self.param("bias", nn.initializers.zeros, ())
        return jax.nn.one_hot((tokens + 1) % 4, 4) * scale


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_a_language_model_predicts_the_next_token_and_weighs_by_tokens(dtype):
    tokens = np.array([[1, 2, 3, 0], [3, 1, 0, 0], [2, 2, 2, 2]], dtype)  # 0 is padding, the last row too
    loss, metrics, means = measured(losses.language_model(Uniform(), padding_id=0), tokens=tokens)
    normaliser = np.log(np.exp(2) + 3)
    # Of the tokens 2 and 3, and 1, the first two are as expected.
    expected = (2 * (normaliser - 2) + normaliser) / 3
    assert loss == metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    total, count = means["loss"].each
    np.testing.assert_allclose(count, [2, 1, 0])
    np.testing.assert_allclose(total, [2 * (normaliser - 2), normaliser, 0], rtol=1e-5)
    assert measured(losses.language_model(Uniform()), tokens=tokens)[2]["loss"].count == 6


def test_outputs_that_are_no_logits_of_tokens_are_refused():
    for tokens in (np.zeros((3, 1), np.int32), np.zeros(3, np.int32)):
        with pytest.raises(ValueError, match="a language model's logits have shape"):
            measured(losses.language_model(Uniform()), tokens=tokens)
    with pytest.raises(ValueError, match="a language model's logits have shape"):
        measured(losses.language_model(Given()), tokens=np.zeros((3, 4), np.float32))


def test_a_regression_names_its_target_and_measures_the_absolute_error_too():
    output, target = np.array([1.0, 2.0, 9.0], np.float32), np.array([3.0, 2.5, 0.0], np.float32)
    loss_fn = losses.regression(Given(), input_name="x", target_name="angle")
    loss, metrics, means = measured(loss_fn, x=output, angle=target)
    assert loss == pytest.approx((4 + 0.25) / 2)
    assert metrics == pytest.approx({"loss": loss, "mean_absolute_error": 1.25})
    assert {metric.better for metric in means.values()} == {"min"}
    assert (loss_fn.kind.target, loss_fn.kind.units["loss"]) == ("angle", "squared error")
    own = losses.regression(Given(), lambda output, target: jnp.abs(output - target)[:, 0])
    half = losses.regression(Given(), losses.half_squared_error)
    assert [one.kind.units["loss"] for one in (own, half)] == ["value", "half the squared error"]
