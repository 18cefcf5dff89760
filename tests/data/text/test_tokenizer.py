"""Tokenizers: what is encoded is decoded, special tokens, and definitions that are the same everywhere."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl.data.text.contract import ROLES
from dl.data.text.tokenizer import tokenizer_from_json
from dl.data.text.tokenizers_plain import ByteTokenizer, CharacterTokenizer, characters_of
from dl.data.text.tokenizers_subword import published, train_bpe, train_wordpiece
from dl.errors import UserError

TEXTS = ["the cat sees the dog.", "Every dog likes the old man!", "Ein Mädchen hört die Katze.", "naïve café"]
BYTES = ByteTokenizer(("padding", "end"))
BPE = train_bpe(TEXTS, 300, ("padding", "end"))
WORDPIECE = train_wordpiece(TEXTS, 120, ("padding", "unknown", "mask"))
CHARACTERS = characters_of(TEXTS, special=("start",))
ALL = [BYTES, BPE, WORDPIECE, CHARACTERS]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@settings(deadline=None)
@given(text=st.text())
def test_every_text_is_decoded_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(text=st.text(st.sampled_from("".join(TEXTS))))
def test_a_text_of_known_characters_is_decoded_as_it_was(text):
    assert CHARACTERS.decode(CHARACTERS.encode(text)) == text


@settings(deadline=None)
@given(text=st.text(st.characters(categories=("L", "Cs"))))
def test_bytes_are_those_of_python_also_for_surrogates(text):
    assert bytes(BYTES.encode(text)) == text.encode("utf-8", "surrogatepass")
    assert BYTES.decode(BYTES.encode(text)) == text


@pytest.mark.parametrize("tokenizer", ALL, ids=["bytes", "bpe", "wordpiece", "characters"])
def test_a_tokenizer_is_what_its_definition_says(tokenizer):
    again = tokenizer_from_json(tokenizer.to_json())
    assert again == tokenizer
    assert again is not tokenizer
    assert hash(again) == hash(tokenizer)
    assert tokenizer.digest == hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
    assert again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    assert tokenizer.encode_all(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert len(tokenizer.token_names) == tokenizer.vocab_size
    for role, token in tokenizer.special_ids.items():
        assert tokenizer.token_names[token] == ROLES[role]
        assert getattr(tokenizer, f"{role}_id") == token
    hidden = [token for role, token in tokenizer.special_ids.items() if role != "unknown"]
    tokens = tokenizer.encode("the dog")
    assert tokenizer.decode([*hidden, *tokens, *hidden]) == "the dog"
    assert not {*hidden} & {*tokens}


def test_subwords_have_the_ids_that_the_library_gives():
    import tokenizers

    itself = tokenizers.Tokenizer.from_str(BPE.tokenizer)
    assert BPE.encode(TEXTS[2]) == itself.encode(TEXTS[2]).ids
    assert BPE.vocab_size == itself.get_vocab_size() == 300
    assert "the" in BPE.token_names
    assert " the" in BPE.token_names
    pieces = [WORDPIECE.token_names[token] for token in WORDPIECE.encode("the cats")]
    assert "".join(pieces).replace("##", "") == "thecats"


@pytest.mark.slow
def test_training_is_the_same_in_every_process():
    program = (
        "from dl.data.text.tokenizers_subword import train_bpe, train_wordpiece\n"
        f"texts = {TEXTS!r}\n"
        "print(train_bpe(texts, 300, ('padding', 'end')).digest)\n"
        "print(train_wordpiece(texts, 120, ('padding', 'unknown', 'mask')).digest)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [BPE.digest, WORDPIECE.digest]


def test_the_name_of_a_special_token_in_a_text_is_text():
    for tokenizer in (BYTES, BPE):
        tokens = tokenizer.encode("a[EOS]b")
        assert tokenizer.end_id not in tokens
        assert tokenizer.decode(tokens) == "a[EOS]b"


def test_an_unknown_character_is_the_unknown_token_if_another_split_needs_one():
    assert CHARACTERS.unknown_id is None
    with pytest.raises(UserError, match="the character '日' is not in the vocabulary of 29 characters"):
        CHARACTERS.encode("the 日")
    needing = characters_of(TEXTS, ["日"])
    assert needing.characters == CHARACTERS.characters == "".join(sorted(set("".join(TEXTS))))
    assert needing.unknown_id == 29
    assert needing.encode("t日é").count(29) == 1
    assert needing.decode(needing.encode("t日é")) == "t\N{REPLACEMENT CHARACTER}é"
    assert characters_of(TEXTS, ["the"]).unknown_id is None
    assert WORDPIECE.decode(WORDPIECE.encode("the 日 dog")) == "the \N{REPLACEMENT CHARACTER} dog"


def test_bytes_that_are_not_text_are_shown():
    assert BYTES.decode([0x41, 0xE2, 0x82]) == "A\N{REPLACEMENT CHARACTER}"
    assert BYTES.token_names[0xE2] == "\\xe2"
    assert BYTES.token_names[10] == "\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BYTES.decode([300]), "the token 300 is not in the vocabulary; expected 0 to 257"),
        (lambda: BYTES.decode([-1]), "the token -1 is not in the vocabulary"),
        (lambda: ByteTokenizer(("pad",)), "'pad' is not a role of a special token"),
        (lambda: ByteTokenizer(("end", "end")), "contain one twice"),
        (lambda: CharacterTokenizer("aa"), "each can occur only once"),
        (lambda: characters_of([""]), "must be one or more"),
        (lambda: train_bpe(TEXTS, 200, ("end",)), "choose at least bpe:257"),
        (lambda: train_wordpiece(TEXTS, 20), "choose at least wordpiece:"),
        (lambda: tokenizer_from_json("{"), "the definition of a tokenizer is damaged"),
        (lambda: tokenizer_from_json('{"kind": "words"}'), "the definition of a tokenizer is damaged"),
        (lambda: tokenizer_from_json("[]"), "the definition of a tokenizer is damaged"),
        (
            lambda: tokenizer_from_json('{"kind":"subwords","tokenizer":"{}","special":{}}').encode("a"),
            "the definition of a tokenizer is damaged",
        ),
    ],
)
def test_a_mistake_is_one_line(make, message):
    with pytest.raises(UserError, match=".*") as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_special_tokens_of_a_published_tokenizer_are_found(tmp_path):
    import tokenizers

    made = tokenizers.Tokenizer.from_str(train_bpe(TEXTS, 280).tokenizer)
    made.add_special_tokens(["<|endoftext|>", "<odd>", "<pad>"])
    made.enable_truncation(3)
    made.save(str(tmp_path / "tokenizer.json"))
    alone = published(tmp_path / "tokenizer.json")
    assert alone.special_ids == {"padding": 282, "end": 280}
    assert alone.decode(alone.encode(TEXTS[0] + "<pad>")) == TEXTS[0] + "<pad>"
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<odd>"}, "eos_token": "<|endoftext|>", "pad_token": None})
    )
    assert published(tmp_path).special_ids == {"padding": 282, "start": 281, "end": 280}
    with pytest.raises(UserError, match="there is no file .*/nowhere"):
        published(tmp_path / "nowhere")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        published(tmp_path)
