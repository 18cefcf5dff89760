"""The blocks of Transformers against NumPy in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from dl.errors import UserError
from dl.models.blocks.attention import Attention
from dl.models.blocks.cache import Cache, last_valid
from dl.models.blocks.feed_forward import FeedForward
from dl.models.blocks.positions import RelativeBias, Rotary, positions_in_segments, sinusoidal
from tests.helpers import quick_jit

BATCH, LENGTH, NUM_KEYS, DIM, NUM_HEADS = 2, 5, 7, 12, 4


def random_of(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomized(params, seed=0, scale=0.5):
    """Returns parameters of the same shapes none of which is zero or one."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(
        structure, [scale * random_of(seed + index, *leaf.shape) for index, leaf in enumerate(leaves)]
    )


def dense(x, params):
    y = x.astype(np.float64) @ params["kernel"].astype(np.float64)
    return y + params["bias"] if "bias" in params else y


def rms_norm(x, params, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * params["scale"]


def turned(x_BTNH, base=10_000.0):
    """Rotary positions as products of complex numbers."""
    first, second = np.split(x_BTNH, 2, -1)
    num_pairs = first.shape[-1]
    angle_TP = np.arange(x_BTNH.shape[1])[:, None] * base ** (-np.arange(num_pairs) / num_pairs)
    complex_BTNP = (first + 1j * second) * np.exp(1j * angle_TP)[None, :, None]
    return np.concatenate([complex_BTNP.real, complex_BTNP.imag], -1)


def attention_of_numpy(attention, params, x_BTD, memory_BSD, mask_BTS, bias_BNTS):
    """Returns softmax(QKᵀ / √H + bias) V, head by head, and the weights."""
    num_kv_heads = attention.num_kv_heads or attention.num_heads
    head_dim = attention.head_dim or x_BTD.shape[-1] // attention.num_heads

    def heads(x, name, count):
        projected = dense(x, params[name]).reshape(*x.shape[:2], count, head_dim)
        if attention.has_qk_norm and name != "value":
            projected = rms_norm(projected, params[f"{name}_norm"])
        return turned(projected) if attention.rotary and name != "value" else projected

    query = heads(x_BTD, "query", attention.num_heads)
    key, value = heads(memory_BSD, "key", num_kv_heads), heads(memory_BSD, "value", num_kv_heads)
    scale = head_dim**-0.5 if attention.scale is None else attention.scale
    outputs, weights = [], []
    for head in range(attention.num_heads):
        shared = head // (attention.num_heads // num_kv_heads)
        logits_BTS = query[:, :, head] @ key[:, :, shared].transpose(0, 2, 1) * scale
        if bias_BNTS is not None:
            logits_BTS = logits_BTS + bias_BNTS[:, head]
        if mask_BTS is not None:
            logits_BTS = np.where(mask_BTS, logits_BTS, -np.inf)
        weights.append(softmax(logits_BTS, -1))
        outputs.append(weights[-1] @ value[:, :, shared])
    return dense(np.concatenate(outputs, -1), params["out"]), np.stack(weights, 1)


MASK = np.random.default_rng(3).random((BATCH, LENGTH, NUM_KEYS)) < 0.6
MASK[:, :, 0] = True
OWN_MASK = MASK[:, :, :LENGTH]
CAUSAL = np.tril(np.ones((1, LENGTH, LENGTH), bool))


@pytest.mark.parametrize(
    ("attention", "has_memory", "mask_BTS", "has_bias"),
    [
        (Attention(NUM_HEADS), False, None, False),
        (Attention(NUM_HEADS, use_bias=False, head_dim=5), False, OWN_MASK, False),
        (Attention(NUM_HEADS, num_kv_heads=2, use_out_bias=False), True, MASK, True),
        (Attention(NUM_HEADS, num_kv_heads=1, scale=1.0, is_causal=True), False, OWN_MASK, True),
        (Attention(NUM_HEADS, 2, 6, is_causal=True, rotary=Rotary(), has_qk_norm=True), False, None, False),
    ],
    ids=["plain", "mask", "grouped cross", "multi-query causal", "rotary and norm"],
)
def test_attention_is_softmax_of_qk_times_v(attention, has_memory, mask_BTS, has_bias):
    x_BTD, memory_BSD = random_of(0, BATCH, LENGTH, DIM), random_of(1, BATCH, NUM_KEYS, DIM)
    source = memory_BSD if has_memory else x_BTD
    bias_BNTS = random_of(2, BATCH, NUM_HEADS, LENGTH, source.shape[1]) if has_bias else None
    arguments = {"mask_BTS": mask_BTS, "bias_BNTS": bias_BNTS}
    given = (x_BTD, memory_BSD) if has_memory else (x_BTD,)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), *given)["params"]
    params = randomized(shapes)
    if attention.is_causal:
        mask_BTS = CAUSAL if mask_BTS is None else CAUSAL & mask_BTS
    expected_BTD, weights_BNTS = attention_of_numpy(attention, params, x_BTD, source, mask_BTS, bias_BNTS)

    @quick_jit
    def outputs(params):
        plain_BTD, _ = attention.apply({"params": params}, *given, **arguments)
        return plain_BTD, attention.apply({"params": params}, *given, **arguments, mutable=["intermediates"])

    plain_BTD, ((outputs_BTD, _), stored) = outputs(params)
    np.testing.assert_allclose(plain_BTD, expected_BTD, atol=1e-5)
    np.testing.assert_allclose(outputs_BTD, expected_BTD, atol=1e-5)
    (stored_BNTS,) = stored["intermediates"]["weights"]
    np.testing.assert_allclose(stored_BNTS, weights_BNTS, atol=1e-6)
    np.testing.assert_allclose(stored_BNTS.sum(-1), 1, atol=1e-6)


def test_dropped_weights_are_zero_and_the_others_are_larger():
    x_BTD = random_of(0, 1, LENGTH, DIM)
    attention = Attention(1, use_bias=False, dropout=0.5)
    identity = {"kernel": np.eye(DIM, dtype=np.float32)}
    params = dict.fromkeys(("query", "key", "value", "out"), identity)
    values = np.eye(LENGTH, DIM, dtype=np.float32)[None]
    weights_BTS = softmax(x_BTD @ values.swapaxes(1, 2) / DIM**0.5, -1)
    # The values are unit vectors, so the outputs are the weights.
    apply = quick_jit(functools.partial(attention.apply, train=True))
    outputs, _ = apply({"params": params}, x_BTD, values, rngs={"dropout": jax.random.key(0)})
    is_kept = np.asarray(outputs[..., :LENGTH]) != 0
    assert 0 < is_kept.sum() < is_kept.size
    np.testing.assert_allclose(outputs[..., :LENGTH], np.where(is_kept, 2 * weights_BTS, 0), atol=1e-6)


@pytest.mark.parametrize("is_stored", [False, True])
def test_logits_of_16_bit_queries_and_keys_are_summed_in_32(is_stored):
    """Logits of about 10 that are rounded to bfloat16 are wrong by 0.03, and the weights by 3 %."""
    attention = Attention(1, use_bias=False, dtype=jnp.bfloat16)
    params = {name: {"kernel": np.eye(16, dtype=np.float32)} for name in ("query", "key", "value", "out")}
    # Half of each key tells which one it is, so that the outputs are the weights.
    keys = np.concatenate([6 * random_of(0, 1, 8, 8), np.eye(8, dtype=np.float32)[None]], -1)
    x_BTD, keys = (
        np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (random_of(1, 1, 4, 16), keys)
    )
    logits_BTS = x_BTD @ keys.swapaxes(1, 2) / 4
    assert np.abs(logits_BTS).max() > 8
    apply = quick_jit(functools.partial(attention.apply, mutable=["intermediates"] if is_stored else False))
    returned = apply({"params": params}, x_BTD, keys)
    outputs_BTD = np.asarray((returned[0] if is_stored else returned)[0], np.float32)
    np.testing.assert_allclose(outputs_BTD[..., 8:], softmax(logits_BTS, -1), rtol=0.01, atol=1e-6)


def test_heads_must_divide_the_width_and_groups_the_heads():
    x_BTD = jnp.zeros((1, 2, DIM))
    with pytest.raises(UserError, match="num_heads=5 does not divide the model dim 12"):
        Attention(5).init(jax.random.key(0), x_BTD)
    with pytest.raises(UserError, match="num_kv_heads=3 does not divide num_heads=4"):
        Attention(4, num_kv_heads=3).init(jax.random.key(0), x_BTD)


@pytest.mark.parametrize("is_gated", [False, True])
def test_the_feed_forward_network_is_two_dense_layers_with_or_without_a_gate(is_gated):
    x_BTD = random_of(0, BATCH, LENGTH, DIM)
    network = FeedForward(20, functools.partial(nn.gelu, approximate=False), is_gated)
    params = randomized(jax.eval_shape(network.init, jax.random.key(0), x_BTD)["params"])
    hidden = dense(x_BTD, params["gate" if is_gated else "in"])
    hidden = hidden * (1 + erf(hidden / 2**0.5)) / 2
    if is_gated:
        hidden *= dense(x_BTD, params["in"])
    np.testing.assert_allclose(
        quick_jit(network.apply)({"params": params}, x_BTD), dense(hidden, params["out"]), atol=1e-5
    )


def test_sinusoidal_positions_are_those_of_the_paper():
    table = sinusoidal(50, 8)
    for t in (0, 1, 7, 49):
        for i in range(4):
            angle = t / 10_000 ** (2 * i / 8)
            np.testing.assert_allclose(table[t, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)
    with pytest.raises(UserError, match="dim=7 is odd"):
        sinusoidal(3, 7)


def test_rotary_products_depend_on_distances_alone():
    query, key = random_of(0, 1, 1, 1, 8), random_of(1, 1, 1, 1, 8)
    rotary, positions = Rotary(base=100.0), jnp.array([[1, 3, 10, 12]])
    turned_TH = [quick_jit(rotary)(jnp.repeat(x, 4, 1), positions)[0, :, 0] for x in (query, key)]
    products_TT = np.asarray(turned_TH[0] @ turned_TH[1].T)
    np.testing.assert_allclose(products_TT[3, 2], products_TT[1, 0], atol=1e-5)
    assert abs(products_TT[3, 1] - products_TT[1, 0]) > 0.01
    with pytest.raises(UserError, match="a head has 7 values"):
        rotary.frequencies(7)


def test_positions_start_anew_in_every_segment():
    segment_ids = jnp.array([[1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 4]]
    np.testing.assert_array_equal(quick_jit(positions_in_segments)(segment_ids), expected)


@pytest.mark.parametrize("is_causal", [False, True])
def test_near_distances_have_a_bias_each_and_far_ones_share_one(is_causal):
    bias = RelativeBias(1, num_buckets=16, max_distance=32, is_causal=is_causal)
    params = {"params": {"embedding": jnp.arange(16.0)[:, None]}}
    distances = np.arange(-60, 61)
    bias_BNTS = quick_jit(bias.apply)(params, np.zeros((1, 1), int), distances[None])
    bucket = dict(zip(distances.tolist(), np.asarray(bias_BNTS).ravel().tolist(), strict=True))
    num_before = 16 if is_causal else 8
    before = [bucket[-distance] for distance in range(61)]
    assert before[: num_before // 2 + 1] == list(range(num_before // 2 + 1))
    assert sorted(before) == before
    assert set(before[32:]) == {num_before - 1}
    # The keys after the query are like the query itself, or have buckets of their own.
    after = [bucket[distance] for distance in range(1, 61)]
    assert after == [0] * 60 if is_causal else after == [before[d] + 8 for d in range(1, 61)]


def test_the_cache_puts_tokens_into_the_slots_of_their_positions_and_drops_padding():
    @quick_jit
    def read(cache, tokens_BT, mask_BT):
        positions_BT, slots_BT = cache.slots(mask_BT)
        token_BTKH = tokens_BT[..., None, None]
        layers = tuple(layer.write(token_BTKH, -token_BTKH, slots_BT) for layer in cache.layers)
        last_B11 = last_valid(tokens_BT[..., None], mask_BT)
        return cache.extended(layers, mask_BT), positions_BT, last_B11[:, 0, 0]

    cache, padding = Cache.empty(1, 2, 4, 1, 1), 99.0
    mask = np.array([[True, True, False], [False, True, True]])
    cache, positions, last = read(cache, np.array([[10.0, 11.0, padding], [padding, 20.0, 21.0]]), mask)
    np.testing.assert_array_equal(np.asarray(positions)[mask], [0, 1, 0, 1])
    np.testing.assert_array_equal(last, [11, 21])
    cache, positions, _ = read(cache, np.array([[12.0], [padding]]), np.array([[True], [False]]))
    assert positions[0, 0] == 2
    (layer,) = cache.layers
    np.testing.assert_array_equal(layer.keys_BKSH[:, 0, :, 0], [[10, 11, 12, 0], [20, 21, 0, 0]])
    np.testing.assert_array_equal(layer.values_BKSH, -layer.keys_BKSH)
    np.testing.assert_array_equal(cache.lengths_B, [3, 2])
