import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dl.flops import count_flops
from dl.models.cnn import CNN


def test_a_matrix_product():
    assert count_flops(jnp.dot, jnp.zeros((3, 5)), jnp.zeros((5, 7))) == 2 * 3 * 5 * 7


def test_a_batched_product_and_a_scan_body_count_as_often_as_they_run():
    def repeated(x):
        return jax.lax.scan(lambda c, _: (jnp.einsum("bij,bjk->bik", c, c), None), x, length=6)[0]

    assert count_flops(repeated, jnp.zeros((2, 4, 4))) == 6 * 2 * 2 * 4**3


@pytest.mark.parametrize("strides", [1, 2])
def test_a_valid_convolution(strides):
    conv = nn.Conv(8, (3, 3), strides, padding="VALID")
    x = jnp.zeros((2, 9, 9, 5))
    side = (9 - 3) // strides + 1
    params = jax.eval_shape(conv.init, jax.random.key(0), x)
    assert count_flops(conv.apply, params, x) == 2 * 2 * side**2 * 8 * 9 * 5


def test_padding_does_no_work():
    conv = nn.Conv(1, (3, 3), padding="SAME")
    x = jnp.zeros((1, 4, 4, 1))
    params = jax.eval_shape(conv.init, jax.random.key(0), x)
    assert count_flops(conv.apply, params, x) == 2 * (3 * 4 - 2) ** 2  # 10 taps on each axis


def test_a_grouped_convolution():
    conv = nn.Conv(6, (1, 1), feature_group_count=3)
    x = jnp.zeros((1, 5, 5, 6))
    params = jax.eval_shape(conv.init, jax.random.key(0), x)
    assert count_flops(conv.apply, params, x) == 2 * 25 * 6 * 2


def test_the_count_is_within_five_percent_of_the_compilers():
    model = CNN(channels=(32,), hidden=(128,), num_classes=10)
    x = jnp.zeros((8, 28, 28, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    ours = count_flops(model.apply, params, x)
    theirs = jax.jit(model.apply).lower(params, x).cost_analysis()["flops"]
    assert ours == pytest.approx(theirs, rel=0.05)
