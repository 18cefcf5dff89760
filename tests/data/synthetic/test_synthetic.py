import itertools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dl.data.synthetic.adding import adding_problem
from dl.data.synthetic.pairs import sequence_pairs
from dl.data.synthetic.patch_order import patch_order
from dl.errors import UserError

SIZES = {"num_train": 40, "num_validation": 5, "num_test": 30}
ALL = pytest.mark.parametrize(
    "make",
    [adding_problem, sequence_pairs, lambda **sizes: patch_order(**sizes)],
    ids=["adding", "pairs", "patches"],
)


def rows_of(source):
    return source[np.arange(len(source))]


@ALL
def test_an_example_depends_on_the_seed_its_split_and_its_index_alone(make):
    data, longer, other = make(**SIZES), make(**SIZES | {"num_train": 60}), make(**SIZES, seed=1)
    assert {name: len(source) for name, source in data.evaluations.items()} == {"validation": 5, "test": 30}
    for name, rows in rows_of(data.train).items():
        np.testing.assert_array_equal(rows, rows_of(longer.train)[name][:40])
        assert np.any(rows != rows_of(other.train)[name])
        assert np.any(rows[:5] != rows_of(data.evaluations["validation"])[name])
    assert data.identity.checksum == make(**SIZES).identity.checksum
    assert "seed 1" in other.provenance


@ALL
def test_sizes_must_be_positive(make):
    with pytest.raises(UserError, match="num_validation"):
        make(**SIZES | {"num_validation": 0})


@pytest.mark.parametrize("length", [2, 7])
def test_the_target_of_the_adding_problem_is_the_sum_of_one_number_in_each_half(length):
    rows = rows_of(adding_problem(length, **SIZES).train)
    numbers, marks = rows["features"][..., 0], rows["features"][..., 1]
    assert rows["features"].shape == (40, length, 2)
    assert set(np.unique(marks)) <= {0, 1}
    np.testing.assert_array_equal(marks[:, : length // 2].sum(1), np.ones(40))
    np.testing.assert_array_equal(marks[:, length // 2 :].sum(1), np.ones(40))
    assert 0 <= numbers.min() < numbers.max() < 1
    np.testing.assert_allclose(rows["target"][:, 0], (numbers * marks).sum(1), rtol=1e-6)


def test_the_constant_prediction_has_a_squared_error_of_one_sixth():
    target = rows_of(adding_problem(4, num_train=4000, num_validation=1, num_test=1).train)["target"]
    # The standard deviation of (x + y - 1)² is √(1/15 - 1/36) = 0.197: that of the mean is 0.0031.
    assert np.square(target - 1).mean() == pytest.approx(1 / 6, abs=0.0125)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_pairs_are_padded_sequences_of_letters_with_an_end(is_reversed):
    data = sequence_pairs(6, min_length=2, is_reversed=is_reversed, num_letters=3, **SIZES)
    assert data.vocab_size == 6
    assert data.token_names[:3] == ("a", "b", "c")
    rows = rows_of(data.train)
    lengths = set()
    for source, target in zip(rows["source"], rows["target"], strict=True):
        length = source.tolist().index(data.tokenizer.end_id)
        lengths.add(length)
        np.testing.assert_array_equal(source[length + 1 :], np.full(6 - length, data.tokenizer.padding_id))
        assert source[:length].max() < 3
        text, written = (data.tokenizer.decode(row) for row in (source, target))
        assert written == (text[::-1] if is_reversed else text)
        assert target[length] == data.tokenizer.end_id
    assert lengths == {2, 3, 4, 5, 6}
    assert data.train.spec["target"].shape == (7,)


def test_the_class_of_an_image_is_the_order_of_its_digits():
    data = patch_order(6, num_train=30, num_validation=5, num_test=5)
    assert data.num_classes == 6 == len(set(data.class_names))
    assert set(data.class_names) <= {"".join(order) for order in itertools.permutations("0123")}
    digits = load_digits()
    known = {
        np.rint(image * (255 / 16)).astype(np.uint8).tobytes(): str(digit)
        for image, digit in zip(digits.images, digits.target, strict=True)
    }
    rows = rows_of(data.train)
    for image, label in zip(rows["image"][..., 0], rows["label"], strict=True):
        quarters = [image[r : r + 24, c : c + 24] for r in (0, 24) for c in (0, 24)]
        shown = [known[quarter[8:16, 8:16].tobytes()] for quarter in quarters]
        assert "".join(shown) == data.class_names[label]
        assert image.sum() == sum(quarter[8:16, 8:16].sum() for quarter in quarters)  # the rest is black


def test_no_two_splits_share_the_image_of_a_digit():
    data = patch_order(24, num_train=300, num_validation=100, num_test=100)
    seen = {
        split: {
            image[r : r + 8, c : c + 8].tobytes()
            for image in rows_of(source)["image"]
            for r in (8, 32)
            for c in (8, 32)
        }
        for split, source in {"train": data.train, **data.evaluations}.items()
    }
    for one, other in itertools.combinations(seen, 2):
        assert not seen[one] & seen[other]
