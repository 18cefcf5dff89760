import numpy as np
import pytest

from dl.data import ArraySource
from dl.errors import UserError

ARRAYS = {
    "image": np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2, 1),
    "label": np.arange(5, dtype=np.int32),
}


def test_rows_come_in_the_order_asked_for():
    rows = ArraySource(ARRAYS)[np.array([3, 0, 3])]
    np.testing.assert_array_equal(rows["label"], [3, 0, 3])
    np.testing.assert_array_equal(rows["image"][0], ARRAYS["image"][3])


def test_spec_is_of_one_example():
    spec = ArraySource(ARRAYS).spec
    assert {name: (s.shape, s.dtype) for name, s in spec.items()} == {
        "image": ((2, 2, 1), np.uint8),
        "label": ((), np.int32),
    }


def test_length_and_bytes():
    source = ArraySource(ARRAYS)
    assert (len(source), source.nbytes) == (5, 20 + 20)


def test_take_is_a_source_of_those_rows():
    taken = ArraySource(ARRAYS).take(np.array([4, 1]))
    assert len(taken) == 2
    np.testing.assert_array_equal(taken[np.array([0, 1])]["label"], [4, 1])


@pytest.mark.parametrize(
    "arrays",
    [{}, {"a": np.zeros(3), "b": np.zeros(4)}, {"a": np.zeros(())}],
)
def test_arrays_without_a_common_length_are_refused(arrays):
    with pytest.raises(UserError, match="one common leading length"):
        ArraySource(arrays)


def test_the_refusal_names_the_lengths():
    with pytest.raises(UserError, match="'a': 3, 'b': 4"):
        ArraySource({"a": np.zeros(3), "b": np.zeros(4)})
