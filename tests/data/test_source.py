import jax
import jax.numpy as jnp
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
    with pytest.raises(UserError, match="all of the same length"):
        ArraySource(arrays)


def test_the_refusal_names_the_lengths():
    with pytest.raises(UserError, match="'a': 3, 'b': 4"):
        ArraySource({"a": np.zeros(3), "b": np.zeros(4)})


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        jnp.arange(1, 4),
        np.array([1, 2, 3], ">i8"),
        np.ma.MaskedArray([1, 2, 3]),
        np.arange(7)[1:4],
        np.arange(6, dtype=">u2")[::2] // 2 + 1,
        np.broadcast_to(np.arange(1, 4), (2, 3))[1],
    ],
)
def test_whatever_is_an_array_of_numbers_will_do(values):
    source = ArraySource({"a": values})
    assert isinstance(source.arrays["a"], np.ndarray)
    assert source.arrays["a"].dtype.isnative
    np.testing.assert_array_equal(source[np.array([2, 0])]["a"], [3, 1])


class Column:
    """A column of a table, as pandas has them: NumPy asks it for its array."""

    def __init__(self, *values, dtype=None):
        self.values = np.array(values, dtype)

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_columns_of_tables_will_do_and_gaps_in_them_will_not():
    np.testing.assert_array_equal(ArraySource({"a": Column(1, 2)}).arrays["a"], [1, 2])
    with pytest.raises(UserError, match="array gaps holds .* instead of numbers"):
        ArraySource({"gaps": Column(1, None, dtype=object)})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            ["cat", "dog"],
            r"a holds <U3 instead of numbers; classes are .*np.unique\(a, return_inverse=True\)",
        ),
        (np.array([b"cat", b"dog"]), "classes are whole numbers"),
        (np.array(["cat", "dog"], object), "classes are whole numbers"),
        (np.array([None, 1], object), "array a holds object instead of numbers; give every example the same"),
        ([[1], [2, 3]], "array a is not an array of numbers .*give every example the same shape"),
        (np.ma.MaskedArray([1, 2, 3], [False, True, False]), "array a has masked values, the first in row 1"),
        (np.array(["2020-01-01"], "M8[D]"), "array a holds .* instead of numbers"),
        (np.zeros(2, [("x", int), ("y", float)]), "array a holds .* instead of numbers"),
        (3, "all of the same length"),
        ("cat", "array a holds <U3 instead of numbers"),
        (jax.random.key(0), "array a "),
    ],
)
def test_what_is_no_array_of_numbers_is_one_line_with_its_name(values, said):
    with pytest.raises(UserError, match=said) as caught:
        ArraySource({"a": values})
    assert "\n" not in str(caught.value)
