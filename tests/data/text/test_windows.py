import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl.data import ArraySplits
from dl.data.folds import Folds
from dl.data.pipeline import Batches
from dl.data.text.windows import TokenWindows, smallest_dtype
from dl.errors import UserError

NOT_COUNTED = -1


def sequence(size, vocab_size=50):
    return np.random.default_rng(size).integers(0, vocab_size, size).astype(smallest_dtype(vocab_size))


def all_rows(source):
    return source[np.arange(len(source))]


def test_a_row_in_training_is_a_slice_and_its_targets_are_the_slice_one_later():
    tokens = sequence(103)
    source = TokenWindows(tokens, 10, stride=7)
    rows = all_rows(source)
    starts = [*range(0, 92, 7), 92]  # the last row ends at the end of the sequence
    assert len(source) == len(starts)
    for row, start in enumerate(starts):
        np.testing.assert_array_equal(rows["tokens"][row], tokens[start : start + 10])
        np.testing.assert_array_equal(rows["targets"][row], tokens[start + 1 : start + 11])
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in source.spec.items()} == {
        name: (values.shape[1:], values.dtype) for name, values in rows.items()
    }


@settings(max_examples=100, deadline=None)
@given(size=st.integers(2, 200), length=st.integers(1, 40), data=st.data())
def test_evaluation_counts_each_token_once_with_its_context(size, length, data):
    context = data.draw(st.integers(1, length))
    tokens = np.arange(size, dtype=np.uint8)  # a token is its position
    rows = all_rows(TokenWindows(tokens, length, context=context))
    counted = rows["targets"] != NOT_COUNTED
    np.testing.assert_array_equal(np.sort(rows["targets"][counted]), np.arange(1, size))
    is_follower = rows["targets"] == rows["tokens"] + 1
    assert is_follower[counted].all()
    preceding = np.broadcast_to(np.arange(1, length + 1), counted.shape)
    assert (preceding[1:][counted[1:]] >= context).all()


@settings(max_examples=50, deadline=None)
@given(size=st.integers(2, 100), length=st.integers(1, 30), data=st.data())
def test_training_reads_every_token(size, length, data):
    stride = data.draw(st.integers(1, length))
    rows = all_rows(TokenWindows(np.arange(size, dtype=np.uint8), length, stride=stride))
    counted = rows["targets"] != NOT_COUNTED
    assert set(rows["targets"][counted]) == set(range(1, size))
    assert counted.all() or size <= length


@pytest.mark.parametrize("how", [{"stride": 3}, {"context": 5}])
def test_a_device_cuts_the_same_rows_as_the_host(mesh8, how):
    source = TokenWindows(sequence(500), 12, **how)
    on_device = Batches(source, 16, mesh8, seed=1)
    from_host = Batches(source, 16, mesh8, seed=1, max_resident_bytes=0)
    for step in (0, on_device.steps_per_epoch - 1):
        jax.tree.map(np.testing.assert_array_equal, on_device[step], from_host[step])
    assert {name: leaf.dtype for name, leaf in on_device[0].items()} == {
        name: leaf.dtype for name, leaf in on_device.abstract.items()
    }


def test_a_long_file_is_read_only_where_its_windows_are(tmp_path):
    path, size = tmp_path / "tokens.bin", 3 * 2**31  # the file is sparse: it takes no space
    with path.open("wb") as file:
        file.truncate(2 * size)
        file.seek(2 * (size - 5))
        file.write(np.arange(1, 6, dtype="<u2").tobytes())
    tokens = np.memmap(path, "<u2", "r")
    source = TokenWindows(tokens, 4, stride=4)
    last = source[np.array([len(source) - 1])]
    np.testing.assert_array_equal(last["tokens"], [[1, 2, 3, 4]])
    np.testing.assert_array_equal(last["targets"], [[2, 3, 4, 5]])


def test_the_checksum_changes_with_the_tokens_and_with_how_they_are_cut():
    tokens = sequence(100)
    other = tokens.copy()
    other[50] += 1
    sources = [
        TokenWindows(tokens, 10),
        TokenWindows(other, 10),
        TokenWindows(tokens, 11),
        TokenWindows(tokens, 10, stride=9),
        TokenWindows(tokens, 10, context=1),
    ]
    checksums = [ArraySplits("text", source).identity.checksum for source in sources]
    assert len(set(checksums)) == len(sources)
    assert ArraySplits("text", TokenWindows(tokens.copy(), 10)).identity.checksum == checksums[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenWindows(sequence(1), 4), "a text of 1 tokens has no token to predict"),
        (lambda: TokenWindows(sequence(9), 0), "sequence_length=0"),
        (lambda: TokenWindows(sequence(9), 4, stride=5), "stride=5"),
        (lambda: TokenWindows(sequence(9), 4, context=5), "eval_context=5"),
        (lambda: TokenWindows(sequence(9), 4, stride=2, context=2), "either a stride"),
        (lambda: TokenWindows(np.arange(9), 4, vocab_size=8)[np.arange(2)], "the token 8"),
        (lambda: TokenWindows(np.arange(9), 4, vocab_size=8).arrays, "the token 8"),
    ],
)
def test_a_mistake_is_one_clear_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("vocab_size", "name"), [(256, "uint8"), (257, "uint16"), (65537, "uint32")])
def test_tokens_take_the_smallest_type(vocab_size, name):
    assert smallest_dtype(vocab_size).name == name


def test_the_head_is_the_beginning_of_the_text():
    windows = TokenWindows(np.arange(50, dtype=np.uint8), 7, stride=3)
    np.testing.assert_array_equal(windows.head(5), np.arange(5))
    np.testing.assert_array_equal(windows.head(1_000), np.arange(50))


@pytest.mark.parametrize("stride", [1, 3])
def test_held_out_text_is_in_no_training_row(stride):
    tokens = np.arange(400, dtype=np.uint16)  # each token once
    train = TokenWindows(tokens[:380], 8, stride=stride)
    validation = {"validation": TokenWindows(tokens[380:], 8, context=4)}
    data = ArraySplits("text", train=train, evaluations=validation)
    folds = Folds(data, 5)
    assert folds.how == "pieces of the text, one after the other"
    for k in range(len(folds)):
        train, held_out = folds[k].train, folds[k].evaluations["validation"]
        rows = held_out[np.arange(len(held_out))]
        counted = rows["targets"][rows["targets"] >= 0].tolist()
        assert sorted(counted) == list(range(80 * k + 1, 80 * (k + 1)))  # each token but the first, once
        rows = train[np.arange(len(train))]
        assert not {*rows["tokens"].flat, *rows["targets"].flat} & {*range(80 * k, 80 * (k + 1))}
        assert len(train) >= (320 - 2 * 8) // stride
    with pytest.raises(UserError, match="folds=300 is too many for a text of 400 tokens"):
        Folds(data, 300)
