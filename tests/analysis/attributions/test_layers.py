"""Explanations that look into layers: Grad-CAM, layer-wise relevance propagation, attention rollout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dl.analysis import attributions
from dl.errors import UserError
from dl.models.blocks.attention import Attention
from dl.models.cnn_attention import PooledCNN
from dl.models.mlp import MLP
from dl.models.mobilenet import MobileNetV2
from dl.models.resnet import ResidualBlock, ResNet
from dl.models.vgg import VGG

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)


class PooledLinear(nn.Module):
    """A convolution, a ReLU, the mean of all positions, a linear layer: what CAM is defined for."""

    @nn.compact
    def __call__(self, x_BHWC):
        x_BHWC = nn.relu(nn.Conv(5, (3, 3), name="features")(x_BHWC))
        return nn.Dense(4, name="head")(Pool(name="pool")(x_BHWC))


class Pool(nn.Module):
    @nn.compact
    def __call__(self, x_BHWC):
        return x_BHWC.mean((1, 2))


class Unbiased(nn.Module):
    """Convolution, maximum and mean pooling, a residual sum, dense layers; no bias anywhere."""

    @nn.compact
    def __call__(self, x_BHWC):
        x_BHWC = nn.relu(nn.Conv(4, (3, 3), use_bias=False)(x_BHWC))
        x_BHWC = nn.max_pool(x_BHWC, (2, 2), (2, 2))
        branch_BHWC = nn.Conv(4, (3, 3), use_bias=False, feature_group_count=2)(x_BHWC)
        x_BHWC = nn.avg_pool(nn.relu(x_BHWC + branch_BHWC), (2, 2), (2, 2))
        return nn.Dense(3, use_bias=False)(x_BHWC.reshape(x_BHWC.shape[0], -1))


def initialised(model, inputs=IMAGES, bias=0.0):
    return jax.tree.map(lambda leaf: leaf + bias, jax.jit(model.init)(jax.random.key(0), inputs))


def test_grad_cam_equals_cam():
    """After a global mean and a linear layer it is Σ wₖ Aₖ over the number of positions (eq. 3 to 8)."""
    model = PooledLinear()
    variables = initialised(model)
    targets = np.array([0, 3, 1])
    found = attributions.grad_cam(
        model, variables, IMAGES, "pool", targets, reads_input=True, rectified=False, resized=False
    )
    params = variables["params"]
    features = nn.relu(nn.Conv(5, (3, 3)).apply({"params": params["features"]}, IMAGES))
    expected = np.einsum("bhwd,db->bhw", features, params["head"]["kernel"][:, targets]) / 64
    np.testing.assert_allclose(found, expected, atol=1e-6)
    maps = attributions.grad_cam(model, variables, IMAGES, "pool", targets, reads_input=True)
    np.testing.assert_allclose(maps, np.maximum(expected, 0), atol=1e-6)


def test_grad_cam_of_a_smaller_map_has_the_size_of_the_image():
    model = Unbiased()
    variables = initialised(model)
    maps = attributions.grad_cam(model, variables, IMAGES, "Conv_1")
    assert maps.shape == (3, 8, 8)
    assert (maps >= 0).all()
    alone = attributions.grad_cam(model, variables, IMAGES[1:2], "Conv_1", resized=False)
    together = attributions.grad_cam(model, variables, IMAGES, "Conv_1", resized=False)
    np.testing.assert_array_equal(alone[0], together[1])


def test_grad_cam_names_the_layers_that_it_can_read():
    model = PooledLinear()
    with pytest.raises(UserError, match="layer='head' has no feature map; choose one of features$"):
        attributions.grad_cam(model, initialised(model), IMAGES, "head")


def test_relevance_equals_gradient_times_input_without_biases():
    """Ancona et al. 2018, proposition 1. The second convolution has two groups."""
    model = Unbiased()
    score = Partial(model.apply, initialised(model))
    found, expected = (
        explain(score, IMAGES, 1) for explain in (attributions.relevance, attributions.gradient_times_input)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3 * abs(expected).max())
    sums = attributions.relevance(score, IMAGES, 1).sum((1, 2, 3))
    np.testing.assert_allclose(sums, np.asarray(score(IMAGES))[:, 1], rtol=1e-3)


def hand_rule(inputs, weights, bias, relevance, epsilon, gamma):
    """The equation at the top of relevance.py, with loops."""
    found = np.zeros_like(inputs)
    for k in range(weights.shape[1]):
        favoured = weights[:, k] + gamma * np.maximum(weights[:, k], 0)
        total = inputs @ favoured + bias[k] + gamma * max(bias[k], 0)
        found += inputs * favoured / (total + epsilon * (1 if total >= 0 else -1)) * relevance[k]
    return found


@pytest.mark.parametrize(("epsilon", "gamma"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.1, 0.25)])
def test_relevance_of_dense_layers_by_hand(epsilon, gamma):
    model = MLP(hidden=(5, 4), num_classes=3)
    inputs = np.abs(IMAGES[:, 0, :3, 0])
    variables = initialised(model, inputs, bias=0.05)
    layers = [
        (np.asarray(one["kernel"], np.float64), np.asarray(one["bias"], np.float64))
        for one in variables["params"].values()
    ]
    found = attributions.relevance(Partial(model.apply, variables), inputs, 2, epsilon=epsilon, gamma=gamma)
    for row, got in zip(inputs.astype(np.float64), found, strict=True):
        values = [row]
        for weights, bias in layers:
            values.append(np.maximum(values[-1] @ weights + bias, 0))
        last = values[-2] @ layers[-1][0] + layers[-1][1]
        relevance = np.where(np.arange(3) == 2, last, 0)
        for (weights, bias), before in zip(layers[::-1], values[-2::-1], strict=True):
            relevance = hand_rule(before, weights, bias, relevance, epsilon, gamma)
        np.testing.assert_allclose(got, relevance, rtol=1e-3, atol=1e-5)


def test_a_batch_norm_is_folded_into_the_layer_before_it():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x_BD):
            x_BD = nn.BatchNorm(use_running_average=True, name="norm")(nn.Dense(6, name="first")(x_BD))
            return nn.Dense(3, name="last")(nn.relu(x_BD))

    class Folded(nn.Module):
        @nn.compact
        def __call__(self, x_BD):
            return nn.Dense(3, name="last")(nn.relu(nn.Dense(6, name="first")(x_BD)))

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4, 5)).astype(np.float32)
    # Scales of both signs, because folding them changes which weights are positive.
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        jax.jit(Normed().init)(jax.random.key(0), inputs),
    )
    stats = jax.tree.map(jnp.abs, variables["batch_stats"]["norm"])
    variables = {"params": variables["params"], "batch_stats": {"norm": stats}}
    params = variables["params"]
    scale = params["norm"]["scale"] / jnp.sqrt(stats["var"] + 1e-5)
    first = {
        "kernel": params["first"]["kernel"] * scale[None],
        "bias": (params["first"]["bias"] - stats["mean"]) * scale + params["norm"]["bias"],
    }
    folded = {"params": {"first": first, "last": params["last"]}}
    for options in ({"epsilon": 0.2}, {"epsilon": 0.1, "gamma": 0.5}):
        found = attributions.relevance(Partial(Normed().apply, variables), inputs, 0, **options)
        expected = attributions.relevance(Partial(Folded().apply, folded), inputs, 0, **options)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ResNet(3, (1, 1), width=4),
        ResNet(3, (1, 1), width=4, bottleneck=True, small_images=True),
        VGG(3, (1, 2), (4, 4), (5,)),
        MobileNetV2(3, stages=((1, 8, 1, 1), (2, 8, 2, 1)), features=16, stem_strides=1),
        PooledCNN(3),
    ],
    ids=["resnet", "bottleneck", "vgg", "mobilenet", "pooled"],
)
def test_lrp_0_of_published_networks_is_gradient_times_input(model):
    """It is so with biases, batch norms and residual sums too, where no ReLU6 is saturated."""
    images = IMAGES[..., [0, 1, 1]]
    variables = initialised(model, images, bias=0.01)
    variables = jax.tree.map(lambda leaf: 0.3 * leaf if leaf.ndim == 4 else leaf, variables)
    score = Partial(model.apply, variables)
    found = attributions.relevance(score, images, 0, epsilon=0.0)
    expected = attributions.gradient_times_input(score, images, 0)
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())
    assert abs(expected).max() > 0
    changed = attributions.relevance(score, images, 0, epsilon=0.1, gamma=0.25)
    assert np.isfinite(changed).all()
    assert abs(changed - expected).max() > 1e-3 * abs(expected).max()


def test_the_relevance_of_a_residual_block_sums_to_the_score():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x_BHWC):
            return nn.Dense(3, use_bias=False)(ResidualBlock(4, 2)(x_BHWC).mean((1, 2)))

    variables = initialised(Net())
    found = attributions.relevance(Partial(Net().apply, variables), IMAGES, 0, epsilon=1e-7)
    np.testing.assert_allclose(
        found.sum((1, 2, 3)), Net().apply(variables, IMAGES)[:, 0], rtol=1e-2, atol=1e-4
    )


def test_relevance_refuses_what_it_has_no_rule_for():
    norm = Partial(nn.LayerNorm(use_bias=False, use_scale=False).apply, {})
    for one, name in ((lambda x: norm(x.mean((1, 2))), "square"), (lambda x: jnp.exp(x.mean((1, 2))), "exp")):
        with pytest.raises(UserError, match=f"no rule for the operation {name}; it needs a network of dense"):
            attributions.relevance(one, IMAGES)


def test_rollout_of_attention_by_hand():
    """Uniform attention mixes half of a token with the mean; twice leaves a quarter of the token."""
    uniform = np.full((1, 2, 4, 4), 0.25)
    found = attributions.attention_rollout([uniform, uniform])
    np.testing.assert_allclose(found[0], 0.25 * np.eye(4) + 0.75 / 4, atol=1e-6)
    # The second layer is on the left: token 0 reads token 1, which has read token 2.
    first, second = np.eye(3)[[0, 2, 2]][None, None], np.eye(3)[[1, 1, 2]][None, None]
    np.testing.assert_allclose(
        attributions.attention_rollout([first, second])[0, 0], [0.5, 0.25, 0.25], atol=1e-6
    )


def test_weights_of_attention_come_in_the_order_of_the_layers():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x_BTD):
            for index in range(11):
                x_BTD = x_BTD + Attention(1, name=f"block{index}")(x_BTD)[0]
            return x_BTD

    model, tokens_BTD = Stack(), IMAGES[:, 0, :5]
    variables = initialised(model, tokens_BTD)
    last = variables["params"]["block10"]["query"]
    last["kernel"] = 0 * last["kernel"]  # this layer attends to all tokens alike
    weights = attributions.attention_weights(model, variables, tokens_BTD)
    assert [one.shape for one in weights] == [(3, 1, 5, 5)] * 11
    uniform = [np.allclose(one, 0.2, atol=1e-7) for one in weights]
    assert uniform == [False] * 10 + [True]
    np.testing.assert_allclose(attributions.attention_rollout(weights).sum(-1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="Unbiased has no attention weights"):
        attributions.attention_weights(Unbiased(), initialised(Unbiased()), IMAGES)
    with pytest.raises(UserError, match="every layer must have the same"):
        attributions.attention_rollout([np.zeros((1, 2, 3, 4))])
