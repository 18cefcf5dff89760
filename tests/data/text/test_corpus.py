"""Texts from prepared sets, files, folders and Python itself, and their splits."""

import json
from pathlib import Path

import pytest

from dl.data.text.builtin import english, german
from dl.data.text.corpus import hold_out, read_texts
from dl.data.text.table import read_table
from dl.errors import UserError
from tests.helpers import REAL_DATA

FIELDS = {"text": None, "label": None}


def table_of(path, fields=FIELDS):
    return read_table(str(path), fields, (), "python_topics")


def write(folder: Path, files: dict[str, str | bytes]):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_file_is_cut_by_position(tmp_path):
    text = "".join(f"line {number}\r\n" for number in range(100))
    write(tmp_path, {"a.txt": b"\xef\xbb\xbf" + text.encode()})
    corpus = read_texts(f"{tmp_path}/a.txt")
    (train,), (validation,), (test,) = (corpus.splits[name] for name in ("train", "validation", "test"))
    assert train + validation + test == text
    assert (len(train), len(validation)) == (int(len(text) * 0.9), int(len(text) * 0.95) - len(train))
    identity = corpus.identity_of({"train": 3})
    assert (identity.name, identity.version, identity.sizes) == ("a.txt", "1.0.0", {"train": 3})
    assert identity.split_rule == "the last characters of each document held out"
    write(tmp_path, {"a.txt": text})
    assert read_texts(f"{tmp_path}/a.txt").checksum == corpus.checksum
    write(tmp_path, {"a.txt": text + "."})
    assert read_texts(f"{tmp_path}/a.txt").checksum != corpus.checksum


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path, monkeypatch):
    write(tmp_path, {"set/b.txt": "b" * 20, "set/a/z.TXT": "z" * 20, "set/.h/x.txt": "x", "set/c.md": "c"})
    assert [d[0] for d in read_texts(f"{tmp_path}/set").splits["train"]] == ["z", "b"]
    monkeypatch.chdir(tmp_path)
    assert read_texts("./set").name == "set"
    write(tmp_path, {"own/train/a.txt": "a", "own/val.txt": "v", "own/test/deep/t.txt": "t"})
    corpus = read_texts("./own")
    assert corpus.splits == {"train": ["a"], "validation": ["v"], "test": ["t"]}
    assert corpus.split_rule == ""


def test_without_a_test_split_validation_is_test():
    many = [f"document {number}" for number in range(200)]
    splits, rule = hold_out({"train": many, "validation": ["v"]}, "x")
    assert splits["test"] == ["v"]
    assert len(splits["validation"]) == 10
    assert sorted([*splits["train"], *splits["validation"]]) == sorted(many)
    assert splits["train"] == [document for document in many if document in set(splits["train"])]
    assert rule == "documents held out at random"
    splits, _ = hold_out({"train": many}, "x")
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [180, 10, 10]
    assert hold_out({"train": many}, "x") == hold_out({"train": many}, "y")


def test_rows_of_json_lines_and_tables(tmp_path):
    rows = [{"text": 'a "b"\u2028c', "label": "no"}, {"text": "é", "label": "yes", "more": 1}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write(tmp_path, {"a.jsonl": lines, "a.csv": 'label,text\nno,"a, ""b"""\nyes,é\n'})
    write(tmp_path, {"a.tsv": 'text\tlabel\na "b\t10\né\t9\n'})
    for name, texts, classes, labels in (
        ("a.jsonl", ['a "b"\u2028c', "é"], ("no", "yes"), [0, 1]),
        ("a.csv", ['a, "b"', "é"], ("no", "yes"), [0, 1]),
        ("a.tsv", ['a "b', "é"], ("9", "10"), [1, 0]),
    ):
        table = table_of(tmp_path / name)
        assert table.splits == {"train": {"text": texts, "label": labels}}
        assert table.class_names == classes
    assert table_of(tmp_path / "a.csv", {"source": "text", "target": "label"}).splits["train"]["target"] == [
        "no",
        "yes",
    ]


def test_folders_of_classes(tmp_path):
    write(tmp_path, {"s/train/pos/1.txt": "good", "s/train/neg/1.txt": "bad", "s/test/pos/x/2.txt": "fine"})
    table = table_of(tmp_path / "s")
    assert table.class_names == ("neg", "pos")
    assert table.splits["train"] == {"text": ["bad", "good"], "label": [0, 1]}
    assert table.splits["test"] == {"text": ["fine"], "label": [1]}


@pytest.mark.parametrize(
    "names",
    [
        ("Train/a.txt", "Test/b.txt"),
        ("train-00000-of-00002.txt", "train-00001-of-00002.txt", "test-00000-of-00001.txt"),
        ("TRAIN.txt", "test_1.txt"),
    ],
)
def test_a_test_split_is_never_a_part_of_train(tmp_path, names):
    write(tmp_path, {f"s/{name}": name for name in names})
    splits = read_texts(str(tmp_path / "s")).splits
    assert splits["test"] == [name for name in names if name.lower().startswith("test")]
    assert not any(name.lower().startswith("test") for name in splits["train"])


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({"s/train.txt": "a", "s/more.txt": "a"}, "./s", "has train, and more.txt belongs to none of them"),
        ({}, f"./{'a' * 5000}", "there is no file or folder"),
        ({}, "a long text " * 99, "expected NAME"),
        ({}, "./absent.txt", "there is no file or folder"),
        ({}, "absent.txt", "there is no file or folder"),
        ({}, "absent", "absent is not prepared in"),
        ({}, "python_topic", "did you mean python_topics?"),
        ({}, "a b", "expected NAME"),
        ({"a.txt": "  \n"}, "./a.txt", "a.txt is empty; fill it or remove it"),
        ({"a.txt": b"ab\xff"}, "./a.txt", "a.txt is not UTF-8 text (byte 2 is 0xff)"),
        ({"a.pdf": "a"}, "./a.pdf", "its name must end in .txt"),
        ({"s/b.pdf": "a"}, "./s", "s holds no file of texts"),
        ({"s/a.txt": "a", "s/b.csv": "a"}, "./s", "files of several kinds (.csv, .txt)"),
        ({"s/test.txt": "a"}, "./s", "has test but no train"),
        ({"s/train.txt": "a", "s/val.txt": "a", "s/dev.txt": "a"}, "./s", "has both dev.txt and val.txt"),
        ({"s/a.txt": "a"}, "./s", "s/CLASS/a.txt"),
        ({"s/1.0.0/dataset_info.json": "{}"}, "./s", "holds a set that TFDS prepared"),
        ({"a.jsonl": '{"text": "a"}\n'}, "./a.jsonl", "line 1 of"),
        ({"a.jsonl": '\n{"text": "a", "label": 1}\n{\n'}, "./a.jsonl", "line 3 of"),
        ({"a.jsonl": "[]\n"}, "./a.jsonl", "is not a JSON object"),
        ({"a.jsonl": '{"text": 7, "label": 1}\n'}, "./a.jsonl", "is 7, not text"),
        ({"a.jsonl": '{"text": "7", "label": 1.5}\n'}, "./a.jsonl", "labels must be text or whole numbers"),
        ({"a.csv": "text,label\n"}, "./a.csv", "has no rows"),
        ({"a.csv": "text,label\na\n"}, "./a.csv", "line 2 of"),
        ({"a.csv": 'text,label\n"a,b\n'}, "./a.csv", "cannot be read as a table"),
        (
            {"s/train.csv": "text,label\na,1\n", "s/test.csv": "text,label\na,2\n"},
            "./s",
            "the label '2' of the test split",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, data_dir, monkeypatch, files, name, message):
    monkeypatch.chdir(write(tmp_path, files))
    with pytest.raises(UserError) as error:
        table_of(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_split_is_one_line(tmp_path):
    write(tmp_path, {"a.txt": "abc"})
    with pytest.raises(UserError, match=r"split of a.txt would be empty; give more text"):
        read_texts(f"{tmp_path}/a.txt")


def test_without_data_the_help_texts_of_python_are_used(data_dir):
    corpus = read_texts()
    assert corpus.name == "python_topics"
    assert corpus.notice.splitlines()[0] == "Python's help texts, not tiny_shakespeare."
    assert len(corpus.splits["train"][0]) > 200_000
    assert "import" in corpus.splits["train"][0]
    chosen = read_texts("python_topics")
    assert (chosen.notice, chosen.checksum) == (None, corpus.checksum)
    with pytest.raises(UserError, match="tiny_shakespeare is not prepared in .*tfds build"):
        read_texts("tiny_shakespeare")
    with pytest.raises(UserError, match="number_words is a set for translation"):
        read_texts("number_words")


def test_number_words():
    known = {0: ("zero", "null"), 1: ("one", "eins"), 16: ("sixteen", "sechzehn"), 30: ("thirty", "dreißig")}
    known |= {21: ("twenty-one", "einundzwanzig"), 101: ("one hundred one", "einhunderteins")}
    known |= {1017: ("one thousand seventeen", "eintausendsiebzehn")}
    known[9876] = ("nine thousand eight hundred seventy-six", "neuntausendachthundertsechsundsiebzig")
    for number, words in known.items():
        assert (english(number), german(number)) == words
    assert len({german(number) for number in range(10_000)}) == 10_000
    assert len({english(number) for number in range(10_000)}) == 10_000


def test_prepared_sets(write_set):
    import tensorflow_datasets as tfds

    text, label = tfds.features.Text(), tfds.features.ClassLabel(names=["no", "yes"])
    rows = [{"review": f"a review, nº {k}", "stars": "*", "label": k % 2} for k in range(40)]
    features = {"review": text, "stars": text, "label": label}
    write_set("reviews", {"train": rows, "test": rows[:3]}, features=features, supervised_keys=None)
    with pytest.raises(UserError, match=r"has several \(review, stars\); name one of them"):
        table_of("reviews")
    table = table_of("reviews", {"text": "review", "label": None})
    assert table.class_names == ("no", "yes")
    assert sorted(zip(table.splits["train"]["text"], table.splits["train"]["label"], strict=True)) == sorted(
        (row["review"], row["label"]) for row in rows
    )
    assert table.sizes == {"train": 40, "test": 3}
    with pytest.raises(UserError, match="needs one class label 'stars' as the label, but has none"):
        table_of("reviews", {"text": "review", "label": "stars"})
    write_set("other", {"train": rows[:5]}, features=features, supervised_keys=("review", "label"))
    assert table_of("other").splits["train"].keys() == {"text", "label"}
    corpus = read_texts("other", text_field="review")
    assert corpus.version == "1.0.0"
    pairs = [{"de": "Hund", "en": "dog"}]
    write_set("pairs", {"train": pairs}, features={"de": text, "en": text}, supervised_keys=("en", "de"))
    translated = table_of("pairs", {"source": None, "target": None})
    assert translated.splits["train"] == {"source": ["dog"], "target": ["Hund"]}
    turned = table_of("pairs", {"source": "de", "target": "en"})
    assert turned.splits["train"] == {"source": ["Hund"], "target": ["dog"]}


def test_a_prepared_set_of_translations(write_set):
    import tensorflow_datasets as tfds

    rows = [{"en": "dog", "de": "Hund"}, {"en": "cat", "de": "Katze"}]
    features = tfds.features.Translation(languages=("de", "en"))
    write_set("wmt", {"train": rows}, features=features, supervised_keys=("en", "de"))
    table = table_of("wmt", {"source": None, "target": None})
    pairs = zip(table.splits["train"]["source"], table.splits["train"]["target"], strict=True)
    assert sorted(pairs) == [("cat", "Katze"), ("dog", "Hund")]


def test_a_split_whose_labels_are_secret_is_left_out(write_set):
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["no", "yes"])}
    rows = [{"text": f"text {k}", "label": k % 2} for k in range(4)]
    secret = [{"text": "text", "label": -1}] * 2
    keys = ("text", "label")
    write_set("glue", {"train": rows, "test": secret}, features=features, supervised_keys=keys)
    table = table_of("glue")
    assert table.sizes == {"train": 4}
    assert "without its test split, which has no labels" in table.origin
    assert len(read_texts("glue").splits["test"]) == 2
    write_set("mixed", {"train": rows, "test": [*rows, *secret]}, features=features, supervised_keys=keys)
    with pytest.raises(UserError, match="of split 'test' has the label -1, expected 0 to 1"):
        table_of("mixed")


def test_tiny_shakespeare_is_cut_as_tfds_cuts_it():
    if not list(Path(REAL_DATA or "/nowhere").glob("tiny_shakespeare/*/dataset_info.json")):
        pytest.skip("needs prepared tiny_shakespeare: set TFDS_DATA_DIR")
    official = read_texts("tiny_shakespeare", data_dir=REAL_DATA)
    assert official.split_rule == ""
    whole = "".join("".join(official.splits[name]) for name in ("train", "validation", "test"))
    assert len(whole) == 1_115_394  # as Karpathy's input.txt
    assert hold_out({"train": [whole]}, "whole")[0] == official.splits
