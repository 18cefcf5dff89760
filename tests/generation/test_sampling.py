"""The choice of the next token, against NumPy with a sort and against exact probabilities."""

import jax
import numpy as np
import pytest
from scipy import stats

from dl.errors import UserError
from dl.generation.sampling import Sampling, Settings, choose, restricted_logits

V = 37


def settings_of(*samplings):
    rows = [Settings.of(sampling) for sampling in samplings]
    return jax.tree.map(lambda *x: np.concatenate(x), *rows)


def reference(logits_V, seen_V, s):
    """Returns the probabilities, with a sort in place of a threshold."""
    x = logits_V.astype(np.float64).copy()
    x[seen_V] = np.where(x[seen_V] > 0, x[seen_V] / s.repetition_penalty, x[seen_V] * s.repetition_penalty)
    x /= s.temperature
    if s.top_k is not None:
        x[np.argsort(-x)[s.top_k :]] = -np.inf
    if s.top_p is not None:
        order = np.argsort(-x)
        total = np.cumsum(np.exp(x - x.max())[order] / np.exp(x - x.max()).sum())
        x[order[1:][total[:-1] >= s.top_p]] = -np.inf
    p = np.exp(x - x.max())
    if s.min_p is not None:
        p[p < s.min_p] = 0
    return p / p.sum()


CASES = [
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(top_k=1),
    Sampling(top_k=5, temperature=2.0),
    Sampling(top_k=1000),
    Sampling(top_p=0.1),
    Sampling(top_p=0.8, repetition_penalty=1.7),
    Sampling(top_p=1.0),
    Sampling(min_p=0.2),
    Sampling(min_p=1.0),
    Sampling(top_k=9, top_p=0.7, min_p=0.05, temperature=1.5, repetition_penalty=0.8),
]


def test_each_row_has_its_own_settings():
    random = np.random.default_rng(0)
    logits_RV = random.normal(size=(len(CASES), V)).astype(np.float32) * 2
    seen_RV = random.random((len(CASES), V)) < 0.3
    restricted_RV = jax.jit(restricted_logits)(logits_RV, seen_RV, settings_of(*CASES))
    expected_RV = np.stack([reference(*row) for row in zip(logits_RV, seen_RV, CASES, strict=True)])
    np.testing.assert_allclose(jax.nn.softmax(restricted_RV), expected_RV, atol=1e-6)
    np.testing.assert_array_equal(np.isfinite(restricted_RV), expected_RV > 0)


LOGITS = np.random.default_rng(1).normal(size=12).astype(np.float32)
NUM_TOKENS = 9  # the other three outputs of the model are not tokens
NUM_DRAWS = 10_000
compiled_choose = jax.jit(choose, static_argnames="vocab_size")


def draw(sampling):
    """Returns independent draws from `LOGITS`, and their log-probabilities."""
    return compiled_choose(
        np.tile(LOGITS, (NUM_DRAWS, 1)),
        np.zeros((NUM_DRAWS, len(LOGITS)), bool),
        jax.random.split(jax.random.key(3), NUM_DRAWS),
        Settings.of(sampling, NUM_DRAWS),
        vocab_size=NUM_TOKENS,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.7), Sampling(top_k=4), Sampling(top_p=0.75), Sampling(min_p=0.15)],
    ids=["temperature", "top_k", "top_p", "min_p"],
)
def test_draws_have_the_exact_probabilities(sampling):
    tokens_R, log_probs_R = draw(sampling)
    assert tokens_R.max() < NUM_TOKENS
    probs_V = reference(LOGITS[:NUM_TOKENS], np.zeros(NUM_TOKENS, bool), sampling)
    counts_V = np.bincount(tokens_R, minlength=NUM_TOKENS)
    possible_V = probs_V > 0
    assert counts_V[~possible_V].sum() == 0
    assert stats.chisquare(counts_V[possible_V], NUM_DRAWS * probs_V[possible_V]).pvalue > 0.001
    # The log-probabilities are those of the model, whatever was restricted.
    log_probs_V = LOGITS - np.log(np.exp(LOGITS).sum())
    np.testing.assert_allclose(log_probs_R, log_probs_V[tokens_R], atol=1e-5)


def test_temperature_0_is_the_most_probable_token():
    assert set(np.asarray(draw(Sampling(temperature=0))[0])) == {LOGITS[:NUM_TOKENS].argmax()}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
        {"num_samples": 0},
        {"num_beams": 0},
        {"seed": -1},
        {"stop": ("",)},
        {"num_beams": 2, "temperature": 0.5},
    ],
)
def test_a_setting_out_of_range_is_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Sampling(**options)
