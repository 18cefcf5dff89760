"""Folds: disjoint, covering and stratified, made without a look at the test split."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold

from dl.data import ArraySource, text_classification
from dl.data.folds import Folds, join, plain_folds, stratified_folds, take
from dl.errors import UserError
from tests.data.points import Streamed, data_of, points, with_three_splits


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(2, 5))
@settings(deadline=None, max_examples=60)
def test_folds_are_disjoint_cover_and_have_the_counts_of_scikit_learn(labels, num_folds):
    labels = np.array(sorted(labels))  # so that scikit-learn numbers the classes by size too
    if np.unique(labels, return_counts=True)[1].min() < num_folds:
        return
    folds = stratified_folds(labels, num_folds)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(len(labels)))
    theirs = StratifiedKFold(num_folds).split(np.zeros(len(labels)), labels)
    for rows, (_, their_rows) in zip(folds, theirs, strict=True):
        np.testing.assert_array_equal(np.bincount(labels[rows]), np.bincount(labels[their_rows]))
    for label in np.unique(labels):
        assert np.ptp([(labels[rows] == label).sum() for rows in folds]) <= 1


def test_folds_are_mixed_and_always_the_same():
    labels = np.arange(40) % 2
    first, again = stratified_folds(labels, 4), stratified_folds(labels, 4)
    for rows, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(rows, same)
    # Not every fourth row of a class: neighbours in the files may resemble one another.
    assert len(set(np.diff(first[0][first[0] % 2 == 0]).tolist())) > 1


@pytest.mark.parametrize("wrap", [lambda source: source, Streamed])
def test_each_fold_holds_out_its_rows_of_train_and_validation(wrap):
    whole = np.concatenate([points(22, 0).arrays["features"], points(8, 1).arrays["features"]])
    folds = Folds(data_of(wrap), 3)
    seen = []
    for k in range(3):
        fold = folds[k]
        assert set(fold.evaluations) == {"validation"}
        assert fold.identity.sizes == {"train": 20, "validation": 10}
        parts = [s[np.arange(len(s))]["features"] for s in (fold.train, fold.evaluations["validation"])]
        seen.append(parts[1])
        # Together the rows of both splits, each once.
        np.testing.assert_array_equal(np.sort(np.concatenate(parts), 0), np.sort(whole, 0))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen), 0), np.sort(whole, 0))
    assert {folds[k].identity.name for k in range(3)} == {f"points/fold-{k}-of-3" for k in (1, 2, 3)}


@pytest.mark.parametrize(
    ("with_test", "splits"), [(False, [(22, 0), (8, 1)]), (True, [(22, 0), (8, 1), (5, 2)])]
)
def test_the_test_split_is_divided_only_on_request(with_test, splits):
    whole = np.concatenate([points(*split).arrays["features"] for split in splits])
    folds = Folds(with_three_splits(), 3, with_test)
    parts = [folds[k].evaluations["validation"] for k in range(3)]
    held_out = np.concatenate([part[np.arange(len(part))]["features"] for part in parts])
    np.testing.assert_array_equal(np.sort(held_out, 0), np.sort(whole, 0))
    assert set(folds[0].evaluations) == {"validation"}


def test_views_give_any_rows_in_any_order():
    sources = [points(4, 0), points(3, 1)]
    arrays, streamed = join(sources), join([Streamed(source) for source in sources])
    index = np.array([6, 0, 3, 4, 0])
    for name in ("features", "label"):
        expected = np.concatenate([source.arrays[name] for source in sources])
        np.testing.assert_array_equal(arrays[index][name], expected[index])
        np.testing.assert_array_equal(streamed[index][name], expected[index])
        for source in (arrays, streamed):
            np.testing.assert_array_equal(
                take(source, np.array([5, 2]))[np.array([1, 0])][name], expected[[2, 5]]
            )
    assert streamed.spec == arrays.spec


@pytest.mark.parametrize(
    ("change", "num_folds", "message"),
    [
        ({}, 1, "folds=1 is out of range; it must be at least 2"),
        ({}, 31, "folds=31 is more than the number of examples; choose at most 30"),
        (
            {"label": np.zeros((22, 2), np.int32)},
            45,
            "folds=45 is more than the number",
        ),
        ({"label": np.zeros(22, np.float32)}, 1, "folds=1 is out of range; it must be at least 2"),
    ],
)
def test_mistakes_are_one_line(change, num_folds, message):
    data = data_of()
    if change:
        whole = ArraySource({**data.train.arrays, **change})
        data = dataclasses.replace(data, train=whole, validation=whole)
    with pytest.raises(UserError, match=message):
        Folds(data, num_folds)


@pytest.mark.parametrize("num_folds", [2, 3, 7, 23])
def test_plain_folds_are_disjoint_cover_and_have_the_sizes_of_scikit_learn(num_folds):
    folds = plain_folds(23, num_folds)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(23))
    assert [len(rows) for rows in folds] == [len(rows) for _, rows in KFold(num_folds).split(np.zeros(23))]
    assert num_folds == 23 or len(set(np.diff(folds[0]).tolist())) > 1


NO_CLASS = "there is no class of each example as `label`"


@pytest.mark.parametrize(
    ("label", "why_not"),
    [
        (np.arange(22, dtype=np.uint8) % 3, None),
        ((np.arange(22) % 3)[:, None], None),
        (np.linspace(0, 1, 22, dtype=np.float32), NO_CLASS),  # of a regression
        (np.arange(22), "only 2 examples have the label 0"),  # likewise, in whole numbers
        (np.zeros((22, 4), np.int32), NO_CLASS),  # several classes each, or a mask
        (None, NO_CLASS),  # of an autoencoder or a language model
    ],
)
@pytest.mark.parametrize("wrap", [lambda source: source, Streamed])
def test_folds_are_stratified_where_there_are_classes(label, why_not, wrap):
    features = {"features": np.arange(22, dtype=np.float32)} | ({} if label is None else {"label": label})
    source = wrap(ArraySource(features))
    folds = Folds(dataclasses.replace(data_of(), train=source, validation=source), 3)
    assert folds.unstratified == why_not
    held_out = [folds[k].evaluations["validation"] for k in range(3)]
    rows = [part[np.arange(len(part))]["features"] for part in held_out]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.repeat(np.arange(22), 2))
    if why_not is None:
        counts = [np.bincount(part[np.arange(len(part))]["label"].ravel()) for part in held_out]
        assert np.ptp(counts, axis=0).max() <= 1


def test_folds_share_the_tokenizer_of_their_data():
    text = text_classification("python_topics", tokenizer="bytes")
    assert Folds(text, 2)[0].tokenizer is text.tokenizer
    assert Folds(data_of(), 2)[0].tokenizer is None


def test_a_class_needs_as_many_examples_as_there_are_folds():
    with pytest.raises(UserError, match="folds=16 is more than the 15 examples of class 0; choose"):
        stratified_folds(np.arange(30) % 2, 16)
