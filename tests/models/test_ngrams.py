"""The linear model of hashed n-grams, and its sum with a deep model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.errors import UserError
from dl.models.ngrams import CharacterNGrams, NGramClassifier, WideAndDeep
from dl.models.recurrent import RecurrentClassifier
from tests.helpers import quick_jit

NAMES = ["<unknown>", "good", "film", "##ly", "no"]
TOKENS_BT = jnp.array([[1, 2, 4, 0], [2, 1, 0, 0]])
SEGMENTS_BT = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])


def test_the_characters_of_a_token_with_marks_of_its_ends():
    table_VG = CharacterNGrams(["no", "##ly"], lengths=(2, 3), num_buckets=2**30).table_VG
    assert (table_VG >= 0).sum(1).tolist() == [5, 3]  # <n no o> <no no> and ly y> ly>
    with pytest.raises(UserError, match="num_buckets"):
        CharacterNGrams(NAMES, num_buckets=0)


def features_of(model, tokens_BT, segments_BT=None):
    """Returns how often each bucket is counted, by the gradient of a linear function: B × buckets."""
    size = max(model.num_buckets, 0 if model.characters is None else model.characters.num_buckets)
    weights = jnp.zeros((size, model.num_classes))

    def logits_of(weights):
        return model.apply({"params": {"weights": weights}}, tokens_BT, segments_BT)

    rows = quick_jit(jax.jacrev(logits_of))(weights)
    return np.asarray(rows[:, 0, :, 0])


@pytest.mark.parametrize("characters", [None, CharacterNGrams(NAMES, num_buckets=2**12)])
def test_the_features_are_counts_over_the_root_of_their_number(characters):
    model = NGramClassifier(2, characters, num_buckets=2**12, scale=1.0)
    features = features_of(model, TOKENS_BT, SEGMENTS_BT)
    for tokens, row in zip(([1, 2, 4], [2, 1]), features, strict=True):
        number = len(tokens) + len(tokens) - 1
        if characters is not None:
            number += sum((characters.table_VG[token] >= 0).sum() for token in tokens)
        np.testing.assert_allclose(row.sum(), number / np.sqrt(number), rtol=1e-6)
        np.testing.assert_allclose(row[row > 0].min(), 1 / np.sqrt(number), rtol=1e-6)


def test_order_matters_for_pairs_only():
    there, back = jnp.array([[1, 2, 1]]), jnp.array([[1, 1, 2]])
    assert (
        features_of(NGramClassifier(2, orders=(1,), num_buckets=2**12), there)
        == features_of(NGramClassifier(2, orders=(1,), num_buckets=2**12), back)
    ).all()
    pairs = NGramClassifier(2, orders=(2,), num_buckets=2**12)
    assert (features_of(pairs, there) != features_of(pairs, back)).any()


def test_padding_changes_nothing():
    model = NGramClassifier(2, CharacterNGrams(NAMES, num_buckets=2**12), orders=(1, 2, 3), num_buckets=2**12)
    short = features_of(model, TOKENS_BT[:, :3], SEGMENTS_BT[:, :3])
    np.testing.assert_allclose(short, features_of(model, TOKENS_BT, SEGMENTS_BT), rtol=1e-6)


def test_buckets_are_hardly_ever_shared():
    tokens_BT = jax.random.randint(jax.random.key(1), (1, 2000), 0, 16000)
    features = features_of(NGramClassifier(1, orders=(2,), num_buckets=2**20), tokens_BT)
    assert (features > 0).sum() > 1990


@pytest.mark.parametrize(("name", "value"), [("orders", (4,)), ("orders", (0,)), ("num_buckets", 0)])
def test_a_number_out_of_range_is_one_line(name, value):
    with pytest.raises(UserError, match=f"{name}="):
        NGramClassifier(2, **{name: value}).init(jax.random.key(0), TOKENS_BT)


@pytest.mark.slow
def test_the_sum_learns_each_part_alone():
    deep = RecurrentClassifier(dim=4, num_classes=2, vocab_size=5, pooling="max")
    model = WideAndDeep(
        NGramClassifier(2, CharacterNGrams(NAMES, num_buckets=2**12), num_buckets=2**12), deep
    )
    variables = model.init(jax.random.key(0), TOKENS_BT, SEGMENTS_BT)
    params = variables["params"]
    assert params.keys() == {"wide", "deep"}
    params = {**params, "wide": {"weights": jax.random.normal(jax.random.key(2), (2**12, 2))}}

    def parts(name, module):
        return module.apply({"params": params[name]}, TOKENS_BT, SEGMENTS_BT)

    wide_BN, deep_BN = parts("wide", model.wide), parts("deep", deep)
    np.testing.assert_allclose(
        model.apply({"params": params}, TOKENS_BT, SEGMENTS_BT), wide_BN + deep_BN, rtol=1e-5, atol=1e-6
    )
    chosen = set()
    for seed in range(8):
        logits_BN = model.apply(
            {"params": params}, TOKENS_BT, SEGMENTS_BT, train=True, rngs={"dropout": jax.random.key(seed)}
        )
        for row, wide_N, deep_N in zip(logits_BN, wide_BN, deep_BN, strict=True):
            is_wide = bool(jnp.allclose(row, 2 * wide_N, rtol=1e-4))
            assert is_wide or jnp.allclose(row, 2 * deep_N, rtol=1e-4, atol=1e-6)
            chosen.add(is_wide)
    assert chosen == {True, False}
