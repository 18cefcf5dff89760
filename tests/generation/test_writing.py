"""The text of tokens as they come: characters of several bytes, stop strings, the end-of-text token."""

import itertools

import pytest

from dl.data.text.tokenizer import ByteTokenizer
from dl.generation.sampling import Sampling
from dl.generation.writing import Writing

TOKENIZER = ByteTokenizer(("end",))


def written(tokens, **options):
    """Returns a text after the tokens, or as many as it takes, and what was final after each."""
    text = Writing(b"So: ", Sampling(**options), TOKENIZER, end_id=TOKENIZER.end_id)
    shown = []
    for token in tokens:
        if text.finish_reason is None:
            text.take(token, -1.0)
            shown.append(text.final_text)
    return text, shown


def test_a_character_is_shown_when_it_is_complete():
    text, shown = written("a€😀é".encode(), max_tokens=10)
    assert text.text == "a€😀é"
    assert list(dict.fromkeys(shown)) == ["a", "a€", "a€😀", "a€😀é"]
    assert text.finish_reason == "length"


def test_bytes_that_are_not_characters_are_shown_at_the_end():
    text, shown = written(b"a\xff\xe2\x82b\xe2", max_tokens=6)
    assert text.text == "a\ufffd\ufffdb\ufffd"
    assert all(after.startswith(before) for before, after in itertools.pairwise(shown))


@pytest.mark.parametrize("stop", ["END", ("x", "END", "ENDING"), ["\nEND", "END"]])
def test_a_stop_string_ends_the_text_before_it_across_tokens(stop):
    text, shown = written(b"one END two", stop=stop)
    assert text.text == "one "
    assert text.finish_reason == "stop"
    assert len(text.tokens) == len(text.log_probabilities) == len("one END")
    assert not any("E" in final for final in shown)  # it could have been the beginning of END


def test_what_could_have_become_a_stop_string_is_shown_in_the_end():
    text, shown = written(b"one EN", stop="END", max_tokens=6)
    assert shown[-2:] == ["one ", "one EN"]
    assert text.finish_reason == "length"


def test_the_end_token_ends_the_text_and_is_a_token():
    text, _ = written([*b"one", TOKENIZER.end_id, *b"two"])
    assert text.text == "one"
    assert text.finish_reason == "end"
    assert text.tokens == [*b"one", TOKENIZER.end_id]


def test_a_half_character_before_the_end_token_is_shown():
    text, shown = written([*b"a\xe2", TOKENIZER.end_id])
    assert shown == ["a", "a", "a\ufffd"]
    assert text.finish_reason == "end"
