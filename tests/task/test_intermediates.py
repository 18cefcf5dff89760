"""What the modules of a model sow: attention weights, also through wrappers of a task."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import task
from dl.methods.lora import LoRA, merge, with_lora
from dl.models.blocks.attention import Attention
from dl.precision import BFLOAT16, computing_in

V, T = 5, 4


class Reader(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT, segment_ids_BT=None, train=False):
        x_BTD = nn.Embed(V, 8)(tokens_BT)
        attended, _ = Attention(2, is_causal=True, dropout=0.5, name="attention")(x_BTD, train=train)
        return nn.Dense(V)(attended)


BATCH = {
    "tokens": jnp.arange(2 * T, dtype=jnp.int32).reshape(2, T) % V,
    "label": jnp.zeros((2, T), jnp.int32),
    "index": jnp.arange(2),
    "mask": jnp.ones(2, bool),
}


def variables_of(learned):
    return jax.jit(learned.init)(jax.random.key(0), BATCH)


def weights_of(learned, variables):
    return np.asarray(jax.jit(learned.intermediates)(variables, BATCH)["attention"]["weights"][0])


def test_weights_are_those_of_an_evaluation():
    learned = task.tagging(Reader())
    variables = variables_of(learned)
    weights_BNTS = weights_of(learned, variables)
    assert weights_BNTS.shape == (2, 2, T, T)
    params = jax.tree.map(np.asarray, variables["params"])
    x_BTD = params["Embed_0"]["embedding"][np.asarray(BATCH["tokens"])]
    query, key = (
        (x_BTD @ params["attention"][name]["kernel"] + params["attention"][name]["bias"]).reshape(2, T, 2, 4)
        for name in ("query", "key")
    )
    logits = np.einsum("btnh,bsnh->bnts", query, key) / 2
    logits[..., np.triu(np.ones((T, T), bool), 1)] = -np.inf
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(weights_BNTS, expected, atol=1e-5)
    assert task.as_model(task.Model(lambda key, x: {"params": {}}, None)).intermediates is None


@pytest.mark.slow
def test_wrappers_of_a_task_sow_what_their_own_model_computes():
    plain, adapters = task.tagging(Reader()), LoRA(rank=2)
    learned = with_lora(plain, adapters)
    variables = variables_of(learned)
    moved = jax.tree.map(lambda x: x + 0.3, variables)  # new adapters change nothing
    merged = {"params": merge(moved["params"], adapters)}
    found = weights_of(learned, moved)
    np.testing.assert_allclose(found, weights_of(plain, merged), atol=1e-5)
    unadapted = jax.tree.map(lambda x: x + 0.3, variables_of(plain))
    assert np.abs(found - weights_of(plain, unadapted)).max() > 1e-3
    rounded = weights_of(computing_in(BFLOAT16, plain), variables_of(plain))
    exact = weights_of(plain, variables_of(plain))
    assert 0 < np.abs(rounded - exact).max() < 0.05
