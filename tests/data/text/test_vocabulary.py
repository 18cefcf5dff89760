"""Tokenizers by a word: what the word means, and the cache of trained ones."""

import pytest

from dl.data.text import vocabulary
from dl.data.text.tokenizer import ByteTokenizer, CharacterTokenizer
from dl.data.text.tokenizers_subword import train_bpe
from dl.data.text.vocabulary import check_tokenizer, make_tokenizer
from dl.errors import UserError

TEXTS = ["the cat sees the dog.", "every dog likes the old man!"] * 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/dl/tokenizers"


def test_a_word_names_a_tokenizer(tmp_path):
    assert make_tokenizer(check_tokenizer("bytes"), TEXTS, special=("end",)) == ByteTokenizer(("end",))
    characters = make_tokenizer(check_tokenizer("characters"), TEXTS, ["日"], ("end",))
    assert characters == CharacterTokenizer("".join(sorted(set("".join(TEXTS)))), ("end", "unknown"))
    bpe = make_tokenizer(check_tokenizer("bpe:280"), TEXTS, special=("end",))
    assert bpe == train_bpe(TEXTS, 280, ("end",))
    assert make_tokenizer(check_tokenizer("wordpiece:50"), TEXTS).vocab_size == 50
    assert make_tokenizer(check_tokenizer(bpe), TEXTS, special=("end",), helpful=("mask",)) is bpe
    (tmp_path / "tokenizer.json").write_text(bpe.tokenizer)
    assert make_tokenizer(check_tokenizer(f"{tmp_path}/tokenizer.json"), TEXTS).special_ids == {"end": 0}
    assert make_tokenizer(check_tokenizer(str(tmp_path)), TEXTS, special=("end",)) == bpe
    with pytest.raises(UserError, match="has no special token for mask"):
        make_tokenizer(check_tokenizer(bpe), TEXTS, special=("end", "mask"))


@pytest.mark.parametrize("word", ["byte", "bpe", "bpe:", "bpe:-1", "bpe:8k", "bpe:9999999999", "words:3", ""])
def test_a_mistake_is_one_line(word):
    with pytest.raises(UserError, match=r"tokenizer='.*': expected bytes, characters, bpe:SIZE"):
        check_tokenizer(word)


def test_a_trained_tokenizer_is_kept(cache, monkeypatch):
    spec = check_tokenizer("bpe:280")
    made = make_tokenizer(spec, TEXTS)
    (file,) = cache.iterdir()
    content = file.read_text()
    monkeypatch.setitem(vocabulary._TRAINED, "bpe", None)
    assert make_tokenizer(spec, TEXTS) == made  # read, not trained
    for other in ((check_tokenizer("bpe:281"), TEXTS, ()), (spec, TEXTS[1:], ()), (spec, TEXTS, ("end",))):
        with pytest.raises(TypeError):  # would be trained
            make_tokenizer(other[0], other[1], special=other[2])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    for damaged in (content[:-5], content.replace("the", "teh"), "", "\n", "\xff"):
        file.write_text(damaged, encoding="latin-1")
        assert make_tokenizer(spec, TEXTS) == made
        assert file.read_text() == content


def test_a_cache_that_cannot_be_written_is_no_hindrance(cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file")
    assert make_tokenizer(check_tokenizer("bpe:280"), TEXTS).vocab_size == 280
