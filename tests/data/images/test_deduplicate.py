import numpy as np

from dl.data import ArraySource
from dl.data.images.deduplicate import deduplicate


def test_later_copies_go_and_the_order_stays():
    image = np.zeros((6, 4, 4, 1), np.uint8)
    image[:, 0, 0, 0] = [7, 3, 7, 5, 3, 7]
    clean, count = deduplicate(ArraySource({"image": image, "label": np.arange(6)}))
    assert count == 3
    np.testing.assert_array_equal(clean.arrays["label"], [0, 1, 3])
    np.testing.assert_array_equal(clean.arrays["image"], image[[0, 1, 3]])


def test_a_difference_of_one_bit_is_no_copy():
    image = np.zeros((2, 4, 4, 1), np.uint8)
    image[1, 3, 3, 0] = 1
    source = ArraySource({"image": image, "label": np.zeros(2, int)})
    clean, count = deduplicate(source)
    assert (len(clean), count) == (2, 0)


def test_the_count_equals_numpys_over_more_examples_than_are_read_at_once():
    text = np.random.default_rng(0).integers(0, 8, (3000, 3))
    clean, count = deduplicate(ArraySource({"text": text}), "text")
    rows, first = np.unique(text, axis=0, return_index=True)
    assert count == 3000 - len(rows)
    np.testing.assert_array_equal(clean.arrays["text"], text[np.sort(first)])


def test_the_source_is_left_as_it_was_and_nothing_is_too_little():
    image = np.ones((2, 2, 2, 1), np.uint8)
    source = ArraySource({"image": image})
    assert len(deduplicate(source)[0]) == 1
    assert len(source) == 2
    clean, count = deduplicate(source.take(np.array([], int)))
    assert (len(clean), count) == (0, 0)
