import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.models.cnn import CNN, ConvNet, max_pool
from dl.models.mlp import MLP
from dl.state import num_params


def params_of(model, *shape):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape))))["params"]


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (MLP(hidden=(4,), num_classes=2), (3,), 26),
        # 320 + 2,769,024 + 1,290: one convolution, 26·26·32 values flattened, 128, 10
        (CNN(channels=(32,), hidden=(128,), num_classes=10), (28, 28, 1), 2_770_634),
        # 320 + 18,496 + 819,712 + 5,130: flattened is 64·5·5 = 1,600
        (CNN(channels=(32, 64), hidden=(512,), num_classes=10, pool=True), (28, 28, 1), 843_658),
        (ConvNet(num_classes=10), (28, 28, 1), 298_186),
    ],
)
def test_parameter_counts(model, shape, count):
    assert num_params(params_of(model, *shape)) == count


def test_the_mlp_equals_numpy():
    model = MLP(hidden=(4,), num_classes=2)
    x_BD = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), x_BD)["params"]
    first, second = (jax.tree.map(np.asarray, params[f"Dense_{i}"]) for i in range(2))
    hidden = np.maximum(x_BD @ first["kernel"] + first["bias"], 0)
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, x_BD), expected, atol=1e-6)


@pytest.mark.parametrize("model", [CNN((4,), (8,), 3), CNN((4, 4), (8,), 3, pool=True), ConvNet(3)])
@pytest.mark.parametrize("shape", [(28, 28, 1), (17, 23, 3)])
def test_any_image_size_and_any_batch(model, shape):
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    for batch in (1, 7):
        assert model.apply(variables, jnp.zeros((batch, *shape))).shape == (batch, 3)


@pytest.mark.parametrize("side", [6, 7])
def test_max_pool_takes_the_maximum_of_each_window(side):
    x_BHWC = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    pooled = max_pool(jnp.asarray(x_BHWC))
    expected = np.stack(
        [
            np.stack([x_BHWC[:, r : r + 2, c : c + 2].max((1, 2)) for c in range(0, 6, 2)], 1)
            for r in range(0, 6, 2)
        ],
        1,
    )
    np.testing.assert_array_equal(pooled, expected)


def test_no_example_sees_another():
    """The property that makes the network the same on any number of devices."""
    model = ConvNet(num_classes=3)
    images = jax.random.normal(jax.random.key(0), (4, 14, 14, 1))
    variables = model.init(jax.random.key(1), images)
    alone = model.apply(variables, images[2:3])
    together = model.apply(variables, images)[2:3]
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_he_initialisation_has_its_standard_deviation():
    model = MLP(hidden=(1000,), num_classes=2)
    kernel = model.init(jax.random.key(0), jnp.zeros((1, 1000)))["params"]["Dense_0"]["kernel"]
    assert kernel.size == 10**6
    assert float(kernel.std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.02)
