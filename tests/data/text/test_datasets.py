"""Text classification and translation: examples, splits, folds, and runs whose data are gone."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

import dl
from dl import Experiment, optimizers, task
from dl.data.folds import Folds
from dl.data.recorded import remembering
from dl.data.text.classification import text_classification
from dl.data.text.translation import translation
from dl.errors import UserError
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.system.json_files import read_json, write_json
from tests.helpers import REAL_DATA

ROWS = [
    {"text": f"{'a fine film' if k % 3 else 'a dull film'}, part {k}", "label": ("bad", "good")[k % 3 > 0]}
    for k in range(60)
]
PAIRS = [{"source": f"number {k}", "target": f"Nummer {k} ist eine Zahl"} for k in range(50)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_lines(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def reviews(tmp_path):
    return write_lines(tmp_path / "reviews.jsonl", ROWS)


def test_the_tokens_of_texts_and_their_labels(reviews):
    data = text_classification(reviews, max_length=20)
    assert data.identity.sizes == {"train": 43, "validation": 5, "test": 12}
    assert data.class_names == ("bad", "good")
    label_of = {row["text"]: row["label"] for row in ROWS}
    seen = []
    for source in (data.train, data.validation, data.test):
        examples = source[np.arange(len(source))]
        for tokens, segment_ids, label, text in zip(
            *(examples[name] for name in ("tokens", "segment_ids", "label")),
            source.texts["text"],
            strict=True,
        ):
            seen.append(text)
            length = min(len(text), 20)
            assert data.class_names[label] == label_of[text]
            assert data.tokenizer.decode(tokens) == text[:20]
            assert segment_ids.tolist() == [1] * length + [0] * (20 - length)
            assert set(tokens[length:].tolist()) <= {data.tokenizer.padding_id}
    assert sorted(seen) == sorted(label_of)
    assert data.vocab_size == len(data.token_names) == 257
    spec = {name: (leaf.shape, leaf.dtype) for name, leaf in data.train.spec.items()}
    assert spec == {"tokens": ((20,), np.int32), "segment_ids": ((20,), np.int32), "label": ((), np.int32)}


def test_special_tokens_stand_around_a_text_that_is_cut(reviews):
    data = text_classification(
        reviews, max_length=8, tokenizer="bpe:280", first_token="class", last_token="separator"
    )
    tokens_NT = data.train[np.arange(len(data.train))]["tokens"]
    assert (tokens_NT[:, 0] == data.tokenizer.class_id).all()
    last = (tokens_NT == data.tokenizer.separator_id).argmax(1)
    assert (last >= 4).all()
    for tokens, end, text in zip(tokens_NT, last, data.train.texts["text"], strict=True):
        assert text.startswith(data.tokenizer.decode(tokens))
        assert (tokens[end + 1 :] == data.tokenizer.padding_id).all()


def test_what_is_cut_or_unknown_is_told(tmp_path):
    write_lines(tmp_path / "s/train.jsonl", ROWS)
    write_lines(tmp_path / "s/validation.jsonl", [{"text": "a film, été", "label": "good"}])
    write_lines(tmp_path / "s/test.jsonl", [{"text": "", "label": "bad"}, {"text": "a" * 30, "label": "bad"}])
    data = text_classification(f"{tmp_path}/s", max_length=25, tokenizer="characters")
    assert "validation: 2 of 11 tokens unknown" in data.provenance
    assert "test: 1 of 2 texts cut to 25 tokens" in data.provenance
    assert "train" not in data.provenance
    examples = data.test[np.array([0])]
    assert examples["segment_ids"].sum() == 1  # an empty text is one token
    assert examples["tokens"][0, 0] == data.tokenizer.unknown_id


def test_folds_keep_the_texts_beside_their_rows(reviews):
    folds = Folds(text_classification(reviews, max_length=30), 4)
    assert folds.unstratified is None
    for fold in (folds[0], folds[3]):
        held_out, rest = fold.evaluations["validation"], fold.train
        assert len(held_out) + len(rest) == 48
        for source in (held_out, rest):
            tokens_NT = source[np.arange(len(source))]["tokens"]
            assert [fold.data.tokenizer.decode(t) for t in tokens_NT] == list(source.texts["text"])
        assert not set(held_out.texts["text"]) & set(rest.texts["text"])


def test_pairs_end_with_the_end_token(tmp_path):
    data = translation(write_lines(tmp_path / "pairs.jsonl", PAIRS), max_length=12, tokenizer="characters")
    assert data.identity.sizes == {"train": 36, "validation": 4, "test": 10}
    expected = {row["source"]: row["target"] for row in PAIRS}
    assert data.train.spec.keys() == {"source", "target"}
    for source in (data.train, *data.evaluations.values()):
        examples = source[np.arange(len(source))]
        pairs = zip(source.texts["source"], source.texts["target"], strict=True)
        for k, (text, translated) in enumerate(pairs):
            assert expected[text] == translated
            for tokens, whole in ((examples["source"][k], text), (examples["target"][k], translated)):
                end = tokens.tolist().index(data.tokenizer.end_id)
                assert data.tokenizer.decode(tokens) == whole[:11]
                assert end == min(len(whole), 11)
                assert (tokens[end + 1 :] == data.tokenizer.padding_id).all()
    assert "train target: 36 of 36 texts cut to 11 tokens" in data.provenance
    turned = translation(f"{tmp_path}/pairs.jsonl", source="target", target="source")
    assert turned.train.texts["source"] == data.train.texts["target"]


def test_without_data_there_are_built_in_ones(data_dir):
    classified, translated = text_classification(), translation(max_length=60)
    assert classified.notice.splitlines()[0] == "Python's help texts, not sst2_sentences."
    assert classified.num_classes >= 3
    assert len(classified.train) > 200
    assert translated.notice.splitlines()[0] == "Number words, not multi30k_en_de."
    assert translated.identity.sizes == {"train": 7200, "validation": 800, "test": 2000}
    assert translation("number_words").notice is None
    with pytest.raises(UserError, match="rt_polarity is not prepared in"):
        _ = text_classification("rt_polarity").train


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: text_classification("a b"), "expected NAME"),
        (lambda: text_classification(tokenizer="bpe"), "expected bytes, characters, bpe:SIZE"),
        (lambda: text_classification(max_length=0), "max_length=0 is out of range"),
        (lambda: text_classification(first_token="class", max_length=1), "max_length=1 is out of range"),
        (lambda: text_classification(first_token="cls"), "'cls' is not a role of a special token"),
        (lambda: text_classification(validation_fraction=1.0), "validation_fraction=1.0 is out of range"),
        (lambda: translation(max_length=1), "max_length=1 is out of range"),
        (lambda: translation(source="en", target="en"), "are the same field"),
        (lambda: translation(validation_fraction=0.0), "validation_fraction=0.0 is out of range"),
    ],
)
def test_a_mistake_is_one_line(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class Bag(nn.Module):
    """Classifies by the mean of the embedded tokens."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, segment_ids_BT: jax.Array | None = None) -> jax.Array:
        return nn.Dense(2)(nn.Embed(self.vocab_size, 8)(tokens_BT).mean(1))


def experiment(dataset: str, tokenizer: str = "bpe:280") -> Experiment:
    data = text_classification(dataset, max_length=16, tokenizer=tokenizer)
    return Experiment(
        data=data,
        task=task.classification(Bag(data.vocab_size), input_name="tokens"),
        tx=optimizers.adam(0.1),
        num_steps=3,
        batch_size=8,
        eval_batch_size=8,
    )


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory, mesh1):
    """A folder with texts and a run, and the result of the run."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"dataset": write_lines(folder / "reviews.jsonl", ROWS)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        definition = Definition(experiment, options, "experiments.reviews")
        result = dl.train(definition, folder / "run", mesh=mesh1, console=Console(is_quiet=True))
    return folder, definition, result


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of the run, its definition, and its result."""
    folder, definition, result = trained_once
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run", definition, result


@pytest.mark.slow
def test_a_run_needs_neither_its_texts_nor_the_cache(trained, tmp_path, mesh1):
    folder, definition, result = trained
    reviews = definition.options["dataset"]
    data = result.experiment.data
    tokens = data.test[np.arange(5)]["tokens"]
    expected, texts = result.predict(tokens), data.test.texts["text"]
    Path(reviews).rename(tmp_path / "away")
    run = dl.load_run(folder, experiment, mesh=mesh1)
    again = run.experiment.data
    np.testing.assert_array_equal(run.predict(tokens), expected)
    assert again.tokenizer == data.tokenizer
    assert (again.vocab_size, again.class_names) == (data.vocab_size, ("bad", "good"))
    assert again.identity == data.identity
    assert again.tokenizer.encode("a fine film") == data.tokenizer.encode("a fine film")
    with pytest.raises(UserError, match="there is no file or folder"):
        again.test[np.arange(5)]
    (tmp_path / "away").rename(reviews)
    np.testing.assert_array_equal(again.test[np.arange(5)]["tokens"], tokens)
    assert again.test.texts["text"] == texts
    write_lines(Path(reviews), [{**row, "text": row["text"][::-1]} for row in ROWS])
    changed = dl.load_run(folder, experiment, mesh=mesh1)
    np.testing.assert_array_equal(changed.predict(tokens), expected)
    with pytest.raises(UserError, match=r"was trained on .* \(sha256 \w{12}\), but the present data are"):
        changed.experiment.data.test[np.arange(1)]
    write_lines(Path(reviews), ROWS)


def test_a_run_is_not_resumed_with_another_tokenizer(trained):
    folder, definition, _ = trained
    (folder / "result.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json differs from that of the present data"):
        dl.train(definition, folder, console=Console(is_quiet=True))
    with pytest.raises(UserError, match=r"tokenizer.json is damaged: it does not match the digest"):
        dl.load_run(folder, experiment)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json is missing, which holds the tokenizer of the run"):
        dl.load_run(folder, experiment)
    record = read_json(folder / "run.json")
    del record["data"]["tokenizer"]
    write_json(folder / "run.json", record)
    with pytest.raises(UserError, match="the record of the data has no tokenizer"):
        dl.load_run(folder, experiment)


def test_other_arguments_are_not_taken_from_a_record(trained):
    folder, definition, _ = trained
    reviews = definition.options["dataset"]
    with remembering(read_json(folder / "run.json"), folder):
        assert text_classification(reviews, max_length=16, tokenizer="bpe:280").known is not None
        assert text_classification(reviews, max_length=17, tokenizer="bpe:280").known is None
        assert text_classification(reviews, max_length=16, tokenizer="bpe:281").known is None


def real(name):
    if not list(Path(REAL_DATA or "/nowhere").glob(f"{name}/*/dataset_info.json")):
        pytest.skip(f"needs prepared {name}: set TFDS_DATA_DIR")
    return REAL_DATA


@pytest.mark.slow
def test_real_sets():
    sentences = text_classification("sst2_sentences", max_length=64, data_dir=real("sst2_sentences"))
    assert sentences.identity.sizes == {"train": 6920, "validation": 872, "test": 1821}  # Socher et al. 2013
    assert sentences.class_names == ("negative", "positive")
    polarity = text_classification("rt_polarity", max_length=32, data_dir=real("rt_polarity"))
    assert sum(polarity.identity.sizes.values()) == 10662  # Pang and Lee 2005
    folds = Folds(polarity, 10)
    assert folds.unstratified is None
    pairs = translation(max_length=40, tokenizer="bpe:1000", data_dir=real("multi30k_en_de"))
    assert pairs.identity.sizes == {"train": 29000, "validation": 1014, "test": 1000}  # Elliott et al. 2016
    assert pairs.test.texts["source"][0].isascii()
    assert any("ß" in text for text in pairs.test.texts["target"])
    assert pairs.vocab_size == 1000
