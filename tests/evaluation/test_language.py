"""Figures of a language model: by tokens, with intervals over the sequences."""

import numpy as np
import pytest

from dl.errors import UserError
from dl.evaluation.language import language_figures


def test_sequences_weigh_by_their_tokens():
    found = language_figures([2.0, 9.0], [1, 0], [1, 3])
    assert found["loss"].value == pytest.approx(11 / 4)
    assert found["perplexity"].value == pytest.approx(np.exp(11 / 4))
    assert found["accuracy"].value == pytest.approx(1 / 4)
    assert found["perplexity"].low == pytest.approx(np.exp(found["loss"].low))


def test_the_interval_of_the_perplexity_covers_what_it_states():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(1_000):
        tokens = random.integers(5, 50, 200)
        # What a sequence is about makes all its tokens easy or hard.
        loss = tokens * random.gamma(8, 2 / 8, 200)
        figure = language_figures(loss, np.zeros(200), tokens)["perplexity"]
        hits += figure.low <= np.exp(2.0) <= figure.high
    assert 930 <= hits <= 970


def test_what_cannot_be_known_is_nan_and_not_an_error():
    assert np.isnan(language_figures([1.0], [0], [2])["loss"].low)  # one sequence shows no spread
    assert np.isnan(language_figures([np.nan, 1.0], [0, 0], [2, 2])["perplexity"].value)
    assert language_figures([1e6, 1e6], [0, 0], [1, 1])["perplexity"].value == np.inf


@pytest.mark.parametrize("arguments", [([1.0], [0, 0], [1]), ([1.0], [0], [0])])
def test_mistakes_are_named(arguments):
    with pytest.raises(UserError):
        language_figures(*arguments)


def test_bits_per_byte_do_not_depend_on_the_tokens():
    # One text of 12 bytes: as 12 tokens of 1 bit each, or as 4 tokens of 3 bits each.
    bits = np.log(2)
    bytes_of = language_figures([6 * bits, 6 * bits], [0, 0], [6, 6], num_bytes=12)
    words_of = language_figures([6 * bits, 6 * bits], [0, 0], [2, 2], num_bytes=12)
    assert bytes_of["bits_per_byte"].value == pytest.approx(1)
    assert words_of["bits_per_byte"].value == pytest.approx(1)
    figures = language_figures([3.0, 9.0, 4.0], [0, 0, 0], [2, 3, 2], num_bytes=20)
    assert figures["bits_per_byte"].value == pytest.approx(16 / 20 / np.log(2))
    assert figures["bits_per_byte"].high == pytest.approx(figures["loss"].high * 7 / 20 / np.log(2))
    assert "bits_per_byte" not in language_figures([1.0, 2.0], [0, 0], [2, 2])
