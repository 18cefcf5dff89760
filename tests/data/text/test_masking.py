import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dl.data.text.masking import mask_tokens
from dl.data.text.tokenizer import ByteTokenizer, CharacterTokenizer
from dl.data.text.tokenizers_subword import train_wordpiece
from dl.errors import UserError

SPECIAL = ("padding", "mask", "class", "separator")
TOKENIZER = CharacterTokenizer("abcdefghijklmnop qrstuvwxyz", SPECIAL)
NUM_ORDINARY, LENGTH, ROWS = 27, 64, 512
NOT_COUNTED = -1


def keys(seed, rows=ROWS):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))


mask = jax.jit(jax.vmap(mask_tokens(TOKENIZER)))


@pytest.fixture(scope="module")
def masked():
    """Returns rows [CLS] letters [SEP] padding, and the same rows after masking."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, NUM_ORDINARY, (ROWS, LENGTH)).astype(np.int32)
    tokens[:, 0] = TOKENIZER.class_id
    size = random.integers(2, LENGTH, ROWS)
    for row, n in zip(tokens, size, strict=True):
        row[n] = TOKENIZER.separator_id
        row[n + 1 :] = 3  # padding that only the segment shows
    segment_ids = np.int32(np.arange(LENGTH) <= size[:, None])
    batch = {
        "tokens": jnp.asarray(tokens),
        "segment_ids": jnp.asarray(segment_ids),
        "label": jnp.arange(ROWS),
    }
    result = jax.jit(jax.vmap(mask_tokens(TOKENIZER)))(keys(0), batch)
    ordinary = (segment_ids > 0) & (tokens < NUM_ORDINARY)
    return batch, jax.tree.map(np.asarray, result), ordinary


def is_plausible(count, total, probability):
    return stats.binomtest(int(count), int(total), probability).pvalue > 1e-4


@pytest.mark.slow
def test_tokens_are_chosen_and_replaced_at_the_rates_of_bert(masked):
    batch, result, ordinary = masked
    before, after = np.asarray(batch["tokens"]), result["tokens"]
    chosen = result["targets"] != NOT_COUNTED
    assert is_plausible(chosen.sum(), ordinary.sum(), 0.15)
    is_mask, stays = after[chosen] == TOKENIZER.mask_id, after[chosen] == before[chosen]
    assert is_plausible(is_mask.sum(), chosen.sum(), 0.8)
    assert is_plausible(stays.sum(), chosen.sum(), 0.1 + 0.1 / NUM_ORDINARY)
    drawn = after[chosen][~is_mask & ~stays]
    assert drawn.max() < NUM_ORDINARY
    assert stats.chisquare(np.bincount(drawn, minlength=NUM_ORDINARY)).pvalue > 1e-4


def test_the_target_is_the_original_token_and_nothing_else_changes(masked):
    batch, result, ordinary = masked
    before, chosen = np.asarray(batch["tokens"]), result["targets"] != NOT_COUNTED
    np.testing.assert_array_equal(result["targets"][chosen], before[chosen])
    np.testing.assert_array_equal(result["tokens"][~chosen], before[~chosen])
    assert not (chosen & ~ordinary).any()
    for name in ("segment_ids", "label"):
        np.testing.assert_array_equal(result[name], batch[name])


def test_an_example_is_masked_alike_in_every_batch_and_differently_with_every_key(masked):
    batch, result, _ = masked
    order = np.random.default_rng(1).integers(0, ROWS, ROWS)
    mixed = mask(keys(0)[order], jax.tree.map(lambda values: values[order], batch))
    jax.tree.map(np.testing.assert_array_equal, mixed, {name: v[order] for name, v in result.items()})
    other = mask(keys(1), batch)
    assert (np.asarray(other["targets"]) != result["targets"]).any()


def masked_words(tokenizer, rate, tokens, starts):
    """Returns which words are chosen with 200 keys, when whole words are; `starts` are their first tokens."""
    mask = jax.jit(jax.vmap(mask_tokens(tokenizer, rate, whole_words=True), (0, None)))
    chosen = (
        np.asarray(mask(keys(0, 200), {"tokens": jnp.asarray(tokens, jnp.int32)})["targets"]) != NOT_COUNTED
    )
    words = [word for word in np.split(chosen, starts, axis=1) if word.size]
    assert all((word == word[:, :1]).all() for word in words)
    return np.stack([word[:, 0] for word in words], axis=1)


@pytest.mark.slow
def test_whole_words_are_chosen_together():
    text = "the cat sat on a mat and the dog sat on a log "
    is_letter = np.array([character != " " for character in text])
    chosen = masked_words(TOKENIZER, 0.3, TOKENIZER.encode(text), np.flatnonzero(np.diff(is_letter)) + 1)
    assert is_plausible(chosen.sum(), chosen.size, 0.3)


@pytest.mark.slow
def test_whole_words_follow_the_marks_of_word_pieces():
    pytest.importorskip("tokenizers")
    tokenizer = train_wordpiece(["aab abb bab aab"], 12, SPECIAL)
    tokens = tokenizer.encode("aabab abbba babab")
    is_inside = np.array([tokenizer.token_names[token].startswith("##") for token in tokens])
    chosen = masked_words(tokenizer, 0.5, tokens, np.flatnonzero(~is_inside))
    assert len(np.unique(chosen, axis=0)) == 2**3 < 2 ** len(tokens)  # each of the three words alone


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mask_tokens(ByteTokenizer()), "no mask token"),
        (lambda: mask_tokens(TOKENIZER, 1.5), "rate=1.5"),
        (lambda: mask_tokens(TOKENIZER, mask_fraction=0.8, random_fraction=0.3), "more than 1 together"),
    ],
)
def test_a_mistake_is_one_clear_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
