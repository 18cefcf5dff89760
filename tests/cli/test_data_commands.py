import numpy as np
import pytest

from dl.data.text.language_modeling import language_modeling
from dl.data.text.token_files import read_tokens

TEXT = "the cat saw the dog. " * 30


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts" / "more").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text(TEXT)
    (tmp_path / "texts" / "more" / "b.txt").write_text("the dög")
    return tmp_path


def test_texts_become_tokens_that_a_language_model_reads(dl, texts):
    train, validation = texts / "tokens" / "train", texts / "tokens" / "validation"
    train.parent.mkdir()
    status, output, errors = dl("write-tokens", str(train), str(texts / "texts"), "--tokenizer", "characters")
    assert (status, errors) == (0, "")
    size = len(TEXT) + len("the dög") + 2  # the end token of each
    assert f"{size} tokens of {len(TEXT) + 8} bytes, vocabulary of 14" in output
    status, _, errors = dl(
        "write-tokens", str(validation), str(texts / "texts" / "a.txt"), "--tokenizer", str(train)
    )
    assert (status, errors) == (0, "")
    data = language_modeling(str(train.parent), sequence_length=8)
    assert data.tokenizer.decode(data.train[np.arange(1)]["tokens"][0]) == TEXT[:8]
    assert data.num_targets["test"] == len(TEXT)  # with the end token
    assert read_tokens(validation).tokenizer == data.tokenizer


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["texts"], "write-tokens needs TEXT (a text file of UTF-8, or a folder of files .txt)"),
        (["new", "no.txt"], "no.txt cannot be read (No such file or directory)"),
        (["texts", "texts/a.txt"], "texts exists already; remove it, or choose a new folder"),
        (["new", "texts/a.txt", "--tokenizer", "words"], "tokenizer='words'"),
        (["new", "tokens"], "tokens holds no files .txt"),
    ],
)
def test_a_mistake_is_one_clear_line(dl, texts, monkeypatch, words, message):
    monkeypatch.chdir(texts)
    (texts / "tokens").mkdir()
    status, output, errors = dl("write-tokens", *words)
    assert (status, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (texts / "new").exists()
