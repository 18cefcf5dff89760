import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import optimizers, task
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.gradients import accumulated_gradient, mean_gradient, sharpness_aware_gradient
from dl.methods.mixing import cutmix, mixup, with_mixing
from dl.metrics import Mean
from dl.models.dropout import DropConnectDense, SpatialDropout, StochasticDepth
from dl.models.mlp import MLP
from dl.models.transfer import WithHead
from dl.models.vit import ViT
from dl.penalties import l1, l2, with_penalty
from dl.precision import LossScale
from dl.sharding import batch_sharding
from dl.task import Task
from dl.types import Aux

PARAMS = {
    "Dense_0": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([4.0, -5.0])},
    "Norm_0": {"scale": jnp.array([6.0, 7.0])},
}


def test_l1_and_l2_are_the_sums_over_kernels():
    np.testing.assert_allclose(l1(0.1)(PARAMS), 0.1 * 6.5, rtol=1e-6)
    np.testing.assert_allclose(l2(0.1)(PARAMS), 0.1 * 14.25, rtol=1e-6)


def test_a_mask_chooses_the_parameters():
    def everything(params):
        return jax.tree.map(lambda leaf: True, params)

    np.testing.assert_allclose(l1(1.0, everything)(PARAMS), 6.5 + 9 + 13)


def test_the_gradients_are_lambda_sign_and_two_lambda_theta():
    kernel = PARAMS["Dense_0"]["kernel"]
    for penalty, expected in [(l1(0.1), 0.1 * jnp.sign(kernel)), (l2(0.1), 0.2 * kernel)]:
        gradient = jax.jit(jax.grad(penalty))(PARAMS)
        chex.assert_trees_all_close(gradient["Dense_0"]["kernel"], expected, rtol=1e-6)
        assert not any(leaf.any() for leaf in (gradient["Dense_0"]["bias"], gradient["Norm_0"]["scale"]))


@pytest.fixture(scope="module")
def problem():
    model = MLP(hidden=(), num_classes=3)
    batch = {
        "image": jax.random.normal(jax.random.key(0), (6, 4)),
        "label": jnp.arange(6) % 3,
        "mask": jnp.arange(6) < 5,
        "index": jnp.arange(6),
    }
    params = jax.jit(model.init)(jax.random.key(1), batch["image"])["params"]
    return task.classification(model), params, batch


@pytest.mark.slow
def test_a_penalty_is_added_to_the_loss_and_not_to_its_metric(problem):
    learned, params, batch = problem
    plain, _ = learned.loss(params, {}, batch, None)
    penalized, aux = with_penalty(learned, l1(0.1), l2(0.2)).loss(params, {}, batch, None)
    penalty = l1(0.1)(params) + l2(0.2)(params)
    np.testing.assert_allclose(penalized.compute(), plain.compute() + penalty, rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["loss"].compute(), plain.compute(), rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["penalty"].compute(), penalty, rtol=1e-6)


@pytest.mark.slow
def test_l2_under_sgd_is_a_weight_decay_of_twice_lambda(problem):
    learned, params, batch = problem
    ends = []
    for one, tx in [
        (with_penalty(learned, l2(0.1)), optimizers.sgd(0.5)),
        (learned, optimizers.sgd(0.5, weight_decay=0.2)),
    ]:
        _, gradient = jax.jit(mean_gradient(one.loss), static_argnums=3)(params, {}, batch, None)
        ends.append(tx.update(gradient, tx.init(params), params)[0])
    chex.assert_trees_all_close(*ends, atol=1e-6)


@pytest.mark.slow
def test_a_penalty_counts_once_under_accumulation(problem):
    learned, params, batch = problem
    penalized = with_penalty(learned, l2(0.1)).loss
    (loss, aux), gradient = jax.jit(mean_gradient(penalized), static_argnums=3)(params, {}, batch, None)
    in_parts = jax.jit(accumulated_gradient(3)(penalized), static_argnums=3)
    (loss_3, aux_3), gradient_3 = in_parts(params, {}, batch, None)
    chex.assert_trees_all_close((loss, gradient), (loss_3, gradient_3), atol=1e-6)
    np.testing.assert_allclose(
        aux.metrics["penalty"].compute(), aux_3.metrics["penalty"].compute(), rtol=1e-6
    )


def test_a_large_l1_penalty_makes_most_weights_vanish():
    """Lasso with 3 of 20 relevant inputs; without the penalty no weight is that small."""
    random = np.random.default_rng(0)
    x_BD = random.normal(size=(100, 20)).astype(np.float32)
    y_B = x_BD[:, :3] @ np.float32([2, -3, 4])

    def loss_fn(params, model_state, batch, key):
        errors_B = (batch["x"] @ params)[:, 0] - batch["y"]
        return Mean.of(errors_B**2), Aux({}, {})

    def small_weights(weight):
        loss = with_penalty(Task(None, loss_fn), l1(weight)).loss
        tx = optimizers.sgd(optimizers.linear(0.02, 400))

        def body(carry, _):
            params, state = carry
            gradient = jax.grad(lambda p: loss(p, {}, {"x": x_BD, "y": y_B}, None)[0].compute())(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.float32(random.normal(size=(20, 1)))
        (params, _), _ = jax.lax.scan(body, (start, tx.init(start)), length=400)
        return (abs(params) < 1e-3).mean()

    assert small_weights(1.0) > 0.5
    assert small_weights(0.0) < 0.5


def test_dropout_keeps_the_mean_and_is_the_identity_in_evaluation():
    """A unit of value 1 read alone: 2 · 10⁵ draws of 0 or 10/7, whose mean has a deviation of 0.0015."""
    model = MLP((1,), 1, dropout=0.3, kernel_init=nn.initializers.ones)
    x_BD = jnp.ones((200_000, 1))
    variables = model.init(jax.random.key(0), x_BD[:1])
    y_BC = model.apply(variables, x_BD, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(np.unique(y_BC), [0, 1 / 0.7], rtol=1e-6)
    assert float(y_BC.mean()) == pytest.approx(1.0, rel=0.01)
    np.testing.assert_array_equal(model.apply(variables, x_BD[:5]), x_BD[:5])


# A module, and the axes over which one draw holds.
DROPOUTS = [(SpatialDropout(0.25), (1, 2)), (StochasticDepth(0.25), (1, 2, 3))]


@pytest.mark.parametrize(("module", "axes"), DROPOUTS, ids=["spatial", "depth"])
def test_a_draw_holds_for_whole_channels_or_whole_examples(module, axes):
    x = np.random.default_rng(0).uniform(1, 2, (2000, 2, 2, 3)).astype(np.float32)
    kept = np.asarray(module.apply({}, x, train=True, rngs={"dropout": jax.random.key(1)})) / x
    assert np.ptp(kept, axis=axes).max() < 1e-5
    np.testing.assert_allclose(np.unique(np.round(kept, 4)), [0, 1.3333])
    # 2,000 draws of 0 or 4/3 at least: 3 sigma of the mean are 0.039
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.039)
    np.testing.assert_array_equal(module.apply({}, x, train=False), x)


def test_drop_connect_drops_single_weights_in_training_and_none_in_evaluation():
    module = DropConnectDense(50, 0.25)
    kernel = np.random.default_rng(0).uniform(1, 2, (40, 50)).astype(np.float32)
    bias = np.arange(50, dtype=np.float32)
    variables = {"params": {"kernel": kernel, "bias": bias}}
    # A one-hot input reads one row of the kernel: the output shows which of its weights are there.
    rows = np.concatenate([np.eye(40, dtype=np.float32)] * 2)
    y = np.asarray(module.apply(variables, rows, train=True, rngs={"dropout": jax.random.key(1)}))
    kept = (y - bias) / np.concatenate([kernel, kernel])
    assert sorted(np.unique(np.round(kept, 2))) == pytest.approx([0, 1.33])
    assert (kept[:40] != kept[40:]).any()  # every example draws its own weights
    assert float((kept > 0.5).mean()) == pytest.approx(0.75, abs=3 * np.sqrt(0.75 * 0.25 / 4000))
    np.testing.assert_allclose(module.apply(variables, rows[:40], train=False), kernel + bias, rtol=1e-6)


def test_the_mean_over_masks_of_drop_connect_is_its_evaluation():
    module, x_BD = DropConnectDense(2, 0.5), jnp.broadcast_to(jnp.array([[1.0, -2.0, 0.5]]), (20_000, 3))
    variables = module.init(jax.random.key(0), x_BD[:1], train=False)
    y_BF = np.asarray(module.apply(variables, x_BD, train=True, rngs={"dropout": jax.random.key(1)}))
    expected_F = module.apply(variables, x_BD[:1], train=False)[0]
    error_F = y_BF.std(0) / np.sqrt(20_000)
    assert (abs(y_BF.mean(0) - expected_F) < 4 * error_F).all()


def image_batch(size=16, num_valid=16):
    """Example i is an image whose every pixel is i, of class i."""
    return {
        "image": np.tile(np.arange(size, dtype=np.float32)[:, None, None, None], (1, 8, 6, 1)),
        "label": np.arange(size),
        "mask": np.arange(size) < num_valid,
    }


MIXES = [jax.jit(mixup(0.4, 16)), jax.jit(cutmix(1.0, 16))]


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES, ids=["mixup", "cutmix"])
def test_targets_are_the_shares_that_are_seen(mix):
    counts = []
    for seed in range(5):
        batch = jax.device_get(mix(jax.random.key(seed), image_batch()))
        # the mean of an image made of i and j in the shares s and 1 - s is s i + (1 - s) j
        mean_label = batch["target"] @ np.arange(16.0)
        np.testing.assert_allclose(batch["image"].mean((1, 2, 3)), mean_label, atol=1e-4)
        np.testing.assert_allclose(batch["target"].sum(1), 1.0, rtol=1e-6)
        # every example appears once as itself and once as a partner
        np.testing.assert_allclose(batch["target"].sum(0), 1.0, rtol=1e-5)
        counts.append(np.count_nonzero(batch["target"], axis=1))
    assert {*np.ravel(counts)} <= {1, 2}
    assert np.max(counts) == 2


@pytest.mark.slow
def test_the_ratio_is_drawn_from_a_symmetric_beta_distribution():
    """Mean ½, variance 1 / (4 (2 α + 1)); α = 1 takes a shortcut."""
    image = {"image": jnp.array([[0.0], [1.0]]), "label": jnp.arange(2), "mask": jnp.ones(2, bool)}
    keys = jax.random.split(jax.random.key(0), 2000)
    for alpha in (0.4, 1.0):
        mix = mixup(alpha, 2)
        ratios = np.asarray(jax.jit(jax.vmap(lambda key: mix(key, image)["target"][0, 0]))(keys))  # noqa: B023
        assert ratios.mean() == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(2000))
        assert ratios.var() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)


@pytest.mark.slow
def test_mixup_is_the_stated_mixture_and_cutmix_pastes_one_box():
    key = jax.random.key(3)
    mixed, pasted = (np.asarray(mix(key, image_batch())["image"])[..., 0] for mix in MIXES)
    assert np.ptp(mixed, axis=(1, 2)).max() == 0
    is_pasted = pasted != np.arange(16.0)[:, None, None]
    assert (is_pasted == is_pasted[0]).all()
    rows, columns = is_pasted[0].any(1), is_pasted[0].any(0)
    np.testing.assert_array_equal(is_pasted[0], np.outer(rows, columns))


@pytest.mark.parametrize("mix", MIXES, ids=["mixup", "cutmix"])
def test_padding_is_never_mixed_in(mix):
    batch = jax.device_get(mix(jax.random.key(0), image_batch(num_valid=5)))
    assert batch["image"][:5].max() <= 4
    assert not batch["target"][:5, 5:].any()
    chex.assert_trees_all_equal(batch["image"][5:], image_batch()["image"][5:])


@pytest.mark.slow
def test_a_mixture_is_the_same_on_eight_devices_and_of_its_key(mesh8):
    def mix_twice(key, batch):
        return cutmix(1.0, 16)(key, mixup(1.0, 16)(key, batch))

    mix, batch = jax.jit(mix_twice), image_batch()
    spread = jax.device_put(batch, batch_sharding(mesh8))
    alone, on_eight, other = (
        jax.device_get(mix(jax.random.key(k), b)) for k, b in [(0, batch), (0, spread), (1, batch)]
    )
    chex.assert_trees_all_close(alone, on_eight, atol=1e-6)
    assert (alone["image"] != other["image"]).any()
    np.testing.assert_allclose(alone["image"].mean((1, 2, 3)), alone["target"] @ np.arange(16.0), atol=1e-4)


@pytest.mark.slow
def test_mixing_is_for_training_only(problem):
    learned, params, batch = problem
    mixed = with_mixing(learned, mixup(1.0, 3)).loss
    plain = learned.loss(params, {}, batch, None)
    chex.assert_trees_all_equal(mixed(params, {}, batch, None), plain)
    _, aux = jax.jit(mixed)(params, {}, batch, jax.random.key(0))
    assert aux.metrics["loss"].count == 5
    assert aux.metrics["loss"].compute() != plain[0].compute()


@pytest.mark.slow
@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_an_alpha_of_zero_mixes_nothing(mix, problem):
    _, _, batch = problem
    batch = {**batch, "image": batch["image"].reshape(6, 2, 2, 1)}
    mixed = mix(0, 3)(jax.random.key(0), batch)
    np.testing.assert_array_equal(mixed["image"], batch["image"])
    np.testing.assert_array_equal(mixed["target"], jax.nn.one_hot(batch["label"], 3))


def classifier(**options):
    return task.classification(MLP((2,), 3), **options)


def with_ema(decay):
    points = ArraySource({"image": np.zeros((4, 2), np.float32), "label": np.zeros(4, np.int32)})
    model = MLP((), 3)
    return Experiment(
        data=ArraySplits("points", train=points),
        task=task.classification(model),
        tx=optimizers.sgd(0.1),
        num_steps=1,
        batch_size=2,
        ema_decay=decay,
    )


def applied(module):
    return lambda rate: module(rate).apply(
        {}, jnp.ones((2, 2)), train=True, rngs={"dropout": jax.random.key(0)}
    )


def initialised(make):
    return lambda rate: jax.eval_shape(make(rate).init, jax.random.key(0), jnp.ones((2, 16, 16, 3)))


@pytest.mark.parametrize(
    ("make", "value"),
    [
        *((lambda a: mixup(a, 3), value) for value in (-1.0, np.nan, np.inf, "0.2", None, [0.1])),
        *((lambda a: cutmix(a, 3), value) for value in (-1.0, np.nan, np.inf)),
        *((lambda n: mixup(0.2, n), value) for value in (0, -1, 2.5, True)),
        *((l1, value) for value in (-1.0, np.nan)),
        *((l2, value) for value in (-1.0, np.nan)),
        *((lambda e: classifier(label_smoothing=e), value) for value in (-0.1, 1.1, np.nan)),
        *((with_ema, value) for value in (-0.1, 1.0, np.nan, "0.9")),
        *((accumulated_gradient, value) for value in (0, -2, 1.5)),
        *((sharpness_aware_gradient, value) for value in (-0.1, np.nan)),
        *((LossScale.create, value) for value in (0.0, -1.0, np.inf)),
        *((applied(module), value) for module in (SpatialDropout, StochasticDepth) for value in (-0.1, 1.5)),
        *(
            (lambda rate: MLP((2,), 3, dropout=rate).init(jax.random.key(0), jnp.ones((2, 2))), v)
            for v in (-1, 2)
        ),
        (initialised(lambda rate: ViT(3, 8, 1, 2, 8, dropout=rate)), 1.5),
        (initialised(lambda rate: WithHead(MLP((), 4), 3, dropout=rate)), -0.5),
        (lambda rate: DropConnectDense(2, rate).init(jax.random.key(0), jnp.ones((2, 2)), train=False), 1.0),
    ],
)
def test_a_strength_out_of_range_is_refused_in_one_line(make, value):
    with pytest.raises(UserError, match="=.*must be a (whole )?number|is not a number") as caught:
        make(value)
    assert "\n" not in str(caught.value)
    assert repr(value).strip("'") in str(caught.value)
