"""Features of new texts: as the data set makes those of its examples."""

import json

import numpy as np
import pytest

from dl.data import ArraySource, ArraySplits
from dl.data.splits import ChangedSplits
from dl.data.text.classification import text_classification
from dl.data.text.features import features_of, reads_text
from dl.errors import UserError

TEXTS = [f"a {'fine' if k % 2 else 'dull'} film, part {k}" + " and more" * (k % 4) for k in range(40)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"text": text, "label": ("bad", "good")[k % 2]} for k, text in enumerate(TEXTS)]
    path = tmp_path / "films.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return text_classification(str(path), tokenizer="characters", max_length=24, first_token="class")


def test_new_texts_have_the_features_of_the_examples(data):
    texts = data.test.texts["text"]
    for splits in (data, ChangedSplits(data, without=("validation",))):
        found = features_of(splits, texts, "tokens")
        assert found.keys() == {"tokens", "segment_ids"}
        for name, values in found.items():
            np.testing.assert_array_equal(values, data.test.arrays[name])


def test_data_with_a_tokenizer_alone_have_padded_tokens(data):
    class Splits(ArraySplits):
        tokenizer = data.tokenizer

    tokens = np.zeros((3, 8), np.int32)
    plain = Splits("plain", train=ArraySource({"tokens": tokens}), evaluations={})
    found = features_of(plain, ["a film", "a dull film"], "tokens")
    first, second = (data.tokenizer.encode(text) for text in ("a film", "a dull film"))
    padding = [data.tokenizer.padding_id] * 2
    np.testing.assert_array_equal(found["tokens"], [first + padding, second[:8]])
    assert found.keys() == {"tokens"}
    segmented = Splits("s", train=ArraySource({"tokens": tokens, "segment_ids": tokens}), evaluations={})
    found = features_of(segmented, ["a film"], "tokens")
    np.testing.assert_array_equal(found["segment_ids"], [[1] * 6 + [0] * 2])
    assert not reads_text(ArraySplits("s", train=ArraySource({"tokens": tokens}), evaluations={}), "tokens")
    with pytest.raises(UserError, match="of data without a tokenizer"):
        features_of(ArraySplits("s", train=ArraySource({"tokens": tokens}), evaluations={}), ["a"], "tokens")
