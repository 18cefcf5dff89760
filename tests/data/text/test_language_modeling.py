import json
from pathlib import Path

import jax
import numpy as np
import pytest

import dl
from dl import Experiment, optimizers, task
from dl.data.recorded import record_of, remembering
from dl.data.text.language_modeling import language_modeling
from dl.data.text.token_writer import write_tokens
from dl.data.text.tokenizer import ByteTokenizer, CharacterTokenizer
from dl.errors import UserError
from dl.models.gpt2 import GPT2
from tests.helpers import REAL_DATA

NOT_COUNTED = -1
TEXT = {
    "train": "the cat saw the dög, a dog is a cät. " * 12,
    "validation": "the dog saw a cat. " * 5,
    "test": "a cat is a cät. " * 4,
}
SENTENCES = ["öne cat", "a dog saw it", "b", "the cat saw the dog"]


@pytest.fixture
def texts(tmp_path):
    for split, text in TEXT.items():
        (tmp_path / f"{split}.txt").write_text(text)
    return str(tmp_path)


@pytest.fixture
def sentences(tmp_path):
    for split in TEXT:
        lines = [json.dumps({"text": text}) for text in SENTENCES]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return str(tmp_path)


def all_rows(source):
    return source[np.arange(len(source))]


def targets_of(source):
    """Returns the counted targets of a split, in the order of its rows."""
    targets = all_rows(source)["targets"]
    return targets[targets != NOT_COUNTED]


def test_evaluation_predicts_the_whole_text_after_its_first_token(texts):
    for tokenizer, context in (("bytes", 1), ("characters", 7)):
        data = language_modeling(texts, sequence_length=10, tokenizer=tokenizer, eval_context=context)
        assert list(data.evaluations) == ["validation", "test"]
        for split in data.evaluations:
            targets = targets_of(data.evaluations[split])
            assert data.tokenizer.decode(targets) == TEXT[split][1:]
            assert data.num_targets[split] == len(targets)
            assert data.num_bytes[split] == len(TEXT[split][1:].encode())
        assert data.tokenizer.decode(targets_of(data.train)).startswith(TEXT["train"][1:-10])
        assert data.num_bytes["train"] == len(TEXT["train"][1:].encode())
        assert data.train.spec["tokens"].shape == (10,)


def test_a_stride_gives_a_row_of_train_for_every_token(texts):
    data = language_modeling(texts, sequence_length=10, stride=1)
    assert len(data.train) == len(TEXT["train"]) - 10
    assert len(data.evaluations["test"]) == len(
        language_modeling(texts, sequence_length=10).evaluations["test"]
    )


def test_what_is_held_out_can_be_one_text(texts):
    data = language_modeling(texts, sequence_length=10, join_held_out=True)
    assert list(data.evaluations) == ["test"]
    held_out = TEXT["validation"] + TEXT["test"]
    assert data.tokenizer.decode(targets_of(data.evaluations["test"])) == held_out[1:]
    assert data.num_targets["test"] == len(held_out) - 1
    assert data.num_bytes["test"] == len(held_out[1:].encode())


def test_the_last_tenth_of_tiny_shakespeare_is_that_of_nanogpt():
    if not Path(REAL_DATA, "tiny_shakespeare").is_dir():
        pytest.skip("needs the prepared tiny_shakespeare: set TFDS_DATA_DIR")
    data = language_modeling("tiny_shakespeare", sequence_length=256, join_held_out=True)
    # As data/shakespeare_char/prepare.py of nanoGPT states them: 65 characters, 1,003,854 and 111,540 tokens.
    assert data.vocab_size == 65
    assert data.num_targets == {"train": 1_003_854 - 1, "test": 111_540 - 1}
    assert data.num_bytes == data.num_targets
    assert "".join(data.token_names[:12]) == "\n !$&',-.3:;"


def test_the_end_token_follows_each_of_several_documents(sentences):
    data = language_modeling(sentences, sequence_length=8, tokenizer="bytes")
    end = data.tokenizer.end_id
    expected = [token for text in SENTENCES for token in (*text.encode(), end)]
    np.testing.assert_array_equal(targets_of(data.evaluations["test"]), expected[1:])
    assert data.num_targets["test"] == len(expected) - 1
    assert data.num_bytes["test"] == sum(len(text.encode()) for text in SENTENCES) - 1


def test_packed_documents_predict_only_themselves(sentences):
    data = language_modeling(sentences, sequence_length=16, tokenizer="characters", packing=True)
    rows = all_rows(data.evaluations["test"])
    assert set(rows) == set(data.train.spec) == {"tokens", "targets", "segment_ids", "positions"}
    end, found = data.tokenizer.end_id, []
    for tokens, targets in zip(rows["tokens"], rows["targets"], strict=True):
        starts = np.flatnonzero(np.isin(targets, (end, NOT_COUNTED)))
        found += [data.tokenizer.decode(part[part != NOT_COUNTED]) for part in np.split(targets, starts + 1)]
        assert (tokens[targets == NOT_COUNTED] != NOT_COUNTED).all()
    # The last sentence has 20 tokens: it is cut after 16, whose last target is the first of the rest.
    assert sorted(filter(None, found)) == sorted(["ne cat", " dog saw it", "he cat saw the d", "og"])
    assert data.num_targets["test"] == sum(map(len, SENTENCES))  # the end in place of the first character
    assert data.num_bytes["test"] == sum(len(text[1:].encode()) for text in SENTENCES)
    assert "test packed into 3 rows" in data.provenance


def test_token_files_give_the_rows_of_their_texts(texts, tmp_path):
    tokenizer = CharacterTokenizer("".join(sorted(set("".join(TEXT.values())))))
    for split, text in TEXT.items():
        write_tokens(tmp_path / "tokens" / split, tokenizer, [text], shard_tokens=33)
    data = language_modeling(str(tmp_path / "tokens"), sequence_length=10, eval_context=4)
    same = language_modeling(texts, sequence_length=10, eval_context=4, tokenizer=tokenizer)
    assert data.tokenizer == tokenizer
    for split in ("train", *data.evaluations):
        source, expected = ({"train": d.train, **d.evaluations}[split] for d in (data, same))
        jax.tree.map(np.testing.assert_array_equal, all_rows(source), all_rows(expected))
        np.testing.assert_array_equal(source.arrays["tokens"], expected.arrays["tokens"])
    assert data.num_targets == same.num_targets
    assert data.num_bytes == same.num_bytes
    joined = language_modeling(str(tmp_path / "tokens"), sequence_length=10, join_held_out=True)
    assert tokenizer.decode(targets_of(joined.evaluations["test"])) == (TEXT["validation"] + TEXT["test"])[1:]
    with pytest.raises(UserError, match="was written by another tokenizer"):
        _ = language_modeling(str(tmp_path / "tokens"), sequence_length=10, tokenizer="bytes").train


def test_files_of_nanogpt_are_split_by_their_names(tmp_path):
    for name, text in (("train", "abcdefgh" * 20), ("val", "abcabcabc")):
        (tmp_path / f"{name}.bin").write_bytes(np.frombuffer(text.encode(), np.uint8).astype("<u2").tobytes())
    data = language_modeling(str(tmp_path), sequence_length=4, tokenizer="bytes")
    assert bytes(targets_of(data.evaluations["test"]).tolist()) == b"bcabcabc"
    assert data.num_targets == {"train": 151, "validation": 7, "test": 8}  # 5 % of 160 held out
    assert data.identity.split_rule == "the last tokens held out"
    with pytest.raises(UserError, match="do not hold their tokenizer; give it"):
        _ = language_modeling(str(tmp_path), sequence_length=4).train
    small = CharacterTokenizer("abcdefg")
    with pytest.raises(UserError, match="the text has the token 104"):
        _ = all_rows(language_modeling(str(tmp_path), sequence_length=4, tokenizer=small).train)


def test_a_run_keeps_its_tokenizer_and_finds_its_rows(texts, tmp_path):
    def make():
        return language_modeling(texts, sequence_length=10)

    data = make()
    record = {
        "data": record_of(data),
        "dataset": {
            "name": "x",
            "version": "1.0.0",
            "checksum": data.identity.checksum,
            "sizes": dict(data.identity.sizes),
        },
    }
    (tmp_path / "tokenizer.json").write_text(data.tokenizer.to_json())
    with remembering(json.loads(json.dumps(record)), tmp_path):
        known = make()
    assert known.provenance == "as the run recorded it"
    assert known.tokenizer == data.tokenizer
    assert known.num_bytes == data.num_bytes
    np.testing.assert_array_equal(known.train[np.array([3])]["tokens"], data.train[np.array([3])]["tokens"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"packing": True}, {"join_held_out": True, "eval_context": 5, "stride": 2}]
)
def test_a_language_model_learns(sentences, how):
    data = language_modeling(sentences, sequence_length=8, **how)
    model = GPT2(vocab_size=data.vocab_size, max_length=8, num_layers=1, num_heads=2, dim=16)
    experiment = Experiment(
        data=data,
        task=task.language_model(model),
        tx=optimizers.adam(1e-2),
        num_steps=60,
        batch_size=8,
        eval_batch_size=8,
    )
    result = dl.train(experiment)
    assert result.metrics["test"]["loss"] < 0.7 * np.log(data.vocab_size)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"sequence_length": 0}, "sequence_length=0"),
        ({"stride": 11}, "stride=11"),
        ({"eval_context": 11}, "eval_context=11"),
        ({"packing": True, "stride": 2}, "packed rows do not overlap"),
        ({"special": ("masks",)}, "'masks' is not a role"),
        ({"tokenizer": "words"}, "tokenizer='words'"),
        ({"dataset": "no_such_set"}, "no_such_set is not prepared"),
    ],
)
def test_a_mistake_is_one_clear_line(how, message):
    with pytest.raises(UserError, match=message):
        _ = language_modeling(**{"sequence_length": 10, **how}).train


def test_tokens_that_cannot_be_used_are_refused(tmp_path):
    write_tokens(tmp_path / "tokens", ByteTokenizer(), ["text"])
    for how, message in (
        ({"packing": True}, "cannot be packed"),
        ({"tokenizer": "bpe:300"}, "is made from texts, and .* holds tokens"),
    ):
        with pytest.raises(UserError, match=message):
            _ = language_modeling(str(tmp_path / "tokens"), sequence_length=10, **how).train
    (tmp_path / "only" / "test").mkdir(parents=True)
    write_tokens(tmp_path / "only" / "test", ByteTokenizer(), ["text"])
    with pytest.raises(UserError, match="has tokens for test but not for train"):
        _ = language_modeling(str(tmp_path / "only"), sequence_length=10).train


def test_a_run_does_not_read_other_data_than_its_own(texts, tmp_path):
    data = language_modeling(texts, sequence_length=10)
    own = {"name": "x", "version": "1.0.0", "checksum": "0", "sizes": dict(data.identity.sizes)}
    (tmp_path / "tokenizer.json").write_text(data.tokenizer.to_json())
    with remembering(json.loads(json.dumps({"data": record_of(data), "dataset": own})), tmp_path):
        known = language_modeling(texts, sequence_length=10)
    with pytest.raises(UserError, match="the run was trained on x .sha256 0., but the present data are"):
        known.train[np.array([3])]
